package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"

	"ply/internal/container/shim"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// cleanRun removes what a run that has ended left on this host: processes and cgroups of a killed shim, mounts, the
// network. It is idempotent, and finds nothing after a reboot.
func (r *restorer) cleanRun(ctx context.Context, c *ctr) {
	warn := func(what string, err error) {
		if err != nil {
			r.env.log.Warn("leftover was not removed", "what", what, "container", c.id, "err", err)
		}
	}
	shimLives := false
	if _, err := os.Lstat(filepath.Join(c.paths.bundle, shim.ConfigFile)); err == nil {
		cctx, cancel := context.WithTimeout(ctx, cleanupLimit)
		_, err := shim.Cleanup(cctx, r.env.opts.ShimPath, c.paths.bundle)
		cancel()
		shimLives = errors.Is(err, errs.Conflict)
		if !errors.Is(err, errs.NotFound) {
			warn("shim", err)
		}
	}
	if !shimLives { // the runtime does not know a cgroup whose shim was killed before it stored its state
		warn("cgroup", endCgroup(cgroupRoot, cgroupOf(c)))
	}
	c.mu.Lock()
	netns := c.rec.Netns
	if _, err := os.Lstat(c.paths.netns); netns == "" && err == nil {
		netns, c.rec.Netns = c.paths.netns, c.paths.netns
	}
	c.mu.Unlock()
	if netns != "" {
		warn("network", c.detachNetwork(ctx))
	}
	if !shimLives {
		warn("checkpoint", durable.RemoveTemps(r.env.opts.Store.FS, c.paths.checkpoints))
	}
	warn("root", r.unmountRoot(ctx, c))
	warn("shm", unmountShm(c.paths.shm))
}

// unmountRoot unmounts the root of a container that has no users, if it is mounted.
func (r *restorer) unmountRoot(ctx context.Context, c *ctr) error {
	if ok, err := mountinfo.Mounted(c.paths.rootfs); err != nil || !ok {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return r.env.opts.Store.Layers.Unmount(ctx, c.paths.rootfs)
}

// sweep deletes the directories of containers that have no record: a crash interrupted their creation or removal.
// While a record is damaged nothing is deleted: a directory may be that of a container whose key has changed.
func (r *restorer) sweep(ctx context.Context) {
	if d := r.env.opts.Store.Meta.Doubt(); d != "" {
		r.env.log.Warn("leftovers of containers are kept while records may be missing", "cause", d)
		return
	}
	if n := len(r.env.index.allLost()); n > 0 {
		r.env.log.Warn("leftovers of containers are kept while records are damaged", "damaged", n)
		return
	}
	for _, dir := range []string{filepath.Join(r.env.opts.ExecRoot, "containers"), r.env.opts.stateDir(), filepath.Join(r.env.opts.DataRoot, "containers")} {
		entries, err := r.env.opts.Store.FS.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue // no container was started yet
		}
		if err != nil {
			r.env.log.Warn("leftovers not looked for", "dir", dir, "err", err)
			continue
		}
		for _, e := range entries {
			id := oci.ContainerID(e.Name())
			if r.env.index.get(id) != nil || !oci.IsHex64(e.Name()) {
				continue
			}
			if err := r.sweepOne(ctx, id); err != nil {
				r.env.log.Warn("leftover was not removed", "container", id, "err", err)
			}
		}
	}
}

// damaged reports whether the container has a record, which then could not be read. Its files are kept, so that it can
// be repaired.
func (r *restorer) damaged(id oci.ContainerID) bool {
	has := true
	if err := r.env.opts.Store.Meta.View(func(tx *meta.Tx) error { has = tx.Containers.Has(id); return nil }); err != nil {
		return true
	}
	return has
}

// sweepOne removes what is left of a container without a record. One whose shim lives is left alone.
func (r *restorer) sweepOne(ctx context.Context, id oci.ContainerID) error {
	c := r.env.newCtr(id)
	if _, err := shim.Connect(c.paths.bundle); err == nil {
		return errs.New(errs.Conflict, "its shim lives")
	}
	r.cleanRun(ctx, c)
	if _, err := os.Lstat(c.paths.writable); err == nil {
		if err := r.env.opts.Store.Layers.RemoveWritable(ctx, c.paths.writable); err != nil {
			return err
		}
	}
	return c.removeDirs()
}
