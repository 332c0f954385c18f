package container

import (
	"context"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/procid"
	"ply/internal/store/meta"
)

// lost is a container whose record is damaged. It keeps its ID and its name, so that it can be seen, and can only be removed.
// Its process, if it has one, runs on.
type lost struct {
	id   oci.ContainerID
	name string // "" = unknown
	err  error
}

// nameField finds the name in a damaged record. The first field of that name is the container's.
var nameField = regexp.MustCompile(`"name":"([a-zA-Z0-9][a-zA-Z0-9_.-]{0,254})"`)

// newLost returns the container of a record that cannot be decoded.
func newLost(tx *meta.Tx, id oci.ContainerID, cause error) *lost {
	l := &lost{id: id, err: cause}
	if raw, err := tx.Containers.Get(id); err == nil {
		if m := nameField.FindSubmatch(raw); m != nil {
			l.name = string(m[1])
		}
	}
	return l
}

// refusal returns the error of every operation on the container.
func (l *lost) refusal() error {
	return errs.New(errs.DataLoss, "%w", l.err).
		WithHint("Run ply system check --repair, or remove the container by force (rm -f).")
}

// snapshot returns what List shows.
func (l *lost) snapshot() *Container {
	name := l.name
	if name == "" {
		name = l.id.Short()
	}
	return &Container{
		ID: l.id, Name: name, State: State{Status: StatusDead, Error: l.err.Error()}, Damaged: l.refusal(), SizeRw: -1, SizeRootFs: -1,
	}
}

// lives reports whether the container's shim runs.
func (l *lost) lives(e *env) bool {
	who, err := shim.ReadIdentity(filepath.Join(e.newCtr(l.id).paths.bundle, shim.PidFile))
	return err == nil && procid.Alive(procid.ID(who))
}

// destroyLost ends what runs of a container whose record is damaged, and deletes the container. Volumes stay: which are its
// own is unknown.
func (s *Service) destroyLost(ctx context.Context, ref string) (err error) {
	l := s.env.index.claimLost(ref)
	if l == nil {
		return errs.New(errs.Conflict, "removal of container %s is already in progress", clip(ref))
	}
	defer func() { s.env.index.endClaim(l.id, err == nil) }()
	r := &restorer{env: s.env, runs: s.runs}
	if !oci.IsHex64(string(l.id)) { // the key of the record is damaged: it has no files
		return s.env.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Delete(l.id) })
	}
	c := s.env.newCtr(l.id)
	if who, idErr := shim.ReadIdentity(filepath.Join(c.paths.bundle, shim.PidFile)); idErr == nil && procid.Alive(procid.ID(who)) {
		if err := procid.Kill(procid.ID(who), unix.SIGKILL); err != nil && !errors.Is(err, procid.ErrGone) {
			return err
		}
		for procid.Alive(procid.ID(who)) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			time.Sleep(time.Millisecond) // a killed process is gone in a moment
		}
	}
	if err := s.env.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Containers.Delete(l.id) }); err != nil {
		return err
	}
	s.env.opts.Volumes.DropReferences(l.id)
	if err := r.sweepOne(context.WithoutCancel(ctx), l.id); err != nil {
		s.env.log.Error("files of a removed container are left", "container", l.id, "err", err)
	}
	return nil
}

// takeUp makes a container of a record that was damaged and is whole again, as a start does.
func (r *restorer) takeUp(ctx context.Context, id oci.ContainerID) error {
	var c *ctr
	err := r.env.opts.Store.Meta.View(func(tx *meta.Tx) (err error) {
		c, err = r.env.load(tx, id)
		return err
	})
	if err != nil {
		return err
	}
	if r.env.index.claimLost(string(id)) == nil {
		return errs.New(errs.Conflict, "container %s: it is being removed, or was taken up already", id.Short())
	}
	r.env.index.endClaim(id, true)
	r.env.index.add(c, c.rec.Name)
	r.env.opts.Volumes.DropReferences(id) // those to any volume
	r.env.opts.Volumes.AddReferences(id, volumeNames(c.rec.Mounts)...)
	return r.restore(ctx, c)
}

// findLost resolves a reference among the containers whose records are damaged; nil = none. The caller holds mu.
func (x *index) findLost(ref string) *lost {
	name := strings.TrimPrefix(ref, "/")
	var found *lost
	for id, l := range x.lost {
		if string(id) == ref || name != "" && l.name == name {
			return l
		}
		if ref != "" && strings.HasPrefix(string(id), ref) {
			found = l
		}
	}
	return found
}

// addLost makes a container with a damaged record known, and keeps its name taken.
func (x *index) addLost(l *lost) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lost[l.id] = l
	if _, taken := x.byName[l.name]; l.name != "" && !taken {
		x.byName[l.name] = l.id
	}
}

// allLost returns the containers whose records are damaged.
func (x *index) allLost() []*lost {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]*lost, 0, len(x.lost))
	for _, l := range x.lost {
		out = append(out, l)
	}
	return out
}

// claimLost lets one removal of a container with a damaged record begin; nil = another one has.
func (x *index) claimLost(ref string) *lost {
	x.mu.Lock()
	defer x.mu.Unlock()
	l := x.findLost(ref)
	if l == nil || x.removing[l.id] {
		return nil
	}
	x.removing[l.id] = true
	return l
}

// endClaim ends a removal; gone says to forget the container.
func (x *index) endClaim(id oci.ContainerID, gone bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.removing, id)
	if l := x.lost[id]; gone && l != nil {
		delete(x.lost, id)
		if x.byName[l.name] == id {
			delete(x.byName, l.name)
		}
	}
}
