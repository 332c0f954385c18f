package erofs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/safepath"
	"ply/internal/store/layer"
)

func compareInit(a, b layer.InitEntry) int { return cmp.Compare(a.Path, b.Path) }

func checkInit(entries []layer.InitEntry) error {
	for _, e := range entries {
		clean, err := safepath.Clean(e.Path)
		if err != nil {
			return err
		}
		if clean == "." || "/"+clean != e.Path {
			return errs.New(errs.Invalid, "mount point %q: not a clean absolute path", e.Path)
		}
	}
	return nil
}

// initDir gives a directory to lie on top of a chain: with the chain's root attributes and those of entries that the
// image does not have as wanted. What stands in the image where a directory or file is wanted and is something
// else, such as a symbolic link at /dev, is hidden. It is made once for a chain and a list of entries.
func (d *Driver) initDir(ctx context.Context, chain oci.Chain, entries []layer.InitEntry, mounts []*layerMount, records []*record) (string, error) {
	list, err := json.Marshal(entries)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(chain.ID()+"\n"), list...))
	home := filepath.Join(d.inits, "none")
	if len(chain) > 0 {
		home = filepath.Join(d.inits, chain.Top().Hex())
	}
	dir := filepath.Join(home, hex.EncodeToString(sum[:16]))
	if _, err := d.fs.Lstat(dir); err == nil {
		return dir, nil
	}
	if err := d.makeDir(home); err != nil {
		return "", err
	}
	tmp := durable.TempName(home)
	if err := d.fs.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	err = d.fillInit(ctx, tmp, entries, mounts, records)
	if err == nil {
		err = d.fs.Rename(tmp, dir)
		if errors.Is(err, os.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
			return dir, d.fs.RemoveAll(tmp) // somebody else made it
		}
	}
	if err != nil {
		return "", errors.Join(err, d.fs.RemoveAll(tmp))
	}
	return dir, d.fs.SyncDir(home)
}

func (d *Driver) fillInit(ctx context.Context, dir string, entries []layer.InitEntry, mounts []*layerMount, records []*record) error {
	if len(entries) > 0 {
		image, err := d.lookAt(mounts, records)
		if err != nil {
			return err
		}
		defer func() { // the mounts are the caller's
			image.root.Close()
			image.tree.Close()
		}()
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := d.initEntry(dir, image.root, e); err != nil {
				return errs.New(errs.Internal, "mount point %s: %w", e.Path, err)
			}
		}
	}
	if root, _ := rootOf(records); root != nil {
		return root.apply(dir)
	}
	return nil
}

// initEntry makes one mount point in dir unless the image has it.
func (d *Driver) initEntry(dir string, image *os.File, e layer.InitEntry) error {
	name := e.Path[1:]
	if has, err := hasEntry(image, name, e); err != nil || has {
		return err
	}
	if err := d.initParents(dir, image, path.Dir(name)); err != nil {
		return err
	}
	at := filepath.Join(dir, name)
	switch {
	case e.Link != "":
		if err := os.Symlink(e.Link, at); !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case e.Dir:
		if err := d.fs.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	default:
		f, err := d.fs.OpenFile(at, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return unix.Chmod(at, e.Mode&0o7777)
}

// hasEntry reports whether the image has the entry in the kind wanted, reached through directories only.
func hasEntry(image *os.File, name string, e layer.InitEntry) (bool, error) {
	st, err := statBelow(image, name)
	if err != nil || st.Mode == 0 {
		return false, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return e.Dir || e.Link != "", nil // a directory in place of a link is the image's will
	case unix.S_IFREG:
		return !e.Dir, nil
	case unix.S_IFLNK:
		return e.Link != "", nil
	}
	return false, nil
}

// statBelow gives a zero Mode when there is no such name, or a link on the way.
func statBelow(root *os.File, name string) (st unix.Stat_t, err error) {
	fd, err := openBelow(root, name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return unix.Stat_t{}, nil
	}
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// initParents makes the directories above an entry, looking as they do in the image.
func (d *Driver) initParents(dir string, image *os.File, parent string) error {
	if parent == "." {
		return nil
	}
	done := ""
	for part := range strings.SplitSeq(parent, "/") {
		done = path.Join(done, part)
		at := filepath.Join(dir, done)
		err := d.fs.Mkdir(at, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		fd, err := openBelow(image, done, unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY)
		if err != nil {
			continue // not there as a directory: as made
		}
		f := os.NewFile(uintptr(fd), done)
		a, err := attrOf(f)
		f.Close()
		if err != nil {
			return err
		}
		like := attributes{Mode: a.Mode & 0o7777, UID: a.UID, GID: a.GID, Mtime: a.Mtime, Xattrs: map[string][]byte{}}
		for _, x := range a.Xattrs {
			like.Xattrs[x.Name] = []byte(x.Value)
		}
		if err := like.apply(at); err != nil {
			return err
		}
	}
	return nil
}
