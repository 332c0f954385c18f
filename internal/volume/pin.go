package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/safepath"
	"ply/internal/store/layer"
)

// pin binds the file or directory that a mount's subpath names to a mount point in MountRoot, and returns the mount point. The
// path in the volume is looked up once: another container that has the volume can replace its directories by links at any time, so a
// runtime must not look it up again. Links are resolved inside the volume, as if its root were that of a file system.
func (s *Service) pin(id oci.ContainerID, n int, m Mount) (_ string, err error) {
	root, err := os.OpenFile(s.path(m.Name), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer root.Close()
	return pinBelow(root, filepath.Join(s.opts.pins(id), strconv.Itoa(n)), m)
}

// pinBelow binds what the subpath of m names below root to the mount point at, and returns that.
func pinBelow(root *os.File, at string, m Mount) (_ string, err error) {
	f, err := safepath.Open(root, m.Subpath, unix.O_PATH, 0)
	if err != nil {
		return "", errs.New(errs.Invalid, "%s %s: subpath %s: %w", m.Type, m.Name, m.Subpath, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: m.Subpath, Err: err}
	}
	tree, err := mount.Clone(f, mount.CloneOptions{})
	if err != nil {
		return "", errs.New(errs.Internal, "%s %s: subpath %s: %w", m.Type, m.Name, m.Subpath, err)
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	if err := makeMountPoint(at, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return "", err
	}
	if err := tree.Attach(at); err != nil {
		return "", errors.Join(err, os.Remove(at))
	}
	return at, nil
}

// viewPrefix begins the names of mount points of whole images.
const viewPrefix = "image-"

// view mounts the files of an image, or what the subpath names in it, read-only at a mount point in MountRoot, and returns the mount point.
func (s *Service) view(ctx context.Context, id oci.ContainerID, n int, m Mount) (string, error) {
	if m.Image == "" {
		return "", errs.New(errs.DataLoss, "image %s: mount %s: the layers are not recorded", m.Name, m.Target).WithHint("Create the container again.")
	}
	at := filepath.Join(s.opts.pins(id), viewPrefix+strconv.Itoa(n))
	if err := makeMountPoint(at, true); err != nil {
		return "", err
	}
	if len(m.Chain) > 0 {
		if err := s.opts.Store.Layers.View(ctx, m.Chain, at); err != nil {
			return "", errs.New(errs.Internal, "image %s: mount %s: %w", m.Name, m.Target, err)
		}
	}
	if m.Subpath == "" {
		return at, nil
	}
	root, err := os.OpenFile(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer root.Close()
	return pinBelow(root, filepath.Join(s.opts.pins(id), strconv.Itoa(n)), m)
}

func makeMountPoint(at string, dir bool) error {
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return err
	}
	if dir {
		return os.Mkdir(at, 0o700)
	}
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// pins returns the directory of the mount points of one container.
func (o *Options) pins(id oci.ContainerID) string { return filepath.Join(o.MountRoot, string(id)) }

// unpin unmounts and removes the mount points in dir, and dir. It deletes nothing recursively, because what is still mounted is
// the data of a volume.
func unpin(layers layer.Driver, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), viewPrefix) { // after the parts of it, whose names are numbers
			err = errors.Join(err, layers.Unmount(context.Background(), at), os.Remove(at))
			continue
		}
		err = errors.Join(err, mount.Unmount(at, true), os.Remove(at))
	}
	return errors.Join(err, os.Remove(dir))
}

// unpinAll removes the mount points that an earlier process left. Containers that run do not need them: each has mounts of its own
// in its mount namespace.
func (s *Service) unpinAll() error {
	entries, err := os.ReadDir(s.opts.MountRoot)
	for _, e := range entries {
		err = errors.Join(err, unpin(s.opts.Store.Layers, filepath.Join(s.opts.MountRoot, e.Name())))
	}
	return err
}
