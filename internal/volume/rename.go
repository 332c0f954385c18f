package volume

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"ply/internal/errs"
	"ply/internal/store/meta"
)

// renamingDir contains, below the root, the directories of volumes that are being renamed, as <old>/<new>.
const renamingDir = ".renaming"

// Rename gives a volume another name. Containers keep the names of their volumes, so the error's class is errs.Conflict while a container,
// running or not, refers to the volume. It is errs.Conflict too when the name is taken.
//
// A crash leaves the volume, with its data, under one of the two names: the directory waits below renamingDir, under both names, while the
// record changes, and New moves it to the one that has the record.
func (s Contents) Rename(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName(to); err != nil {
		return err
	}
	// Not while it is filled or examined.
	done, err := s.lockSlow(ctx, from)
	if err != nil {
		return err
	}
	defer done()
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.record(from)
	if err != nil {
		return err
	}
	if from == to {
		return errs.New(errs.Invalid, "rename %s: the volume has that name", from)
	}
	if err := s.free("rename "+from, to); err != nil {
		return err
	}
	if err := s.unused("rename", from); err != nil {
		return err
	}
	if _, err := s.opts.Store.FS.Lstat(filepath.Join(s.opts.Root, to)); err == nil {
		return errs.New(errs.Conflict, "rename %s: %s is there without a record of a volume", from, filepath.Join(s.opts.Root, to)).
			WithHint("Run ply system check --repair.")
	}
	if err := s.ensureData(from); err != nil {
		return err
	}
	rec.Anonymous = false // somebody has given it a name
	if err := s.rename(from, to, rec); err != nil {
		return errs.New(errs.Internal, "rename %s: %w", from, err)
	}
	s.publish("rename", to, map[string]string{"oldName": from})
	return nil
}

func (s Contents) rename(from, to string, rec meta.Volume) error {
	db := s.opts.Store.Meta
	m := renaming{trash{s.opts.Store.FS, db, s.opts.Root}, from, to}
	old, err := s.record(from)
	if err != nil {
		return err
	}
	if err := m.begin(); err != nil {
		return errors.Join(err, m.end(from))
	}
	change := func(from, to string, rec meta.Volume) error {
		return db.Update(func(tx *meta.Tx) error {
			return errors.Join(tx.Volumes.Delete(from), tx.Volumes.Put(to, rec))
		})
	}
	if err := change(from, to, rec); err != nil {
		return errors.Join(err, m.end(from))
	}
	if err := m.end(to); err != nil {
		return errors.Join(err, change(to, from, old), m.end(from))
	}
	// The copy of the record lies in the directory, which was not there the first time. The next start writes it too.
	if err := db.Update(func(tx *meta.Tx) error { return tx.Volumes.Put(to, rec) }); err != nil {
		s.log.Warn("the copy of a volume's record is missing", "volume", to, "err", err)
	}
	return nil
}

// renaming is the change of one volume's name.
type renaming struct {
	trash
	from, to string
}

func (m renaming) dir() string { return filepath.Join(m.root, renamingDir, m.from) }

// begin moves the volume's directory below renamingDir, durably, and removes the copy of the record in it, which has the old name.
func (m renaming) begin() error {
	if err := m.fsys.MkdirAll(m.dir(), 0o700); err != nil {
		return err
	}
	if err := errors.Join(m.fsys.SyncDir(m.root), m.fsys.SyncDir(filepath.Dir(m.dir()))); err != nil {
		return err
	}
	if err := m.fsys.Rename(filepath.Join(m.root, m.from), filepath.Join(m.dir(), m.to)); err != nil {
		return err
	}
	return errors.Join(m.fsys.SyncDir(m.root), m.fsys.SyncDir(m.dir()), ignoreNotExist(m.fsys.Remove(filepath.Join(m.dir(), m.to, "record.json"))))
}

// end moves the directory to a name if it is below renamingDir. That the move is durable does not matter: the next start repeats it.
func (m renaming) end(name string) error {
	err := ignoreNotExist(m.fsys.Rename(filepath.Join(m.dir(), m.to), filepath.Join(m.root, name)))
	if err == nil {
		for _, dir := range []string{m.dir(), filepath.Dir(m.dir())} {
			_ = m.fsys.Remove(dir) // another one may lie there; the next start removes what is empty
		}
	}
	return err
}

// finishRenames ends the renames that were interrupted: each directory gets the name that has a record. When neither has one, or the
// other name has a directory, it stays where it is.
func (t trash) finishRenames() error {
	dir := filepath.Join(t.root, renamingDir)
	olds, err := t.fsys.ReadDir(dir)
	if err != nil {
		return ignoreNotExist(err)
	}
	var all error
	for _, old := range olds {
		news, err := t.fsys.ReadDir(filepath.Join(dir, old.Name()))
		all = errors.Join(all, err)
		if len(news) == 0 && err == nil {
			all = errors.Join(all, t.fsys.Remove(filepath.Join(dir, old.Name())))
		}
		for _, n := range news {
			all = errors.Join(all, renaming{t, old.Name(), n.Name()}.finish())
		}
	}
	if len(olds) == 0 {
		return t.fsys.Remove(dir)
	}
	return all
}

func (m renaming) finish() error {
	var hasOld, hasNew bool
	err := m.meta.View(func(tx *meta.Tx) error {
		hasOld, hasNew = tx.Volumes.Has(m.from), tx.Volumes.Has(m.to)
		return nil
	})
	if err != nil {
		return err
	}
	at := m.from
	switch {
	case hasNew:
		at = m.to
	case !hasOld:
		return errs.New(errs.NotFound, "volume %s was being renamed to %s, and neither has a record: its data stays in %s", m.from, m.to, filepath.Join(m.dir(), m.to))
	}
	if _, err := m.fsys.Lstat(filepath.Join(m.root, at)); err == nil {
		return errs.New(errs.Conflict, "volume %s: its directory and %s both exist", at, filepath.Join(m.dir(), m.to))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return m.end(at)
}
