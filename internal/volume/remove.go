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
	"ply/internal/store/meta"
)

// Remove deletes a volume and its data. The error's class is errs.NotFound when there is none, which force ignores, and
// errs.Conflict while a container refers to it.
func (s *Service) Remove(ctx context.Context, name string, force bool) error {
	err := s.remove(ctx, name)
	if force && errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (s *Service) remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	tmp, err := s.unlink(name)
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

// unlink deletes the record and renames the directory to a temporary, whose name it returns. It holds mu, so a volume of
// that name that is made afterwards has nothing in common with this one. The rename is durable before the caller deletes
// data: after a crash a later volume of that name would otherwise find a part of it.
func (s *Service) unlink(name string) (tmp string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.record(name); err != nil {
		return "", err
	}
	if ids := s.users(name); len(ids) > 0 {
		return "", errs.New(errs.Conflict, "remove %s: volume is in use - [%s]", name, strings.Join(ids, ", "))
	}
	dir := filepath.Join(s.opts.Root, name)
	if mounted(s.path(name)) {
		return "", errs.New(errs.Conflict, "remove %s: volume is still mounted at %s", name, s.path(name)).
			WithHint("Unmount it and try again.")
	}
	err = s.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Volumes.Delete(name) })
	if err != nil {
		return "", errs.New(errs.Internal, "remove %s: record: %w", name, err)
	}
	s.publish("destroy", name, nil)
	tmp = durable.TempName(s.opts.Root)
	err = durable.Rename(s.opts.Store.FS, dir, tmp)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", errs.New(errs.Internal, "remove %s: %w", name, err)
	}
	return tmp, nil
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
		if v.RefCount > 0 || !v.Anonymous && !filters.Has("all") || !match(v) {
			continue
		}
		size, sizeErr := s.Size(ctx, v.Name)
		if sizeErr != nil {
			size = 0
		}
		if err := s.remove(ctx, v.Name); err != nil {
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
		if err := s.remove(ctx, n); err != nil && !errors.Is(err, errs.Conflict) && !errors.Is(err, errs.NotFound) {
			s.log.Warn("anonymous volume stays", "volume", n, "err", err)
		}
	}
}
