package volume

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Remove deletes a volume and its data. The error's class is errs.NotFound when there is none, which force ignores,
// errs.Conflict while a container refers to it or may do so, and errs.DataLoss when its record is damaged, which force
// ignores too.
func (s *Service) Remove(ctx context.Context, name string, force bool) error {
	err := s.remove(ctx, name, force)
	if force && errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (s *Service) remove(ctx context.Context, name string, force bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tmp, err := s.unlink(name, force)
	if err != nil {
		return err
	}
	if tmp == "" {
		return nil
	}
	// The record is gone and the directory is a temporary, which New deletes when this is interrupted.
	if err := s.opts.Store.FS.RemoveAll(tmp); err != nil {
		return errs.New(errs.Internal, "remove %s: %w", name, err)
	}
	return nil
}

// removingDir contains, below the root, the directories of volumes that are being removed, by the names of the volumes.
const removingDir = ".removing"

// trash moves the directories of volumes that are being removed. root is that of the volumes.
type trash struct {
	fsys durable.FS
	meta *meta.DB
	root string
}

// unlink deletes the record and renames the directory to a temporary, whose name it returns. It holds mu, so a volume of
// that name that is made afterwards has nothing in common with this one.
//
// The directory leaves its name, durably, before the record is deleted. If the engine ends in between, New puts it back. In the
// opposite order, an end in between would leave a directory without a record, and a later volume of that name would have its data.
func (s *Service) unlink(name string, force bool) (tmp string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.record(name); err != nil && !(force && errors.Is(err, errs.DataLoss)) {
		return "", err
	}
	if err := s.unused("remove", name); err != nil {
		return "", err
	}
	away := trash{s.opts.Store.FS, s.opts.Store.Meta, s.opts.Root}
	moved, err := away.move(name)
	if err == nil {
		err = s.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Volumes.Delete(name) })
	}
	if err != nil {
		if moved {
			err = errors.Join(err, away.restore(name))
		}
		return "", errs.New(errs.Internal, "remove %s: %w", name, err)
	}
	s.publish("destroy", name, nil)
	if !moved {
		return "", nil
	}
	if tmp, err = away.release(name); err != nil {
		return "", errs.New(errs.Internal, "remove %s: %w", name, err)
	}
	return tmp, nil
}

// unused returns an error while a container refers to a volume or may do so, and while something is mounted on it. verb is what is to
// be done to it. The caller holds mu.
func (s *Service) unused(verb, name string) error {
	for id := range s.references[AnyVolume] {
		return errs.New(errs.Conflict, "%s %s: the record of container %s is damaged, and it may use the volume", verb, name, oci.ContainerID(id).Short()).
			WithHint("Run ply system check --repair, or remove that container by force (rm -f).")
	}
	if ids := s.users(name); len(ids) > 0 {
		return errs.New(errs.Conflict, "%s %s: volume is in use - [%s]", verb, name, strings.Join(ids, ", "))
	}
	if mounted(s.path(name)) {
		return errs.New(errs.Conflict, "%s %s: volume is still mounted at %s", verb, name, s.path(name)).
			WithHint("Unmount it and try again.")
	}
	return nil
}

func (t trash) path(name string) string { return filepath.Join(t.root, removingDir, name) }

// move moves the directory of a volume below removingDir, durably when it returns without an error. It reports whether the
// directory was moved; a volume may have none.
func (t trash) move(name string) (moved bool, err error) {
	// An earlier removal that failed may have left a directory there.
	if err := ignoreNotExist(t.fsys.Rename(t.path(name), durable.TempName(t.root))); err != nil {
		return false, err
	}
	if err := t.fsys.Rename(filepath.Join(t.root, name), t.path(name)); err != nil {
		return false, ignoreNotExist(err)
	}
	return true, errors.Join(t.fsys.SyncDir(t.root), t.fsys.SyncDir(filepath.Join(t.root, removingDir)))
}

// restore undoes move.
func (t trash) restore(name string) error {
	return durable.Rename(t.fsys, t.path(name), filepath.Join(t.root, name))
}

// release makes the directory of a volume a temporary, whose name it returns, so that its name below removingDir is free for the
// next removal. The rename is not durable: a start deletes what it finds under either name.
func (t trash) release(name string) (tmp string, err error) {
	tmp = durable.TempName(t.root)
	if err := t.fsys.Rename(t.path(name), tmp); err != nil {
		return "", errors.Join(err, t.fsys.RemoveAll(t.path(name)))
	}
	return tmp, nil
}

// temporaries removes those that a crash has left, also in the directories of volumes, where copies of records are written.
func (t trash) temporaries() error {
	err := durable.RemoveTemps(t.fsys, t.root)
	entries, readErr := t.fsys.ReadDir(t.root)
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, durable.RemoveTemps(t.fsys, filepath.Join(t.root, e.Name())))
		}
	}
	return errors.Join(err, readErr)
}

// finish ends the removals that were interrupted: a volume that still has its record gets its directory back, and the directories
// of the others are deleted. While the database is in doubt, nothing is deleted: a record may be missing.
func (t trash) finish() error {
	entries, err := t.fsys.ReadDir(filepath.Join(t.root, removingDir))
	if err != nil {
		return err
	}
	var all error
	for _, e := range entries {
		has := false // damaged or not
		err := t.meta.View(func(tx *meta.Tx) error {
			has = tx.Volumes.Has(e.Name())
			return nil
		})
		switch {
		case err != nil:
		case !has && t.meta.Doubt() != "":
		case !has:
			err = t.fsys.RemoveAll(t.path(e.Name()))
		default:
			if _, err = t.fsys.Lstat(filepath.Join(t.root, e.Name())); err == nil {
				err = errs.New(errs.Conflict, "volume %s: its directory and %s both exist", e.Name(), t.path(e.Name()))
			} else if errors.Is(err, fs.ErrNotExist) {
				err = t.restore(e.Name())
			}
		}
		all = errors.Join(all, err)
	}
	return all
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Prune removes volumes that no container refers to: anonymous ones, or all with the filter all=true. PruneFilters lists the
// filters. It returns the names of what was removed and how many bytes became free.
func (s *Service) Prune(ctx context.Context, filters filter.Args) (names []string, reclaimed int64, err error) {
	match, err := PruneFilters.Compile(filters)
	if err != nil {
		return nil, 0, err
	}
	vols, err := s.List(ctx, nil)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range vols {
		if ctx.Err() != nil {
			return names, reclaimed, ctx.Err()
		}
		if v.Damaged != nil || v.RefCount > 0 || !v.Anonymous && !filters.Has("all") || !match(v) {
			continue
		}
		size, sizeErr := s.Size(ctx, v.Name)
		if sizeErr != nil {
			size = 0
		}
		if err := s.remove(ctx, v.Name, false); err != nil {
			if !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) {
				s.log.Warn("prune: volume stays", "volume", v.Name, "err", err)
			}
			continue
		}
		names = append(names, v.Name)
		reclaimed += size
	}
	s.publishPrune(reclaimed)
	return names, reclaimed, nil
}

// RemoveAnonymous removes those of the named volumes that are anonymous and to which no container refers any more, as
// `rm -v` and `run --rm` do. It logs what it cannot remove, because the container is removed already.
func (s *Service) RemoveAnonymous(ctx context.Context, names []string) {
	for _, n := range names {
		rec, err := s.record(n)
		if err != nil || !rec.Anonymous {
			continue
		}
		if err := s.remove(ctx, n, false); err != nil && !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) {
			s.log.Warn("anonymous volume stays", "volume", n, "err", err)
		}
	}
}
