package container

import (
	"context"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/logfile"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/volume"
)

// Adopter makes containers that another engine had. Safe for concurrent use.
type Adopter struct{ s *Service }

// NewAdopter returns the adopter of the containers of s.
func NewAdopter(s *Service) *Adopter { return &Adopter{s} }

// AdoptOptions are a container of another engine, which does not run.
type AdoptOptions struct {
	ID      oci.ContainerID
	Image   oci.ImageID
	Created time.Time
	State   State
	Stopped bool      // by a user
	Spec    spec.Spec // complete: nothing is taken from the image; Image is the name as the user wrote it
	Mounts  []AdoptedMount
	// Networks are the names of the networks that it is connected to, if it has networks of its own.
	Networks []string
	// Fill changes the container's root, which has the files of the image.
	Fill func(ctx context.Context, root *os.File) error
	// Files are the files hostname, hosts and resolv.conf, as far as they are known, and the log under the name "log", with its rotated files as "log.1",
	// "log.2.gz" and so on. The caller closes them.
	Files map[string]*os.File
}

// AdoptedMount is a mount of a container of another engine. The volumes and images that mounts name are there.
type AdoptedMount struct {
	volume.MountSpec
	Mode      string // what is written after the second colon of -v
	Anonymous bool   // of a volume: rm -v removes it
}

// Adopt makes the container, with its ID and its files. The record is written last: after an error or a crash nothing of it remains. Errors:
// errs.Exists when there is a container of that ID, errs.Conflict for a name in use, errs.Invalid for a spec that cannot run.
func (a *Adopter) Adopt(ctx context.Context, o AdoptOptions) (err error) {
	s := a.s
	if !oci.IsHex64(string(o.ID)) {
		return invalid("container %q: not an ID", clip(string(o.ID)))
	}
	if s.env.index.known()[o.ID] || (&restorer{env: s.env}).damaged(o.ID) {
		return errs.New(errs.Exists, "container %s is here already", o.ID.Short())
	}
	img, err := s.env.opts.Images.Get(ctx, string(o.Image))
	if err != nil {
		return err
	}
	lease := s.env.opts.Store.Lease()
	defer lease.Release()
	lease.Layer(img.Config.RootFS.DiffIDs)
	sp := o.Spec
	sp.AutoRemove = false // its writable layer is synced, as all of them
	if err := a.check(o.ID, &sp); err != nil {
		return err
	}
	c := s.env.newCtr(o.ID)
	if sp.Name, err = s.env.index.reserve(c.id, sp.Name); err != nil {
		return err
	}
	undo := &undoer{log: s.env.log}
	defer func() {
		if err != nil {
			undo.all()
			s.env.index.remove(c.id, sp.Name)
			err = errors.Join(err, c.removeDirs())
		}
	}()
	r := s.newRecord(c, sp, img)
	r.Created, r.State, r.Stopped = o.Created.UTC(), o.State, o.Stopped
	if !sharesNetwork(sp.NetworkMode) && len(o.Networks) > 0 {
		r.Networks = map[string]network.Endpoint{}
		for _, n := range o.Networks {
			r.Networks[n] = network.Endpoint{Network: n}
		}
	}
	c.setRecord(r)
	if err := a.makeFiles(ctx, c, o, lease, undo); err != nil {
		return err
	}
	if err := c.saveNew(); err != nil {
		return err
	}
	s.env.index.add(c, "")
	c.publish("create")
	return nil
}

// check refuses what Create refuses, and resolves the references to other containers and to networks.
func (a *Adopter) check(id oci.ContainerID, sp *spec.Spec) error {
	if _, err := sp.Check(); err != nil {
		return err
	}
	if _, err := session.LogConfig(sp.LogDriver, sp.LogOpts); sp.LogDriver != logfile.None && err != nil {
		return err
	}
	if _, err := a.s.env.runtimePath(sp.Runtime); err != nil {
		return err
	}
	return a.s.resolveModes(id, sp)
}

// makeFiles makes the files of a container and syncs them.
func (a *Adopter) makeFiles(ctx context.Context, c *ctr, o AdoptOptions, lease *store.Lease, undo *undoer) error {
	fsys := a.s.env.opts.Store.FS
	// What an import that was killed has left is of no use: the start of plyd, which removes it, may have kept it because of a doubt.
	if err := (&restorer{env: a.s.env}).sweepOne(ctx, c.id); err != nil {
		return err
	}
	if err := makeWritable(ctx, c, undo); err != nil {
		return err
	}
	if err := a.mounts(ctx, c, o, lease, undo); err != nil {
		return err
	}
	if o.Fill != nil {
		err := withRoot(ctx, c, func(root *os.File) error { return o.Fill(ctx, root) })
		if size, _ := a.s.env.writableSize(&c.rec.Spec); size > 0 && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
			// Not wrapped: the disk need not be full.
			err = errs.New(errs.Precondition, "container %s: its files need more room than there is, where its writable layer may take %d bytes: %v", c.id.Short(), size, err)
		}
		if err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Files)) {
		if err := adoptFile(ctx, c, name, o.Files[name]); err != nil {
			return err
		}
	}
	if err := fsys.SyncFS(c.paths.dir); err != nil {
		return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	return fsys.SyncDir(filepath.Dir(c.paths.dir))
}

// mounts resolves the mounts of a container and adds its references to volumes.
func (a *Adopter) mounts(ctx context.Context, c *ctr, o AdoptOptions, lease *store.Lease, undo *undoer) error {
	volumes := a.s.env.opts.Volumes
	sp := &spec.Spec{}
	shown := map[string]AdoptedMount{}
	for _, m := range o.Mounts {
		shown[m.Target] = m
		m.NoCopy = m.Type == "volume"     // its content came with it
		m.CreateSource = m.Type == "bind" // a source that is missing matters at the start
		sp.Mounts = append(sp.Mounts, m.MountSpec)
	}
	images, err := mountedImages(ctx, a.s.env.opts.Images, sp, lease)
	if err != nil {
		return err
	}
	res, err := volumes.Resolve(ctx, volume.Request{Container: c.id, Mounts: sp.Mounts, Tmpfs: c.rec.Spec.Tmpfs, Images: images})
	if err != nil {
		return err
	}
	undo.add("volumes", func() error { volumes.Undo(context.WithoutCancel(ctx), c.id, res.Made); return nil })
	for i := range res.Mounts {
		if m, ok := shown[res.Mounts[i].Target]; ok {
			res.Mounts[i].Mode, res.Mounts[i].Anonymous, res.Mounts[i].CreateSource = m.Mode, m.Anonymous, m.CreateSource
		}
	}
	c.rec.Mounts = res.Mounts
	return nil
}

var rotatedLog = regexp.MustCompile(`^log(\.[1-9][0-9]*(\.gz)?)?$`)

// maxHostFile bounds the files hostname, hosts and resolv.conf, in bytes.
const maxHostFile = 1 << 20

// adoptFile copies one of AdoptOptions.Files.
func adoptFile(ctx context.Context, c *ctr, name string, from *os.File) (err error) {
	to, limit := "", int64(maxHostFile)
	switch {
	case name == "hostname":
		to = c.paths.hostname
	case name == "hosts":
		to = c.paths.hosts
	case name == "resolv.conf":
		to = c.paths.resolv
	case rotatedLog.MatchString(name):
		if c.rec.LogPath == "" {
			return nil
		}
		to, limit = c.paths.log+name[len("log"):], math.MaxInt64
	default:
		return errs.New(errs.Internal, "container %s: file %q is none of a container", c.id.Short(), name)
	}
	mode := os.FileMode(0o644)
	if limit > maxHostFile {
		mode = 0o640
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return errs.New(errs.Internal, "container %s: %w", c.id.Short(), err)
	}
	defer errs.Close(&err, out)
	st, err := from.Stat()
	if err != nil {
		return errs.New(errs.Internal, "container %s: %s: %w", c.id.Short(), name, err)
	}
	if st.Size() > limit {
		return errs.New(errs.Invalid, "container %s: %s has more than %d bytes", c.id.Short(), name, limit)
	}
	// A log that was emptied while docker wrote on has a hole at its start.
	if err := durable.CopySparse(ctx, out, from, st.Size()); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return errs.New(errs.Internal, "container %s: %s: %w", c.id.Short(), name, err)
	}
	return nil
}
