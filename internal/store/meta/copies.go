package meta

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
)

const (
	copyEvery   = 10 * time.Minute // while there are updates
	copyCommits = 256              // updates after which a copy does not wait for that time
	dayOld      = 24 * time.Hour
)

// copiesDir returns the directory of the copies of a database.
func copiesDir(path string) string { return filepath.Join(filepath.Dir(path), "copies") }

// dbCopy is one copy of the database.
type dbCopy struct {
	path string
	made time.Time
	gen  Generation // from the name; Database is not known
}

// listCopies returns the copies, newest first.
func listCopies(fsys durable.FS, path string) ([]dbCopy, error) {
	entries, err := fsys.ReadDir(copiesDir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []dbCopy
	for _, e := range entries {
		c := dbCopy{path: filepath.Join(copiesDir(path), e.Name())}
		if n, err := fmt.Sscanf(e.Name(), "%010d-%012d.db", &c.gen.Epoch, &c.gen.Commits); n != 2 || err != nil || e.Name() != copyName(c.gen) {
			continue
		}
		if fi, err := fsys.Lstat(c.path); err == nil && fi.Mode().IsRegular() {
			c.made = fi.ModTime()
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b dbCopy) int {
		switch {
		case a.gen.before(b.gen):
			return 1
		case b.gen.before(a.gen):
			return -1
		}
		return 0
	})
	return all, nil
}

func copyName(g Generation) string { return fmt.Sprintf("%010d-%012d.db", g.Epoch, g.Commits) }

// Copy makes a copy of the database, unless the newest copy has the same generation. The copy is durable and was read whole
// before an older one is deleted. No copy is made of a database with a damaged record: the older copies may have it whole.
func (db *DB) Copy() (err error) {
	db.copying.Lock()
	defer db.copying.Unlock()
	fsys, dir := db.mark.fs, copiesDir(db.path)
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := durable.RemoveTemps(fsys, dir); err != nil {
		return err
	}
	tmp := durable.TempName(dir)
	defer func() {
		if err != nil {
			err = errs.New(errs.Internal, "copy of the database: %w", err)
		}
		if rmErr := fsys.Remove(tmp); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}()
	var g Generation
	have := false
	err = db.run(db.bolt.View, func(tx *bbolt.Tx) (err error) {
		if g, err = generation(tx); err != nil {
			return err
		}
		if _, statErr := fsys.Lstat(filepath.Join(dir, copyName(g))); statErr == nil {
			have = true
			return nil
		}
		return writeCopy(fsys, dir, tmp, tx)
	})
	if err != nil || have {
		db.copied.Store(g.Commits)
		return err
	}
	if got, err := checkCopy(tmp); err != nil || got != g {
		return errors.Join(err, errs.New(errs.DataLoss, "it has the generation %v, not %v", got, g))
	}
	if err := durable.Rename(fsys, tmp, filepath.Join(dir, copyName(g))); err != nil {
		return err
	}
	db.copied.Store(g.Commits)
	return db.thin()
}

// writeCopy writes the database as tx sees it. It does not when that would take half of the space that is left.
func writeCopy(fsys durable.FS, dir, tmp string, tx *bbolt.Tx) (err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && tx.Size() > int64(st.Bavail)*st.Bsize/2 {
		return errs.New(errs.Precondition, "too little space is left on the disk")
	}
	f, err := fsys.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := tx.WriteTo(f); err != nil {
		return err
	}
	return f.Sync()
}

// checkCopy reads a whole copy: its structure, and every record.
func checkCopy(path string) (g Generation, err error) {
	db, err := openFile(path, Options{}, true)
	if err != nil {
		return g, err
	}
	err = db.run(db.bolt.View, func(tx *bbolt.Tx) error {
		var first error
		g, first = generation(tx)
		for _, t := range tables {
			b := open[string, map[string]json.RawMessage](tx, t, nil)
			for _, r := range b.All() {
				if first == nil {
					first = r.Err
				}
			}
		}
		return first
	})
	return g, errors.Join(err, db.bolt.Close())
}

// thin deletes surplus copies: the newest two stay, the newest that is a day old, and the oldest that is younger, which
// becomes that one. While there is a doubt, the copies from before it stay too.
func (db *DB) thin() error {
	all, err := listCopies(db.mark.fs, db.path)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	db.writing.Lock()
	doubted := db.gen.Doubted
	db.writing.Unlock()
	daily := false
	for i, c := range all {
		old := time.Since(c.made) >= dayOld
		lastYoung := !old && (i+1 == len(all) || time.Since(all[i+1].made) >= dayOld)
		if i < 2 || lastYoung || old && !daily || c.gen.Epoch < doubted {
			keep[c.path] = true
		}
		daily = daily || old
	}
	for _, c := range all {
		if !keep[c.path] {
			err = errors.Join(err, db.mark.fs.Remove(c.path))
		}
	}
	return err
}

// KeepCopies makes a copy now, and later whenever enough has changed, until ctx ends; Close makes one too then. failed is
// called with each error.
func (db *DB) KeepCopies(ctx context.Context, failed func(error)) {
	db.keeps.Store(true)
	t := time.NewTicker(copyEvery)
	defer t.Stop()
	for {
		if db.commits.Load() != db.copied.Load() {
			if err := db.Copy(); err != nil {
				failed(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-db.many:
		}
	}
}

// takeCopy puts a copy in the place of the database, which is not there any more.
func takeCopy(fsys durable.FS, from, path string) (err error) {
	src, err := fsys.OpenFile(from, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	tmp := durable.TempName(filepath.Dir(path))
	dst, err := fsys.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = fsys.Remove(tmp) // the next start removes what stays
		}
	}()
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return durable.Rename(fsys, tmp, path)
}
