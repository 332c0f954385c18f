package container

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/store/layer"
)

// rootfs counts who needs a container's root mounted: its process, and every copy, export or commit under way.
// The first mounts, the last unmounts, so the end of a process never waits for a reader and never pulls the
// tree away from one.
type rootfs struct {
	mu      sync.Mutex
	refs    int
	mounted bool
	drained chan struct{} // closed when refs falls to 0; nil when nobody waits
}

// initEntries are the mount points that a runtime needs. They lie in a layer of their own below the writable
// one, so a link of that name in an image leads nowhere, and they show up in neither diff nor commit.
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

// mountRoot takes a reference to the mounted root; the caller gives it back with unmountRoot.
func (s *Service) mountRoot(ctx context.Context, c *ctr) error {
	c.root.mu.Lock()
	defer c.root.mu.Unlock()
	c.mu.Lock() // under root.mu: a removal marks the container gone before it waits for root.refs
	gone, chain, volatile := c.gone, c.rec.Chain, c.rec.Spec.AutoRemove
	c.mu.Unlock()
	if gone {
		return errs.New(errs.NotFound, "No such container: %s", c.id)
	}
	if !c.root.mounted {
		if err := os.MkdirAll(c.rootfsDir(), 0o711); err != nil {
			return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
		}
		err := s.opts.Store.Layers.Mount(ctx, c.writableDir(), chain, c.rootfsDir(), layer.MountOptions{Volatile: volatile, Init: initEntries})
		if err != nil {
			return errs.New(errs.Internal, "container %s: mount root: %w", c.id.Short(), err)
		}
		c.root.mounted = true
	}
	c.root.refs++
	return nil
}

// holdRoot keeps the writable layer from being removed without mounting it.
func (s *Service) holdRoot(c *ctr) error {
	c.root.mu.Lock()
	defer c.root.mu.Unlock()
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return errs.New(errs.NotFound, "No such container: %s", c.id)
	}
	c.root.refs++
	return nil
}

// unmountRoot gives a reference back.
func (s *Service) unmountRoot(c *ctr) error {
	c.root.mu.Lock()
	defer c.root.mu.Unlock()
	if c.root.refs--; c.root.refs > 0 {
		return nil
	}
	if c.root.drained != nil {
		close(c.root.drained)
		c.root.drained = nil
	}
	if !c.root.mounted {
		return nil
	}
	// The work is not a client's: a client that left must not leave a mount.
	if err := s.opts.Store.Layers.Unmount(context.Background(), c.rootfsDir()); err != nil {
		s.log.Warn("root stays mounted", "container", c.id, "err", err)
		return err
	}
	c.root.mounted = false
	return nil
}

// drainRoot waits until nobody needs the root.
func (c *ctr) drainRoot(ctx context.Context) error {
	c.root.mu.Lock()
	if c.root.refs == 0 {
		c.root.mu.Unlock()
		return nil
	}
	if c.root.drained == nil {
		c.root.drained = make(chan struct{})
	}
	wait := c.root.drained
	c.root.mu.Unlock()
	select {
	case <-wait:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// adoptRoot takes the reference of a process that a former engine started.
func (c *ctr) adoptRoot() {
	c.root.mu.Lock()
	defer c.root.mu.Unlock()
	c.root.refs++
	c.root.mounted = true
}

// openRoot opens the mounted root.
func (c *ctr) openRoot() (*os.File, error) {
	return os.OpenFile(c.rootfsDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}
