package container

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/logfile"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/safepath"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/volume"
)

func newID() oci.ContainerID {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return oci.ContainerID(hex.EncodeToString(b[:]))
}

// Create makes a container of an image. On an error nothing of it remains. Errors: NotFound for an image and for nothing
// else, Conflict for a name in use, Invalid for a spec that cannot run.
func (s *Service) Create(ctx context.Context, sp spec.Spec) (oci.ContainerID, []string, error) {
	if sp.Image == "" {
		return "", nil, invalid("no image specified")
	}
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	img, err := s.env.opts.Images.GetFor(ctx, sp.Image, sp.Platform)
	if err != nil {
		return "", nil, err
	}
	return create(ctx, s, sp, img, false)
}

// foreignPlatform returns docker's warning for an image of another platform that was not asked for by a platform; "" = none.
func foreignPlatform(image oci.Platform, asked string) string {
	host := oci.HostPlatform()
	runs := map[string]string{"amd64": "386", "arm64": "arm"}[host.Architecture] // besides its own
	if asked != "" || image.Architecture == "" || image.Architecture == host.Architecture || image.Architecture == runs {
		return ""
	}
	return fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested", image, host)
}

// create makes a container of img. step: see record.Step.
func create(ctx context.Context, s *Service, sp spec.Spec, img *image.Image, step bool) (_ oci.ContainerID, warnings []string, err error) {
	defer func() { err = foundImage(err) }()
	sp.Merge(&img.Config.Config)
	if warnings, err = s.env.check(&sp); err != nil {
		return "", nil, err
	}
	if text := foreignPlatform(img.Config.Platform(), sp.Platform); text != "" {
		warnings = append(warnings, text)
	}
	if len(sp.Entrypoint)+len(sp.Cmd) == 0 { // an empty program is found missing at the start, as with docker
		return "", nil, invalid("no command specified")
	}
	// The lease protects the image's layers until the container's record refers to them, even if the image is removed.
	lease := s.env.opts.Store.Lease()
	defer lease.Release()
	lease.Layer(img.Config.RootFS.DiffIDs)
	c := s.env.newCtr(newID())
	if sp.Name, err = s.env.index.reserve(c.id, sp.Name); err != nil {
		return "", nil, err
	}
	undo := &undoer{log: s.env.log}
	defer func() {
		if err != nil {
			undo.all()
			s.env.index.remove(c.id, sp.Name)
			err = errors.Join(err, c.removeDirs())
		}
	}()
	if err := s.resolveModes(c.id, &sp); err != nil {
		return "", nil, err
	}
	r := s.newRecord(c, sp, img)
	r.Step = step
	c.setRecord(r)
	if err := s.makeFiles(ctx, c, img, lease, undo); err != nil {
		return "", nil, err
	}
	if err := c.saveNew(); err != nil {
		return "", nil, err
	}
	s.env.index.add(c, "")
	if err := s.env.opts.Images.Touch(ctx, img.ID); err != nil && !errors.Is(err, errs.NotFound) {
		s.env.log.Warn("image's last use not recorded", "image", img.ID, "err", err)
	}
	c.publish("create")
	return c.id, warnings, nil
}

// foundImage returns the error of a create whose image was found. It is never NotFound, because clients then pull the image.
func foundImage(err error) error {
	if e, ok := errors.AsType[*errs.Error](err); ok && e.Class != errs.NotFound || !errors.Is(err, errs.NotFound) {
		return err
	}
	return errs.New(errs.Invalid, "%v", err)
}

// newRecord returns the record of a container that was not started yet.
func (s *Service) newRecord(c *ctr, sp spec.Spec, img *image.Image) record {
	cfg := &img.Config
	r := record{
		Image: img.ID, Chain: cfg.RootFS.DiffIDs, Name: sp.Name, Created: time.Now().UTC(), ImageName: sp.Image,
		Platform: cfg.Platform(),
		Driver:   s.env.opts.Store.Layers.Name(), State: State{Status: StatusCreated}, Spec: sp,
	}
	r.Path, r.Args = sp.Command()
	if sp.LogDriver != logfile.None && !logfile.IsRemote(sp.LogDriver) {
		r.LogPath = c.paths.log
	}
	r.Networks = networksOf(&sp)
	return r
}

// removeDirs deletes the container's directories.
func (c *ctr) removeDirs() error {
	// Removing the mount point fails while the root is mounted, and then nothing is deleted through the mount.
	err := os.Remove(c.paths.rootfs)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = os.RemoveAll(c.paths.bundle)
	}
	// The runtime removes its state, unless its shim was killed.
	return errors.Join(err, os.RemoveAll(filepath.Join(c.env.opts.stateDir(), string(c.id))), c.env.opts.Store.FS.RemoveAll(c.paths.dir))
}

// makeFiles makes the directories of a container, its writable layer and its volumes.
func (s *Service) makeFiles(ctx context.Context, c *ctr, img *image.Image, lease *store.Lease, undo *undoer) error {
	if err := makeWritable(ctx, c, undo); err != nil {
		return err
	}
	fsys, volumes, sp := s.env.opts.Store.FS, s.env.opts.Volumes, &c.rec.Spec
	// The driver has synced the writable layer.
	if !c.rec.volatile() {
		if err := errors.Join(fsys.SyncDir(c.paths.dir), fsys.SyncDir(filepath.Dir(c.paths.dir))); err != nil {
			return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
		}
	}
	inherited, err := s.inheritMounts(sp.VolumesFrom)
	if err != nil {
		return err
	}
	for _, m := range inherited {
		lease.Layer(m.Chain) // of an image; the other container may be removed
	}
	images, err := mountedImages(ctx, s.env.opts.Images, sp, lease)
	if err != nil {
		return err
	}
	res, err := volumes.Resolve(ctx, volume.Request{
		Container: c.id, Binds: sp.Binds, Mounts: sp.Mounts, Tmpfs: sp.Tmpfs, Inherited: inherited, Anonymous: sp.Volumes, Images: images,
		ReadOnlyNonRecursive: sp.ReadOnlyNonRecursive,
	})
	if err != nil {
		return err
	}
	undo.add("volumes", func() error { volumes.Undo(context.WithoutCancel(ctx), c.id, res.Made); return nil })
	c.rec.Mounts = res.Mounts
	return s.fillRoot(ctx, c, img)
}

// makeWritable makes the directory of a container and its writable layer.
func makeWritable(ctx context.Context, c *ctr, undo *undoer) error {
	st := c.env.opts.Store
	if err := st.FS.Mkdir(c.paths.dir, 0o700); err != nil {
		return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	if err := st.FS.Mkdir(c.paths.writable, 0o711); err != nil {
		return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	if err := c.env.createWritable(ctx, c.paths.writable, c.rec.Chain, &c.rec.Spec); err != nil {
		return fmt.Errorf("container %s: writable layer: %w", c.id.Short(), err)
	}
	undo.add("writable layer", func() error { return st.Layers.RemoveWritable(context.WithoutCancel(ctx), c.paths.writable) })
	return nil
}

// writableSize returns the largest number of bytes that the writable layer of a container may take; 0 = no limit.
func (e *env) writableSize(sp *spec.Spec) (int64, error) {
	size, err := sp.WritableSize()
	if err == nil && size == 0 {
		size = e.opts.WritableSize
	}
	return size, err
}

// createWritable makes the writable layer of a container in dir, with its limit.
func (e *env) createWritable(ctx context.Context, dir string, chain oci.Chain, sp *spec.Spec) error {
	size, err := e.writableSize(sp)
	if err != nil {
		return err
	}
	drv := e.opts.Store.Layers
	if size > 0 {
		if err := canLimit(drv, dir); err != nil {
			return err
		}
	}
	if err := drv.CreateWritable(ctx, dir, chain); err != nil || size == 0 {
		return err
	}
	if err := drv.(layer.WritableLimiter).LimitWritable(dir, size); err != nil {
		return errors.Join(err, drv.RemoveWritable(context.WithoutCancel(ctx), dir))
	}
	return nil
}

// canLimit returns why the size of writables below dir cannot be limited.
func canLimit(drv layer.Driver, dir string) error {
	l, ok := drv.(layer.WritableLimiter)
	if !ok {
		return errs.New(errs.Precondition, "the storage driver %s cannot limit the size of a container's writable layer", drv.Name()).
			WithHint("The drivers erofs and overlay2 can, on XFS and on ext4 with project quotas.")
	}
	return l.CanLimit(dir)
}

// mountedImages returns the images that a container mounts, by the names in its mounts, and leases their layers.
func mountedImages(ctx context.Context, from Images, sp *spec.Spec, lease *store.Lease) (map[string]volume.Image, error) {
	images := map[string]volume.Image{}
	for _, m := range sp.Mounts {
		if _, known := images[m.Source]; known || m.Type != "image" || m.Source == "" {
			continue
		}
		img, err := from.Get(ctx, m.Source)
		if err != nil {
			return nil, err
		}
		lease.Layer(img.Config.RootFS.DiffIDs)
		images[m.Source] = volume.Image{ID: img.ID, Chain: img.Config.RootFS.DiffIDs}
	}
	return images, nil
}

// fillRoot makes the working directory in the root of a new container, and copies what the image has at the places of empty
// volumes into them. It mounts the root only where that is needed.
func (s *Service) fillRoot(ctx context.Context, c *ctr, img *image.Image) error {
	dir := c.rec.Spec.WorkingDir
	own := dir == img.Config.Config.WorkingDir
	_, found := s.env.workdirs.Load(img.ID)
	if found = dir == "" || dir == "/" || own && found; found && !slices.ContainsFunc(c.rec.Mounts, copiesUp) {
		return nil
	}
	return withRoot(ctx, c, func(root *os.File) (err error) {
		if !found {
			if found, err = makeDir(root, dir); err != nil {
				return err
			}
			if found && own {
				s.env.workdirs.Store(img.ID, nil)
			}
		}
		return s.populate(ctx, c, root)
	})
}

// withRoot calls f with the root of a container, mounted.
func withRoot(ctx context.Context, c *ctr, f func(root *os.File) error) (err error) {
	if err := c.root.Acquire(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.root.Release()) }()
	root, err := c.root.Open()
	if err != nil {
		return err
	}
	return errors.Join(f(root), root.Close())
}

// copiesUp reports whether a mount is that of a volume that gets the image's content if it is empty there.
func copiesUp(m volume.Mount) bool { return m.CopyUp }

// inheritMounts returns the mounts of --volumes-from.
func (s *Service) inheritMounts(from []string) ([]volume.Mount, error) {
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

// populate copies an image's content into volumes that are empty. root is the container's.
func (s *Service) populate(ctx context.Context, c *ctr, root *os.File) error {
	if !slices.ContainsFunc(c.rec.Mounts, copiesUp) {
		return nil
	}
	volumes := s.env.opts.Volumes
	filled := slices.DeleteFunc(slices.Clone(c.rec.Mounts), func(m volume.Mount) bool { return !copiesUp(m) })
	for i := range filled {
		filled[i].Subpath = "" // a directory in a volume need not be there before the start
	}
	if _, err := volumes.Prepare(ctx, c.id, filled); err != nil {
		return err
	}
	defer volumes.Release(c.id)
	for _, m := range c.rec.Mounts {
		if !copiesUp(m) {
			continue
		}
		src, err := safepath.Open(root, m.Target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // the image has no directory of that name
		}
		if err != nil {
			return fmt.Errorf("container %s: volume %s: %w", c.id.Short(), m.Target, err)
		}
		err = errors.Join(volumes.Populate(ctx, c.id, m, src), src.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// resolveModes fills in the namespace modes. It replaces the references in container:<ref> by IDs, so that renaming the
// other container later changes nothing. Only the container whose network is joined may be made later.
func (s *Service) resolveModes(id oci.ContainerID, sp *spec.Spec) error {
	for _, mode := range []*string{&sp.NetworkMode, &sp.PidMode, &sp.IpcMode} {
		if !isContainerMode(*mode) {
			continue
		}
		other, err := s.find(strings.TrimPrefix(*mode, containerMode))
		if mode == &sp.NetworkMode && errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		*mode = containerMode + string(other.id)
	}
	if sp.NetworkMode == "" || sp.NetworkMode == "default" {
		sp.NetworkMode = cmp.Or(s.env.live.Load().NetworkMode, "bridge")
	}
	if sp.IpcMode == "" {
		sp.IpcMode = s.env.live.Load().IpcMode
	}
	if sp.CgroupnsMode == "" && !sp.Privileged {
		sp.CgroupnsMode = s.env.live.Load().CgroupnsMode
	}
	if sp.NetworkDisabled {
		sp.NetworkMode = "none"
	}
	if err := s.env.resolveNetworks(sp); err != nil {
		return err
	}
	// Without a UTS namespace of its own the container has no name to set.
	if sp.Hostname == "" && sp.UTSMode != "host" && sp.NetworkMode != "host" && !isContainerMode(sp.NetworkMode) {
		sp.Hostname = id.Short()
	}
	return nil
}

const containerMode = "container:" // prefix of a mode that joins a namespace of another container

func isContainerMode(mode string) bool {
	return strings.HasPrefix(mode, containerMode) && len(mode) > len(containerMode)
}
