// Package writable makes the writable layer of a container over overlayfs, for drivers whose layers are directories in
// overlay format, on disk or in mounts of their own.
//
// In the directory of a container it keeps upper/ and work/ for overlayfs, and init.<digest>/: a layer between image and
// container with the mount points of the runtime, where the digest is that of chain and mount points. These are not changes
// of the container: Changes and Diff compare with the layers below the init layer.
package writable

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/quota"
	"ply/internal/store/layer/upper"
)

// Base is the stack of layers below a writable.
type Base struct {
	Layers []mount.Layer // top first; may be empty
	// Open opens the directories of the same layers for look-ups, top first; O_PATH is enough. The caller closes them.
	Open func() ([]*os.File, error)
	// Root is the index of the layer whose root directory has the attributes of the whole, or -1 for mode 0755 and owner
	// root. It need not be the top layer, because most layers do not describe their root.
	Root int
}

const (
	upperName    = "upper"
	workName     = "work"
	initName     = "init"
	initListName = "init.json"
)

// Create creates an empty writable below dir.
func Create(fsys durable.FS, dir string, base Base) (err error) {
	made := []string{filepath.Join(dir, upperName), filepath.Join(dir, workName)}
	defer func() {
		if err != nil {
			for _, d := range made {
				err = errors.Join(err, fsys.RemoveAll(d))
			}
		}
	}()
	for _, d := range made {
		if err := fsys.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := setRootAttrs(made[0], base); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

// Examine reports whether the directories of the writable in dir exist; the error's class is errs.DataLoss. With mend it makes
// work/ again, which holds no data.
func Examine(fsys durable.FS, dir string, mend bool) error {
	for _, name := range []string{upperName, workName} {
		p := filepath.Join(dir, name)
		fi, err := fsys.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) && name == workName && mend {
			if err := fsys.Mkdir(p, 0o755); err != nil {
				return err
			}
			if err := quota.Join(p, filepath.Join(dir, upperName)); err != nil { // files move from there to upper
				return err
			}
			if err := fsys.SyncDir(dir); err != nil {
				return err
			}
			continue
		}
		if err != nil || !fi.IsDir() {
			return errs.New(errs.DataLoss, "%s is missing", filepath.Join(filepath.Base(dir), name))
		}
	}
	return nil
}

// setRootAttrs sets the attributes of the directory at path to those of the root of base.
func setRootAttrs(path string, base Base) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if base.Root < 0 {
		return unix.Fchmod(fd, 0o755)
	}
	dirs, err := base.Open()
	if err != nil {
		return err
	}
	defer closeAll(dirs)
	return upper.CopyAttrs(fd, int(dirs[base.Root].Fd()), ".")
}

func closeAll(dirs []*os.File) {
	for _, d := range dirs {
		d.Close()
	}
}

// View mounts base read-only at target. Overlayfs needs at least two layers, and the root gets the attributes of the top
// one: roots is a directory of the driver with an empty directory for each set of attributes.
func View(fsys durable.FS, base Base, roots, target string) error {
	top, err := rootDir(fsys, base, roots)
	if err != nil {
		return err
	}
	second := filepath.Join(roots, emptyName)
	if err := mkdir(fsys, second); err != nil {
		return err
	}
	lower := append([]mount.Layer{mount.At(top)}, base.Layers...)
	if len(base.Layers) < mount.MaxLowers-1 { // base may have no layers
		lower = append(lower, mount.At(second))
	}
	t, err := mount.Overlay{Lower: lower, ReadOnly: true}.Mount()
	if err != nil {
		return err
	}
	return errors.Join(t.Attach(target), t.Close())
}

const emptyName = "empty"

func mkdir(fsys durable.FS, dir string) error {
	if err := fsys.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// rootDir returns the empty directory with the attributes of the root of base, and creates it if necessary. There are only
// few, so they are never removed.
func rootDir(fsys durable.FS, base Base, roots string) (string, error) {
	if base.Root < 0 {
		dir := filepath.Join(roots, "default")
		err := fsys.Mkdir(dir, 0o755)
		if err == nil {
			err = os.Chmod(dir, 0o755) // independent of the umask
		}
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
		return dir, err
	}
	dirs, err := base.Open()
	if err != nil {
		return "", err
	}
	defer closeAll(dirs)
	name, err := upper.AttrsDigest(int(dirs[base.Root].Fd()), ".")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(roots, name)
	if _, err := fsys.Lstat(dir); err == nil {
		return dir, nil
	}
	tmp := durable.TempName(roots)
	if err := fsys.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	if err := setRootAttrs(tmp, base); err != nil {
		return "", errors.Join(err, fsys.RemoveAll(tmp))
	}
	if err := fsys.Rename(tmp, dir); err != nil {
		return "", errors.Join(err, fsys.RemoveAll(tmp))
	}
	return dir, nil
}

// Mount mounts the writable in dir over base, the layers of chain, at target.
func Mount(fsys durable.FS, inits *Inits, dir string, chain oci.Chain, base Base, target string, opts layer.MountOptions) error {
	initDir, err := inits.provide(dir, chain, base, opts.Init)
	if err != nil {
		return err
	}
	// A volatile mount leaves a mark here, and the kernel then refuses the next mount. The caller asked for a volatile one.
	if err := fsys.RemoveAll(filepath.Join(dir, workName, "work", "incompat")); err != nil {
		return err
	}
	var open paths
	defer open.close()
	o := mount.Overlay{Volatile: opts.Volatile, Upper: filepath.Join(dir, upperName), Work: filepath.Join(dir, workName)}
	for _, p := range []*string{&o.Upper, &o.Work, &initDir} {
		var err error
		if *p, err = open.short(*p); err != nil {
			return err
		}
	}
	o.Lower = append([]mount.Layer{mount.At(initDir)}, base.Layers...)
	t, err := o.Mount()
	if err != nil {
		return err
	}
	return errors.Join(t.Attach(target), t.Close())
}

// MaxPath is the longest path that the mount API accepts as a string.
const MaxPath = 255

// paths replaces long paths by those of descriptors.
type paths []*os.File

func (p *paths) short(path string) (string, error) {
	if len(path) <= MaxPath {
		return path, nil
	}
	f, err := OpenDir(path)
	if err != nil {
		return "", err
	}
	*p = append(*p, f)
	return FDPath(f), nil
}

func (p *paths) close() { closeAll(*p) }

// Changes returns the changes of the writable.
func Changes(ctx context.Context, dir string, base Base) (changes []layer.Change, err error) {
	err = withLower(base, func(lower upper.Lower) error {
		changes, err = upper.Changes(ctx, filepath.Join(dir, upperName), lower)
		return err
	})
	return changes, err
}

// Diff writes the writable as the tar of a layer.
func Diff(ctx context.Context, dir string, base Base, w io.Writer) error {
	return withLower(base, func(lower upper.Lower) error {
		return upper.Diff(ctx, filepath.Join(dir, upperName), lower, w)
	})
}

// Usage returns the sum of the sizes of the regular files in the writable, in bytes.
func Usage(ctx context.Context, dir string) (int64, error) {
	return upper.Usage(ctx, filepath.Join(dir, upperName))
}

func withLower(base Base, do func(upper.Lower) error) error {
	dirs, err := base.Open()
	if err != nil {
		return err
	}
	defer closeAll(dirs)
	s := upper.StackLower(dirs...)
	s.SetRoot(base.Root)
	return do(s)
}

// Limiter limits writables. It is embedded in drivers.
type Limiter struct{}

var _ layer.WritableLimiter = Limiter{}

// CanLimit implements layer.WritableLimiter.
func (Limiter) CanLimit(dir string) error { return quota.Check(dir) }

// LimitWritable implements layer.WritableLimiter.
func (Limiter) LimitWritable(dir string, size int64) error {
	return quota.Limit(size, filepath.Join(dir, upperName), filepath.Join(dir, workName))
}

// Remove removes a writable that is not mounted. It is no error when it does not exist.
func Remove(fsys durable.FS, inits *Inits, dir string) error {
	all := removeInits(fsys, dir, inits)
	// The root of a container owns upper/, and could have given it the project of another container. The limit ends first, so that none stays after a crash.
	project, err := quota.Of(filepath.Join(dir, workName))
	if err == nil && project != 0 {
		err = quota.Free(dir, project)
	}
	all = errors.Join(all, ignoreAbsent(err))
	for _, name := range []string{upperName, workName} {
		all = errors.Join(all, fsys.RemoveAll(filepath.Join(dir, name)))
	}
	return all
}

// OpenDir opens a directory for look-ups.
func OpenDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
