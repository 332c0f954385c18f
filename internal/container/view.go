package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
	"ply/internal/volume"
)

// view runs f with the container's root: its own files, with its volumes and binds in their places. Memory file
// systems of the process (tmpfs, /proc, /dev) are not there, as with docker's cp.
//
// Volumes are mounted in a mount namespace of one thread, which dies with f: nothing can be left behind, nobody
// else sees the mounts, and the container cannot move them. Every path is resolved in the root by the kernel.
func (s *Service) view(ctx context.Context, c *ctr, f func(ctx context.Context, root *os.File) error) (err error) {
	if err := s.mountRoot(ctx, c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unmountRoot(c)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.done, cancel)() // a removal does not wait for a copy
	c.mu.Lock()
	var mounts []volume.Mount
	for _, m := range c.rec.Mounts {
		if m.Type == "bind" || m.Type == "volume" {
			mounts = append(mounts, m)
		}
	}
	c.mu.Unlock()
	if len(mounts) == 0 {
		root, err := c.openRoot()
		if err != nil {
			return err
		}
		defer root.Close()
		return f(ctx, root)
	}
	users := "view-" + newID() // the volumes' devices stay mounted for the view, whatever the container does
	mounts, err = s.opts.Volumes.Prepare(ctx, users, mounts)
	if err != nil {
		return err
	}
	defer s.opts.Volumes.Release(users)
	return inOwnMounts(func() error {
		root, err := c.openRoot()
		if err != nil {
			return err
		}
		defer root.Close()
		for _, m := range mounts {
			if err := place(root, m); err != nil {
				return errs.New(errs.Internal, "container %s: mount %s: %w", c.id.Short(), m.Target, err)
			}
		}
		return f(ctx, root)
	})
}

// inOwnMounts runs f on a thread with a mount namespace of its own, which ends with it.
func inOwnMounts(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread never ends, so its namespace would not either: keep it busy and take another.
			result <- inOwnMounts(f)
			runtime.UnlockOSThread()
			return
		}
		// Not unlocked: the thread ends with this goroutine. As a slave the namespace sees the host's unmounts, so it
		// keeps no other container's root busy, and nothing mounted in it is seen outside.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			result <- fmt.Errorf("mount namespace: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			result <- fmt.Errorf("mount namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// place binds one mount in its place below root, making the place if the container has not been started yet.
func place(root *os.File, m volume.Mount) error {
	fi, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	at, err := safepath.Open(root, m.Target, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		at, err = makePlace(root, m.Target, fi.IsDir())
	}
	if err != nil {
		return err
	}
	defer at.Close()
	flags := uintptr(unix.MS_BIND)
	if !m.NonRecursive {
		flags |= unix.MS_REC
	}
	if err := unix.Mount(m.Source, fdPath(at), "", flags, ""); err != nil {
		return err
	}
	if m.RW {
		return nil
	}
	top, err := safepath.Open(root, m.Target, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer top.Close()
	return unix.Mount("", fdPath(top), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func makePlace(root *os.File, target string, dir bool) (*os.File, error) {
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
