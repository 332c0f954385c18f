package meta

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"go.etcd.io/bbolt"

	"ply/internal/errs"
)

// damage is the panic value with which the methods of Bucket leave the function of a transaction when bbolt panics below
// them, or when a part of the mapped file cannot be read. View and Update return it as an error.
type damage struct{ cause any }

// onBolt calls f, which works on bbolt's structures or memory, and turns its panics into a damage.
func onBolt(f func()) {
	defer func() {
		if p := recover(); p != nil {
			if d, ok := p.(damage); ok {
				panic(d)
			}
			panic(damage{p})
		}
	}()
	f()
}

// run calls f in a transaction that begin makes, with faults on the mapped file turned into panics. A damage, and a panic of
// bbolt itself, become an error that names the file; a panic of f goes on.
func (db *DB) run(begin func(func(*bbolt.Tx) error) error, f func(*bbolt.Tx) error) (err error) {
	if e := db.stuck.Load(); e != nil {
		return *e
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	inside := false
	defer func() {
		if p := recover(); p != nil {
			if inside {
				panic(p)
			}
			err = db.damaged(damage{p})
			// bbolt may hold its locks for ever now.
			db.stuck.Store(&err)
		}
	}()
	return begin(func(tx *bbolt.Tx) (err error) {
		defer func() {
			p := recover()
			if d, ok := p.(damage); ok {
				p, err = nil, db.damaged(d)
			}
			inside = p != nil
			if inside {
				panic(p)
			}
		}()
		return f(tx)
	})
}

// damaged returns the error for a database that was found to be damaged while it is open, and stops writes: they would make
// the damage worse.
func (db *DB) damaged(d damage) error {
	err := damageError(db.path, d.cause)
	db.broken.CompareAndSwap(nil, &err)
	return err
}

func damageError(path string, cause any) error {
	what := fmt.Sprint(cause)
	if _, ok := cause.(runtime.Error); ok {
		what = "a part of it cannot be read: " + what
	}
	return errs.New(errs.DataLoss, "database %s is damaged: %.200s", path, what).
		WithHint("Restart plyd: it keeps the damaged file, goes on with the newest good copy, and deletes nothing that the copy does not know.")
}
