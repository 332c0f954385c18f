package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Contents moves the content of a service's volumes in and out of the engine and from one name to another.
type Contents struct{ *Service }

// Export writes the content of a volume as a tar stream. Its names begin with "./"; the first entry is the volume's directory. A device
// that the volume's options name is mounted meanwhile. The volume cannot be removed or renamed until Export returns. What containers
// write meanwhile may be in the stream or not.
func (s Contents) Export(ctx context.Context, name string, w io.Writer) error {
	return s.read(ctx, name, func(dir *os.File) error { return s.opts.Pack(ctx, dir, w) })
}

// read calls do with the directory of a volume. Until do returns, the volume has its device mounted and counts as used.
func (s Contents) read(ctx context.Context, name string, do func(dir *os.File) error) error {
	user := oci.ContainerID("copy-" + NewID())
	s.mu.Lock()
	_, err := s.record(name)
	if err == nil {
		s.addReference(name, string(user))
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	defer s.DropReferences(user)
	if _, err := s.Prepare(ctx, user, []Mount{{Type: "volume", Name: name}}); err != nil {
		return err
	}
	defer s.Release(user)
	dir, err := openDir(s.path(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir)
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// Import unpacks a tar stream, compressed or not, into a volume, which it makes unless the volume is there and empty. The volume gets
// the whole content or, after an error or a crash, none of it. The error's class is errs.Conflict when the volume has content or a
// container refers to it, and errs.Invalid for a bad stream or a volume whose data is on a device.
func (s Contents) Import(ctx context.Context, name string, r io.Reader) (*Volume, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	isNew, err := s.canFill(name)
	if err != nil {
		return nil, err
	}
	fill := func(dir *os.File) error { return s.opts.Unpack(ctx, dir, r) }
	if isNew {
		return s.createFilled(ctx, name, meta.Volume{Driver: "local"}, fill)
	}
	stage, err := s.stage(ctx, fill)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	defer s.unstage(stage)
	s.mu.Lock()
	defer s.mu.Unlock()
	if isNew, err := s.fillable(name); err != nil {
		return nil, err
	} else if isNew {
		return nil, errs.New(errs.Conflict, "import %s: the volume was removed meanwhile", name)
	}
	if err := durable.Rename(s.opts.Store.FS, filepath.Join(stage, dataDir), s.path(name)); err != nil {
		return nil, errs.New(errs.Internal, "import %s: %w", name, err)
	}
	s.publish("import", name, nil)
	rec, err := s.record(name)
	if err != nil {
		return nil, err
	}
	return s.volume(name, rec), nil
}

// canFill is fillable for a caller that does not hold mu.
func (s Contents) canFill(name string) (isNew bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fillable(name)
}

// fillable reports whether a volume can be filled: it is there, empty and unused, or it is not there. The caller holds mu.
func (s Contents) fillable(name string) (isNew bool, err error) {
	rec, err := s.record(name)
	if errors.Is(err, errs.NotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if len(rec.Options) > 0 {
		return false, errs.New(errs.Invalid, "import %s: the volume's data is on a device (%s), which cannot be filled in one step", name, rec.Options["device"]).
			WithHint("Unpack the archive in a container that mounts the volume.")
	}
	if err := s.unused("import", name); err != nil {
		return false, err
	}
	if err := s.ensureData(name); err != nil {
		return false, err
	}
	empty, err := isEmpty(s.path(name))
	if err == nil && !empty {
		err = errs.New(errs.Conflict, "import %s: volume is not empty", name).
			WithHint("Import into a new volume; volume rename can then give it the name.")
	}
	return false, err
}

// Copy makes a volume from the content, labels and file attributes of another one. Blocks are shared where the file system can. The new
// volume appears with the whole content or, after an error or a crash, not at all. The error's class is errs.Conflict when the name is
// taken. What containers write to the source meanwhile may be in the copy or not.
func (s Contents) Copy(ctx context.Context, from, to string) (v *Volume, err error) {
	if err := checkName(to); err != nil {
		return nil, err
	}
	rec, err := s.record(from)
	if err != nil {
		return nil, err
	}
	if err := s.free("copy", to); err != nil {
		return nil, err
	}
	err = s.read(ctx, from, func(src *os.File) error {
		v, err = s.createFilled(ctx, to, meta.Volume{Driver: "local", Labels: maps.Clone(rec.Labels)}, func(dst *os.File) error {
			return copyTree(ctx, dst, src)
		})
		return err
	})
	return v, err
}

// free returns an error when a volume of that name exists.
func (s Contents) free(verb, name string) error {
	_, err := s.record(name)
	switch {
	case errors.Is(err, errs.NotFound):
		return nil
	case err == nil:
		return errs.New(errs.Conflict, "%s: a volume named %s already exists", verb, name)
	}
	return err
}

// createFilled makes a volume whose content fill writes.
//
// The content is durable in removingDir under the volume's name before the record is, and only then moves to its place: when the
// engine ends before the record, New deletes the content, and when it ends after it, New moves it.
func (s Contents) createFilled(ctx context.Context, name string, rec meta.Volume, fill func(dir *os.File) error) (*Volume, error) {
	fail := func(err error) error { return fmt.Errorf("create %s: %w", name, err) }
	stage, err := s.stage(ctx, fill)
	if err != nil {
		return nil, fail(err)
	}
	defer s.unstage(stage)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.free("create", name); err != nil {
		return nil, err
	}
	fsys := s.opts.Store.FS
	if _, err := fsys.Lstat(filepath.Join(s.opts.Root, name)); err == nil {
		return nil, errs.New(errs.Conflict, "create %s: %s is there without a record of a volume", name, filepath.Join(s.opts.Root, name)).
			WithHint("Run ply system check --repair.")
	}
	away := trash{fsys, s.opts.Store.Meta, s.opts.Root}
	// An earlier removal that failed may have left a directory there.
	if err := ignoreNotExist(fsys.Rename(away.path(name), durable.TempName(s.opts.Root))); err != nil {
		return nil, fail(err)
	}
	if err := durable.Rename(fsys, stage, away.path(name)); err != nil {
		return nil, fail(errors.Join(err, ignoreNotExist(fsys.RemoveAll(away.path(name)))))
	}
	if rec.Created.IsZero() {
		rec.Created = time.Now().UTC()
	}
	put := func(tx *meta.Tx) error { return tx.Volumes.Put(name, rec) }
	if err := s.opts.Store.Meta.Update(put); err != nil {
		return nil, fail(errors.Join(err, fsys.RemoveAll(away.path(name))))
	}
	// That the move is durable does not matter: the next start repeats it.
	if err := fsys.Rename(away.path(name), filepath.Join(s.opts.Root, name)); err != nil {
		gone := s.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Volumes.Delete(name) })
		return nil, fail(errors.Join(err, gone))
	}
	// The copy of the record lies in the directory, which was not there the first time. The next start writes it too.
	if err := s.opts.Store.Meta.Update(put); err != nil {
		s.log.Warn("the copy of a volume's record is missing", "volume", name, "err", err)
	}
	s.publish("create", name, nil)
	return s.volume(name, rec), nil
}

// stage makes a temporary directory that is like a volume's, and lets fill write the content. The content is durable when stage
// returns. The caller calls unstage.
func (s Contents) stage(ctx context.Context, fill func(dir *os.File) error) (_ string, err error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	fsys := s.opts.Store.FS
	tmp := durable.TempName(s.opts.Root) // where New deletes it after a crash
	if err := fsys.Mkdir(tmp, 0o700); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			s.unstage(tmp)
		}
	}()
	data := filepath.Join(tmp, dataDir)
	if err := fsys.Mkdir(data, 0o755); err != nil {
		return "", err
	}
	dir, err := openDir(data)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	if err := fill(dir); err != nil {
		return "", err
	}
	return tmp, fsys.SyncFS(data)
}

// unstage removes a directory of stage if it is still there.
func (s Contents) unstage(tmp string) {
	if err := s.opts.Store.FS.RemoveAll(tmp); err != nil {
		s.log.Warn("volumes: a temporary stays until the next start", "path", tmp, "err", err)
	}
}
