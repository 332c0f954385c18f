package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/names"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/safepath"
	"ply/internal/store/meta"
	"ply/internal/volume"
)

func newID() oci.ContainerID {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return oci.ContainerID(hex.EncodeToString(b[:]))
}

// Create makes a container of an image. On an error nothing of it remains. Errors: NotFound for an image,
// Conflict for a name in use, Invalid for a spec that cannot run.
func (s *Service) Create(ctx context.Context, spec spec.Spec) (_ oci.ContainerID, warnings []string, err error) {
	if spec.Image == "" {
		return "", nil, invalid("no image specified")
	}
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	img, err := s.opts.Images.Get(ctx, spec.Image)
	if err != nil {
		return "", nil, err
	}
	if err := checkPlatform(spec.Platform, &img.Config, spec.Image); err != nil {
		return "", nil, err
	}
	spec.Merge(&img.Config.Config)
	if warnings, err = s.check(&spec); err != nil {
		return "", nil, err
	}
	path, args := spec.Command()
	if path == "" {
		return "", nil, invalid("no command specified")
	}
	// From here on the image's layers are held, whatever happens to its names.
	lease := s.opts.Store.Lease()
	defer lease.Release()
	lease.Layer(img.Config.RootFS.DiffIDs)
	c := s.newCtr(newID())
	c.rec = record{
		Image: img.ID, Chain: img.Config.RootFS.DiffIDs, Created: time.Now().UTC(), ImageName: spec.Image,
		Platform: oci.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant},
		Path:     path, Args: args, Driver: s.opts.Store.Layers.Name(), State: State{Status: StatusCreated},
	}
	if spec.LogDriver != "none" {
		c.rec.LogPath = c.logFile()
	}
	if err := s.reserve(c, spec.Name); err != nil {
		return "", nil, err
	}
	spec.Name = c.rec.Name
	undo := &undoer{log: s.log}
	defer func() {
		if err != nil {
			undo.all()
			err = errors.Join(err, s.forget(c))
		}
	}()
	if err := s.resolveShared(c, &spec); err != nil {
		return "", nil, err
	}
	if spec.Hostname == "" && namesItself(&spec) {
		spec.Hostname = c.id.Short()
	}
	c.rec.Spec = spec
	if !isContainerMode(spec.NetworkMode) {
		c.rec.Networks = map[string]network.Endpoint{spec.NetworkMode: {Network: spec.NetworkMode}}
	}
	if err := s.makeContainer(ctx, c, undo); err != nil {
		return "", nil, err
	}
	if err := s.recordNew(c, img.ID); err != nil {
		return "", nil, err
	}
	s.mu.Lock()
	s.byID[c.id] = c
	s.mu.Unlock()
	if err := s.opts.Images.Touch(ctx, img.ID); err != nil && !errors.Is(err, errs.NotFound) {
		s.log.Warn("image's last use not recorded", "image", img.ID, "err", err)
	}
	s.publish(c, "create")
	return c.id, warnings, nil
}

// namesItself reports whether a container has a UTS namespace of its own to name.
func namesItself(s *spec.Spec) bool {
	return s.UTSMode != "host" && s.NetworkMode != "host" && !isContainerMode(s.NetworkMode)
}

// reserve takes a name for the container, inventing one when none is asked for.
func (s *Service) reserve(c *ctr, name string) error {
	if name != "" {
		if name[0] == '/' {
			name = name[1:]
		}
		if err := checkName(name); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" {
		for try := 0; ; try++ {
			name = names.New(try)
			if _, taken := s.byName[name]; !taken {
				break
			}
		}
	} else if other, taken := s.byName[name]; taken {
		return nameConflict(name, other)
	}
	s.byName[name] = c.id
	c.rec.Name = name // nobody else sees c yet
	return nil
}

func nameConflict(name string, other oci.ContainerID) error {
	return errs.New(errs.Conflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, string(other))
}

// forget takes a container out of the indexes and deletes its directories.
func (s *Service) forget(c *ctr) error {
	s.mu.Lock()
	if s.byName[c.rec.Name] == c.id {
		delete(s.byName, c.rec.Name)
	}
	delete(s.byID, c.id)
	s.mu.Unlock()
	return s.removeDirs(c)
}

func (s *Service) removeDirs(c *ctr) error {
	// A root that is still mounted refuses this, and nothing is deleted through it.
	err := os.Remove(c.rootfsDir())
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = os.RemoveAll(c.exec)
	}
	return errors.Join(err, s.opts.Store.FS.RemoveAll(c.dir))
}

// recordNew writes the record unless the image has vanished meanwhile.
func (s *Service) recordNew(c *ctr, id oci.ImageID) error {
	raw, err := json.Marshal(&c.rec)
	if err != nil {
		return errs.New(errs.Internal, "container %s: record: %w", c.id.Short(), err)
	}
	return s.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if !tx.Images.Has(id) {
			return errs.New(errs.NotFound, "No such image: %s", c.rec.ImageName)
		}
		return tx.Containers.Put(c.id, raw)
	})
}

// makeContainer makes what a container has on disk.
func (s *Service) makeContainer(ctx context.Context, c *ctr, undo *undoer) error {
	fsys := s.opts.Store.FS
	if err := fsys.Mkdir(c.dir, 0o700); err != nil {
		return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	if err := fsys.Mkdir(c.writableDir(), 0o711); err != nil {
		return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	drv := s.opts.Store.Layers
	if err := drv.CreateWritable(ctx, c.writableDir(), c.rec.Chain); err != nil {
		return fmt.Errorf("container %s: writable layer: %w", c.id.Short(), err)
	}
	undo.add("writable layer", func() error { return drv.RemoveWritable(context.WithoutCancel(ctx), c.writableDir()) })
	inherited, err := s.inherit(c.rec.Spec.VolumesFrom)
	if err != nil {
		return err
	}
	spec := &c.rec.Spec
	res, err := s.opts.Volumes.Resolve(ctx, volume.Request{
		Container: c.id, Binds: spec.Binds, Mounts: spec.Mounts, Tmpfs: spec.Tmpfs, Inherited: inherited, Anonymous: spec.Volumes,
	})
	if err != nil {
		return err
	}
	undo.add("volumes", func() error { s.opts.Volumes.Undo(context.WithoutCancel(ctx), c.id, res.Made); return nil })
	c.rec.Mounts = res.Mounts
	return s.populate(ctx, c)
}

// inherit gives the mounts of --volumes-from.
func (s *Service) inherit(from []string) ([]volume.Mount, error) {
	var out []volume.Mount
	for _, raw := range from {
		ref, readOnly, err := volume.ParseInherit(raw)
		if err != nil {
			return nil, err
		}
		other, err := s.find(ref)
		if err != nil {
			return nil, err
		}
		other.mu.Lock()
		for _, m := range other.rec.Mounts {
			if m.Type == "tmpfs" {
				continue
			}
			m.RW = m.RW && !readOnly
			out = append(out, m)
		}
		other.mu.Unlock()
	}
	return out, nil
}

// populate copies an image's content into volumes that are empty.
func (s *Service) populate(ctx context.Context, c *ctr) (err error) {
	needed := false
	for _, m := range c.rec.Mounts {
		needed = needed || m.CopyUp
	}
	if !needed {
		return nil
	}
	if err := s.mountRoot(ctx, c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.unmountRoot(c)) }()
	root, err := c.openRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := s.opts.Volumes.Prepare(ctx, c.id, c.rec.Mounts); err != nil {
		return err
	}
	defer s.opts.Volumes.Release(c.id)
	for _, m := range c.rec.Mounts {
		if !m.CopyUp || m.Subpath != "" {
			continue
		}
		src, err := safepath.Open(root, m.Target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // the image has nothing there
		}
		if err != nil {
			return fmt.Errorf("container %s: volume %s: %w", c.id.Short(), m.Target, err)
		}
		err = errors.Join(s.opts.Volumes.Populate(ctx, c.id, m.Name, src), src.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// resolveShared replaces the references in container:<ref> modes by IDs, so that a later rename changes nothing.
func (s *Service) resolveShared(c *ctr, spec *spec.Spec) error {
	for _, mode := range []*string{&spec.NetworkMode, &spec.PidMode, &spec.IpcMode} {
		if !isContainerMode(*mode) {
			continue
		}
		other, err := s.find((*mode)[len("container:"):])
		if err != nil {
			return err
		}
		*mode = "container:" + string(other.id)
	}
	if spec.NetworkMode == "" || spec.NetworkMode == "default" {
		spec.NetworkMode = "bridge"
	}
	if spec.IpcMode == "" {
		spec.IpcMode = s.opts.IpcMode
	}
	if spec.CgroupnsMode == "" && !spec.Privileged {
		spec.CgroupnsMode = s.opts.CgroupnsMode
	}
	if spec.NetworkDisabled {
		spec.NetworkMode = "none"
	}
	return nil
}

func isContainerMode(mode string) bool {
	return len(mode) > len("container:") && mode[:len("container:")] == "container:"
}
