package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/volume"
)

// ErrNotModified reports that a container is already in the state asked for; an API answers 304.
var ErrNotModified = errors.New("container is already in that state")

// Service runs the containers of this host. Safe for concurrent use. Files and Sessions are its other two faces.
//
// Code that holds a reference to a container's root must not wait for the container's slot (ctr.op), unless the wait
// ends with ctr.done: a removal holds the slot and waits for the references.
//
// Locks, in the order in which they may be taken:
//
//	ctr.op       a slot with a context: one life-cycle change of a container at a time (start, the end of a run,
//	             remove, rename, update, pause). Held over mounts and the launch of a shim, never over waiting for a
//	             process, a client or a copy.
//	session.Set  keeps the start of an exec and a freeze apart; held over one call to the shim
//	rootfs.Root  the references to a container's root; held over one mount or unmount
//	ctr.saveMu   orders the writes of a container's record
//	ctr.mu       a container's fields; a leaf, held over memory only
//	index.mu     the names and IDs; a leaf too. ctr.mu and index.mu are never held together.
type Service struct {
	env  *env
	runs *starter
}

// New opens the service over the records in the store. It changes no container; Restore does.
func New(o Options) (*Service, error) {
	e, err := newEnv(o)
	if err != nil {
		return nil, err
	}
	if o.WritableSize > 0 {
		if err := canLimit(o.Store.Layers, filepath.Join(o.DataRoot, "containers")); err != nil {
			return nil, fmt.Errorf("default size of containers: %w", err)
		}
	}
	err = e.opts.Store.Meta.View(func(tx *meta.Tx) error {
		for id := range tx.Containers.Keys() {
			c, err := e.load(tx, id)
			if err != nil {
				// One damaged record must not keep the others from running.
				e.log.Error("container record is damaged", "container", id, "err", err)
				e.index.addLost(newLost(tx, id, err))
				continue
			}
			e.index.add(c, c.rec.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	loadProfile(e.log)
	for _, c := range e.index.all() {
		e.opts.Volumes.AddReferences(c.id, volumeNames(c.rec.Mounts)...)
	}
	for _, l := range e.index.allLost() {
		e.opts.Volumes.AddReferences(l.id, volume.AnyVolume)
	}
	return &Service{env: e, runs: newStarter(e)}, nil
}

// Close stops the background work and waits for it. The containers run on under their shims. Their parent cgroup stays, because
// another engine may be about to make a cgroup in it.
func (s *Service) Close() error {
	s.env.stop()
	s.env.work.Wait()
	return nil
}

// SetDefaults puts other defaults of containers in force.
func (s *Service) SetDefaults(d Defaults) { s.env.live.Store(d.withDefaults()) }

// StopAll stops every running container, each with its own signal and timeout; timeout, in seconds, is for those that have
// none, -1 waits for ever. The next engine starts those again whose restart policy asks for it.
func (s *Service) StopAll(ctx context.Context, timeout int) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all error
	for _, c := range s.env.index.all() {
		if !c.isActive() {
			continue
		}
		wg.Go(func() {
			err := c.stop(ctx, "", c.ownTimeout(timeout), byShutdown)
			if err != nil && !errors.Is(err, ErrNotModified) {
				mu.Lock()
				all = errors.Join(all, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

// InUse returns the IDs of the containers, of any state, that were made from an image or mount it.
func (s *Service) InUse(id oci.ImageID) []string {
	var out []string
	for _, c := range s.env.index.all() {
		c.mu.Lock()
		if c.rec.Image == id || slices.ContainsFunc(c.rec.Mounts, func(m volume.Mount) bool { return m.Image == id }) {
			out = append(out, string(c.id))
		}
		c.mu.Unlock()
	}
	return out
}

// Running reports whether the container of that ID has a process.
func (s *Service) Running(id string) bool {
	c := s.env.index.get(oci.ContainerID(id))
	return c != nil && c.isActive()
}

func (s *Service) find(ref string) (*ctr, error) { return s.env.index.find(ref) }
