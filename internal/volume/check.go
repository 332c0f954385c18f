package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/store/check"
	"ply/internal/store/meta"
)

// Checker examines the volumes of a service.
type Checker struct{ *Service }

// Check compares the records of the volumes with their directories, and both with what is mounted.
func (s Checker) Check(ctx context.Context, r *check.Run) error {
	var names []string
	err := s.opts.Store.Meta.View(func(tx *meta.Tx) error {
		names = slices.Collect(tx.Volumes.Keys())
		return nil
	})
	if err != nil {
		return err
	}
	r.Checked("volume", len(names))
	entries, err := s.opts.Store.FS.ReadDir(s.opts.Root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !durable.IsTemp(e.Name()) && nameRE.MatchString(e.Name()) && !slices.Contains(names, e.Name()) {
			names = append(names, e.Name())
		}
	}
	part := r.Part("volumes", int64(len(names)), false)
	for _, name := range names {
		if err := s.checkOne(ctx, r, name); err != nil {
			return err
		}
		part.Add(1)
	}
	return nil
}

// slowWait is how long the examination of a volume waits until it is filled or mounted.
const slowWait = 10 * time.Second

// checkOne examines one volume while nothing creates, removes or mounts it.
func (s Checker) checkOne(ctx context.Context, r *check.Run, name string) error {
	wait, cancel := context.WithTimeout(ctx, slowWait)
	defer cancel()
	done, err := s.lockSlow(wait, name)
	if err != nil {
		return context.Cause(ctx) // nil when only the wait has ended: the volume is in use
	}
	defer done()
	s.mu.Lock()
	rec, err := s.record(name)
	users, active := s.users(name), len(s.active[name])
	data := s.hasData(name)
	empty := data && s.isEmpty(name)
	s.mu.Unlock()
	f := check.Finding{Kind: "volume", Object: name}
	switch {
	case errors.Is(err, errs.NotFound) && (!data || empty):
		return nil // removed meanwhile, or a crash has interrupted its creation: no data is lost
	case errors.Is(err, errs.NotFound):
		f.Problem = "its data is in " + s.path(name) + ", and it has no record"
		r.Mend(f, func() (string, error) { return "recorded again; its labels and options are lost", s.writeRecord(name) })
	case err != nil && data:
		f.Kind, f.Problem = "volume record", err.Error()
		r.Mend(f, func() (string, error) {
			return "written again; its labels and options are lost, its data was kept", s.writeRecord(name)
		})
	case err != nil:
		f.Kind, f.Problem, f.Heal = "volume record", err.Error(), "ply volume rm -f "+name
		r.Mend(f, func() (string, error) { return s.dropRecord(name, users) })
	case !data:
		f.Problem, f.Heal = "its data directory "+s.path(name)+" is missing", "restore it from a backup, or use it empty or remove it: "+check.Repairs
		r.Mend(f, func() (string, error) { return s.dropRecord(name, users) })
	case !r.Offline && len(rec.Options) > 0 && active == 0 && mounted(s.path(name)):
		f.Kind, f.Problem, f.Heal = "mount", "its device is mounted, and no running container needs it", "umount "+s.path(name)
		r.Report(f)
	}
	return nil
}

// hasData reports whether the directory of a volume's content exists. The caller holds mu.
func (s Checker) hasData(name string) bool {
	fi, err := s.opts.Store.FS.Lstat(s.path(name))
	return err == nil && fi.IsDir()
}

// isEmpty reports whether a volume has no content. The caller holds mu.
func (s Checker) isEmpty(name string) bool {
	entries, err := s.opts.Store.FS.ReadDir(s.path(name))
	return err == nil && len(entries) == 0
}

// writeRecord records a volume whose data is there.
func (s Checker) writeRecord(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fi, err := s.opts.Store.FS.Lstat(s.path(name))
	if err != nil {
		return err
	}
	return s.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if _, err := tx.Volumes.Get(name); err == nil {
			return nil // it was recorded meanwhile
		}
		return tx.Volumes.Put(name, meta.Volume{Driver: "local", Created: fi.ModTime().UTC()})
	})
}

// dropRecord deletes the record of a volume without data. When a container needs the volume, it gets an empty directory instead.
func (s Checker) dropRecord(name string, users []string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hasData(name) {
		return "the data is there now", nil
	}
	if fi, err := s.opts.Store.FS.Lstat(s.path(name)); err == nil {
		return "", fmt.Errorf("%s is there and is no directory (%s): move it away", filepath.Join(name, dataDir), fi.Mode().Type())
	}
	if len(users) == 0 {
		return "record deleted: the data is gone, and no container uses the volume", s.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Volumes.Delete(name) })
	}
	if err := s.makeData(name); err != nil {
		return "", err
	}
	err := s.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if _, err := tx.Volumes.Get(name); err == nil {
			return nil
		}
		return tx.Volumes.Put(name, meta.Volume{Driver: "local"})
	})
	return "is empty now: its data is gone, and containers use it", err
}
