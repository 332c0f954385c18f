package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// Bind is a file or directory of the host that View shows in a root.
type Bind struct {
	Source       string // path on the host
	Target       string // path below the root
	ReadOnly     bool
	NonRecursive bool // without the mounts below Source
}

// View calls f with a descriptor of the mounted root in which the binds are mounted at their targets. The caller
// holds a reference from Acquire.
//
// The binds are mounted in a mount namespace that belongs to one thread and ends with f. No mount is left behind,
// no other process sees the mounts, and the container cannot move them.
func (r *Root) View(binds []Bind, f func(root *os.File) error) error {
	run := func() error {
		root, err := r.Open()
		if err != nil {
			return err
		}
		defer root.Close()
		for _, b := range binds {
			if err := mountBind(root, b); err != nil {
				return errs.New(errs.Internal, "container %s: mount %s: %w", r.o.Container.Short(), b.Target, err)
			}
		}
		return f(root)
	}
	if len(binds) == 0 {
		return run()
	}
	return inMountNamespace(run)
}

// inMountNamespace calls f on a thread with a mount namespace of its own. Thread and namespace end with f.
func inMountNamespace(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The main thread never ends, so a namespace made on it would stay: keep it locked and use another thread.
			result <- inMountNamespace(f)
			runtime.UnlockOSThread()
			return
		}
		// The thread is not unlocked, so it ends with this goroutine. The namespace is a slave of the host's: it
		// receives the host's unmounts, so it keeps no root of another container busy, and passes on none of its own.
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

// mountBind mounts one bind below root. It makes a missing mount point: a container that was never started has none.
func mountBind(root *os.File, b Bind) error {
	fi, err := os.Stat(b.Source)
	if err != nil {
		return err
	}
	at, err := safepath.Open(root, b.Target, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		at, err = makeMountPoint(root, b.Target, fi.IsDir())
		if errors.Is(err, unix.EROFS) {
			return nil // in a volume that is read-only; the container itself cannot have this mount
		}
	}
	if err != nil {
		return err
	}
	defer at.Close()
	flags := uintptr(unix.MS_BIND)
	if !b.NonRecursive {
		flags |= unix.MS_REC
	}
	if err := unix.Mount(b.Source, fdPath(at), "", flags, ""); err != nil {
		return err
	}
	if !b.ReadOnly {
		return nil
	}
	top, err := safepath.Open(root, b.Target, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer top.Close()
	return unix.Mount("", fdPath(top), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
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
