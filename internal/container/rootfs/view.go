package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/safepath"
)

// Bind is a file or directory of the host that View shows in a root.
type Bind struct {
	Source       string // path on the host
	Target       string // path below the root
	ReadOnly     bool
	NonRecursive bool // without the mounts below Source
}

// ViewOptions of View.
type ViewOptions struct {
	Binds    []Bind
	ReadOnly bool // nothing can be written but to the binds
}

// View calls f with a descriptor of the mounted root in which the binds are mounted at their targets. The caller
// holds a reference from Acquire.
//
// The binds are mounted in a mount namespace that belongs to one thread and ends with f. No mount is left behind,
// no other process sees the mounts, and the container cannot move them.
func (r *Root) View(o ViewOptions, f func(root *os.File) error) error {
	run := func() error {
		root, err := r.Open()
		if err != nil {
			return err
		}
		defer root.Close()
		for _, b := range o.Binds {
			if err := mountBind(root, b); err != nil {
				return errs.New(errs.Internal, "container %s: mount %s: %w", r.o.Container.Short(), b.Target, err)
			}
		}
		if o.ReadOnly { // the kernel checks it wherever a path leads; the mount of the host and of the container stays as it is
			if err := mount.MakeReadOnly(root); err != nil {
				return errs.New(errs.Internal, "container %s: %w", r.o.Container.Short(), err)
			}
		}
		return f(root)
	}
	if len(o.Binds) == 0 && !o.ReadOnly {
		return run()
	}
	return mount.InNamespace(run)
}

// mountBind mounts one bind below root. It makes a missing mount point: a container that was never started has none.
// Source and target are each looked up once, because a container may exchange what is on the way to them.
func mountBind(root *os.File, b Bind) error {
	source, err := os.OpenFile(b.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	at, err := safepath.Open(root, b.Target, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		var st unix.Stat_t
		if err := unix.Fstat(int(source.Fd()), &st); err != nil {
			return err
		}
		at, err = makeMountPoint(root, b.Target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
		if errors.Is(err, unix.EROFS) {
			return nil // in a volume that is read-only; the container itself cannot have this mount
		}
	}
	if err != nil {
		return err
	}
	defer at.Close()
	tree, err := mount.Clone(source, mount.CloneOptions{NonRecursive: b.NonRecursive, ReadOnly: b.ReadOnly})
	if err != nil {
		return err
	}
	return errors.Join(tree.AttachAt(at), tree.Close())
}

func makeMountPoint(root *os.File, target string, dir bool) (*os.File, error) {
	if dir {
		return safepath.MkdirAll(root, target, 0o755)
	}
	parent, err := safepath.MkdirAll(root, path.Dir(target), 0o755)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	fd, err := unix.Openat(int(parent.Fd()), path.Base(target), unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o755)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), target), nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
