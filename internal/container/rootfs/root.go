package rootfs

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// Options of New. All fields but Volatile are required.
type Options struct {
	Driver    layer.Driver
	Container oci.ContainerID // named in errors
	Writable  string          // directory of the writable layer
	Chain     oci.Chain       // the image's layers
	Dir       string          // where the root is mounted; made when it is missing
	Volatile  bool            // the writable layer need not survive a crash
}

// Root is the root file system of one container. It counts its users: the container's process, and every copy,
// export or commit under way. The first Acquire mounts it and the last Release unmounts it, so the end of a process
// neither waits for a copy nor takes the files away from one. Safe for concurrent use.
type Root struct {
	o Options

	mu      sync.Mutex // held over one mount or unmount
	refs    int
	mounted bool
	closed  bool          // no new references
	drained chan struct{} // closed when refs becomes 0; nil while Close does not wait
	changes int           // how often the writable layer began to be writable
	usage   *int64        // of the writable layer, which was not writable since it was measured; nil = unknown
}

// New returns the root of a container; nothing is mounted yet.
func New(o Options) *Root { return &Root{o: o} }

// initEntries are the mount points that a runtime needs. They are in a layer of their own directly below the
// writable one. A link of the same name in an image is therefore not followed, and diff and commit do not show them.
var initEntries = []layer.InitEntry{
	{Path: "/dev", Dir: true, Mode: 0o755},
	{Path: "/dev/console", Mode: 0o755},
	{Path: "/dev/pts", Dir: true, Mode: 0o755},
	{Path: "/dev/shm", Dir: true, Mode: 0o755},
	{Path: "/proc", Dir: true, Mode: 0o755},
	{Path: "/sys", Dir: true, Mode: 0o755},
	{Path: "/.dockerenv", Mode: 0o755},
	{Path: "/etc", Dir: true, Mode: 0o755},
	{Path: "/etc/resolv.conf", Mode: 0o755},
	{Path: "/etc/hosts", Mode: 0o755},
	{Path: "/etc/hostname", Mode: 0o755},
	{Path: "/etc/mtab", Link: "/proc/mounts"},
}

// Acquire adds a reference to the root and mounts it if it is the first. The caller returns the reference with
// Release. Errors: errs.NotFound after Close.
func (r *Root) Acquire(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return r.gone()
	}
	if !r.mounted {
		if err := os.MkdirAll(r.o.Dir, 0o711); err != nil {
			return errs.New(errs.Internal, "container %s: %w", r.o.Container.Short(), err)
		}
		r.change()
		o := layer.MountOptions{Volatile: r.o.Volatile, Init: initEntries}
		if err := r.o.Driver.Mount(ctx, r.o.Writable, r.o.Chain, r.o.Dir, o); err != nil {
			return errs.New(errs.Internal, "container %s: mount root: %w", r.o.Container.Short(), err)
		}
		r.mounted = true
	}
	r.refs++
	return nil
}

// Reserve adds a reference that keeps the writable layer from being removed, without mounting the root. The caller
// returns the reference with Release. Errors: errs.NotFound after Close.
func (r *Root) Reserve() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return r.gone()
	}
	r.refs++
	return nil
}

// Adopt adds the reference of a process that an earlier engine started: its root is mounted.
func (r *Root) Adopt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refs++
	r.mounted = true
	r.change()
}

// change says that the writable layer may change from now on. The caller holds mu.
func (r *Root) change() {
	r.changes++
	r.usage = nil
}

// Changed says that the writable layer was changed without the root.
func (r *Root) Changed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change()
}

// Usage returns the sum of the sizes of the files in the writable layer, in bytes. While the root is not mounted the sum stays the same, and is not made
// again. Errors: errs.NotFound after Close.
func (r *Root) Usage(ctx context.Context) (size int64, err error) {
	if err := r.Reserve(); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Release()) }()
	r.mu.Lock()
	known, mounted, changes := r.usage, r.mounted, r.changes
	r.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	size, err = r.o.Driver.Usage(ctx, r.o.Writable, r.o.Chain)
	if err != nil || mounted {
		return size, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changes == changes {
		r.usage = &size
	}
	return size, nil
}

// Release gives a reference back.
func (r *Root) Release() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refs--; r.refs > 0 {
		return nil
	}
	defer func() { // after the unmount: who waits removes the directory
		if r.drained != nil {
			close(r.drained)
			r.drained = nil
		}
	}()
	if !r.mounted {
		return nil
	}
	// No client's context: a client that went away must not leave a mount.
	if err := r.o.Driver.Unmount(context.Background(), r.o.Dir); err != nil {
		return errs.New(errs.Internal, "container %s: unmount root: %w", r.o.Container.Short(), err)
	}
	r.mounted = false
	return nil
}

// Stale reports whether the root is mounted although it has no user. With unmount, it unmounts such a root.
func (r *Root) Stale(unmount bool) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refs > 0 {
		return false, nil
	}
	stale, err := mount.IsMounted(r.o.Dir)
	if err != nil || !stale || !unmount {
		return stale, err
	}
	if err := r.o.Driver.Unmount(context.Background(), r.o.Dir); err != nil {
		return true, errs.New(errs.Internal, "container %s: unmount root: %w", r.o.Container.Short(), err)
	}
	r.mounted = false
	return true, nil
}

// Close refuses new references and waits until every reference was given back. Only one Close may wait at a time.
func (r *Root) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	if r.refs == 0 {
		r.mu.Unlock()
		return nil
	}
	if r.drained == nil {
		r.drained = make(chan struct{})
	}
	wait := r.drained
	r.mu.Unlock()
	select {
	case <-wait:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Reopen allows references again after a Close.
func (r *Root) Reopen() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = false
}

// Open opens the directory of the root. The caller holds a reference from Acquire.
func (r *Root) Open() (*os.File, error) {
	return os.OpenFile(r.o.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func (r *Root) gone() error {
	return errs.New(errs.NotFound, "No such container: %s", r.o.Container)
}
