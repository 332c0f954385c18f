package meta

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/durable"
	"ply/internal/errs"
)

// Open opens the database, or creates it when the data root is new. A database that is damaged, missing, empty or of another
// root is replaced by the newest good copy, or by a new one; the file itself is kept under another name. When the records may
// then be incomplete, or when the database does not fit the mark of the data root, there is a Doubt.
//
// The error's class is errs.Unavailable when another process has it open, and errs.Precondition when a newer release wrote
// the database or one of its records. A database that Open refuses is not changed.
func Open(path string, opts Options) (*DB, error) {
	o := &opener{path: path, opts: opts, fs: opts.FS}
	if o.fs == nil {
		o.fs = durable.OS
	}
	return o.open()
}

// opener is one Open.
type opener struct {
	path     string
	opts     Options
	fs       durable.FS
	mark     *mark // nil = none
	occupied bool
	notices  []string
	doubt    string // that this Open has found
}

func (o *opener) note(format string, args ...any) {
	o.notices = append(o.notices, fmt.Sprintf(format, args...))
}

func (o *opener) open() (*DB, error) {
	var err error
	o.mark, err = readMark(o.fs, o.path)
	if errors.Is(err, errs.Precondition) {
		return nil, err
	}
	damagedMark := err != nil
	if damagedMark {
		o.mark = nil
	}
	if o.opts.Occupied != nil {
		if o.occupied, err = o.opts.Occupied(); err != nil {
			return nil, err
		}
	}
	db, g, err := o.current()
	if err != nil {
		return nil, err
	}
	if db == nil {
		if db, g, err = o.fallBack(); err != nil {
			return nil, err
		}
	}
	if damagedMark && g.Database != "" && len(o.notices) == 0 {
		o.doubt = "the mark of the data root is damaged, so the database may be older"
	}
	begin := func() error {
		if o.opts.Before != nil {
			if err := o.opts.Before(); err != nil {
				return err
			}
		}
		return o.begin(db, g)
	}
	if err := begin(); err != nil {
		return nil, errors.Join(err, db.mark.close(), db.bolt.Close())
	}
	return db, nil
}

// current opens the database that is there. It returns nil when another one has to be taken; what is there is then set
// aside.
func (o *opener) current() (*DB, Generation, error) {
	var none Generation
	fi, err := o.fs.Lstat(o.path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return nil, none, err
	}
	if missing || fi.Size() == 0 {
		copies, err := listCopies(o.fs, o.path)
		if err != nil {
			return nil, none, err
		}
		if !o.occupied && len(copies) == 0 {
			return o.create() // the root is new, or its first start was interrupted
		}
		if missing {
			o.doubt = "the database is missing"
			return nil, none, nil
		}
		return nil, none, o.reject("the database is empty")
	}
	db, err := openFile(o.path, o.opts, false)
	if isDamage(err) {
		return nil, none, o.reject(fmt.Sprintf("the database is damaged: %v", err))
	}
	if err != nil {
		return nil, none, err
	}
	g, err := db.read()
	if err != nil {
		return nil, none, errors.Join(o.reject(fmt.Sprintf("the database is damaged: %v", err)), db.bolt.Close())
	}
	wrong, foreign, older := o.mark.fits(g, o.occupied)
	if older && !foreign {
		foreign = o.newerCopy(g)
	}
	if foreign {
		return nil, none, errors.Join(db.bolt.Close(), o.reject(wrong))
	}
	o.doubt = wrong
	return db, g, nil
}

// isDamage reports whether the content of the file is what keeps it from being opened, and not the system.
func isDamage(err error) bool {
	var errno syscall.Errno
	return errors.Is(err, errs.DataLoss) && !errors.As(err, &errno)
}

// reject sets the database aside because something is wrong with it.
func (o *opener) reject(wrong string) error {
	to, err := setAside(o.fs, o.path, time.Now().UTC().Format("20060102T150405"))
	if err != nil {
		return errs.New(errs.DataLoss, "database %s: %s; it cannot be set aside: %w", o.path, wrong, err)
	}
	o.doubt = wrong
	o.note("%s; it is kept as %s", wrong, to)
	return nil
}

// newerCopy reports whether a good copy is newer than the database that is there.
func (o *opener) newerCopy(g Generation) bool {
	copies, err := listCopies(o.fs, o.path)
	if err != nil || len(copies) == 0 || !g.before(copies[0].gen) {
		return false
	}
	for _, c := range copies {
		if g.before(c.gen) && o.usable(c) == nil {
			return true
		}
	}
	return false
}

// usable reads a copy whole. The error says why it cannot be taken.
func (o *opener) usable(c dbCopy) error {
	g, err := checkCopy(c.path)
	if err == nil && o.mark != nil && g.Database != o.mark.Database {
		err = errs.New(errs.DataLoss, "it belongs to another data root")
	}
	return err
}

// fallBack takes the newest good copy, or creates a database. Nothing is at the path.
func (o *opener) fallBack() (*DB, Generation, error) {
	copies, err := listCopies(o.fs, o.path)
	if err != nil {
		return nil, Generation{}, err
	}
	for _, c := range copies {
		if err := o.usable(c); err != nil {
			o.note("the copy %s is not used: %v", filepath.Base(c.path), err)
			continue
		}
		if err := takeCopy(o.fs, c.path, o.path); err != nil {
			return nil, Generation{}, errs.New(errs.Internal, "database %s: %s; copy %s: %w", o.path, o.doubt, c.path, err)
		}
		db, err := openFile(o.path, o.opts, false)
		if err != nil {
			return nil, Generation{}, err
		}
		g, err := db.read()
		if err != nil {
			return nil, g, errors.Join(err, db.bolt.Close())
		}
		if o.mark.is(g) {
			o.note("%s; the copy %s, which has the newest records, was taken", o.doubt, filepath.Base(c.path))
			o.doubt = ""
		} else {
			o.note("%s; the copy %s was taken, which may lack the newest records", o.doubt, filepath.Base(c.path))
		}
		return db, g, nil
	}
	o.note("%s; there is no good copy, so a new database was made", o.doubt)
	db, g, err := o.create()
	if !o.occupied {
		o.doubt = "" // nothing is there that the records could lack
	}
	return db, g, err
}

func (o *opener) create() (*DB, Generation, error) {
	db, err := openFile(o.path, o.opts, false)
	if err != nil {
		return nil, Generation{}, err
	}
	return db, Generation{}, nil
}

// begin begins an epoch. The mark is durable before the first update of it. A doubt is durable before the mark, so that a
// crash between them does not lose it: the database is then younger than the mark.
func (o *opener) begin(db *DB, g Generation) error {
	db.mark.fs, db.mark.path, db.committed, db.notices = o.fs, o.path, o.opts.Committed, o.notices
	db.many = make(chan struct{}, 1)
	if err := durable.RemoveTemps(o.fs, filepath.Dir(o.path)); err != nil {
		return err
	}
	if err := db.create(); err != nil {
		return err
	}
	made := g.Database == ""
	g, err := db.read()
	if err != nil {
		return err
	}
	now := o.doubt != ""
	if made && o.mark != nil {
		g.Database, now = o.mark.Database, true // the copies go on
	}
	if now && o.mark != nil {
		g.Epoch = max(g.Epoch, o.mark.Epoch)
	}
	db.epoch = g.Epoch + 1
	if now && g.Doubt == "" {
		g.Doubt, g.Doubted = o.doubt, db.epoch
	}
	db.gen = g
	if g.Doubt != "" {
		db.doubt.Store(&g.Doubt)
	}
	if now {
		if err := db.update(func(*bbolt.Tx, *[]Change) error { return nil }); err != nil {
			return err
		}
	}
	db.commits.Store(db.gen.Commits)
	return db.mark.set(mark{db.gen.Database, db.epoch, db.gen.Commits, false})
}

// read reads the generation.
func (db *DB) read() (g Generation, err error) {
	err = db.run(db.bolt.View, func(tx *bbolt.Tx) (err error) {
		g, err = generation(tx)
		return err
	})
	return g, err
}

// Doubt returns why the records may be incomplete; "" = they are not. While there is a doubt, nothing may be deleted because
// no record refers to it. It outlives Close, and ends with Trust.
func (db *DB) Doubt() string {
	if d := db.doubt.Load(); d != nil {
		return *d
	}
	return ""
}

// Notices says what Open has done about a database that it could not use.
func (db *DB) Notices() []string { return db.notices }

// Trust ends the doubt: what no record refers to may be deleted again.
func (db *DB) Trust() error {
	if db.Doubt() == "" {
		return nil
	}
	db.writing.Lock()
	was := db.gen
	db.gen.Doubt, db.gen.Doubted = "", 0
	db.writing.Unlock()
	if err := db.update(func(*bbolt.Tx, *[]Change) error { return nil }); err != nil {
		db.writing.Lock()
		db.gen.Doubt, db.gen.Doubted = was.Doubt, was.Doubted
		db.writing.Unlock()
		return err
	}
	db.doubt.Store(nil)
	return nil
}
