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

// Remove deletes a volume and its data. Errors: NotFound (nil with force), Conflict while a container refers to it.
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
	// The record is gone and the directory renamed: what is left is a temporary that start-up deletes too.
	if err := s.opts.Store.FS.RemoveAll(tmp); err != nil {
		return errs.New(errs.Internal, "remove %s: %w", name, err)
	}
	return nil
}

// unlink deletes the record and renames the directory away, both under mu, so that a volume of that name made
// in the next moment has nothing in common with this one.
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
	err = s.opts.Store.FS.Rename(dir, tmp)
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
	s.opts.publishPrune(reclaimed)
	return names, reclaimed, nil
}

// RemoveAnonymous removes those of the named volumes that are anonymous and that nobody refers to any more, as
// `rm -v` and `run --rm` do. What cannot be removed is logged: the container is gone already.
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
