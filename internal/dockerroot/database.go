package dockerroot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/boltfile"
	"ply/internal/errs"
	"ply/internal/procid"
)

// database is a bbolt file that is open for reading. The lock that it holds keeps its owner from opening it.
type database struct {
	name string
	bolt *bbolt.DB
}

// lockWait is how long openDatabase waits for a program that has the file open.
const lockWait = 500 * time.Millisecond

// Limits of a database in bytes: of the file, and of the pages that are looked at together.
const (
	maxDatabase = 4 << 30
	maxPages    = 64 << 20
)

// openDatabase opens a file below root. Errors: errs.Conflict when owner has it open, errs.DataLoss when it is damaged.
func openDatabase(root *os.File, name, owner string) (_ *database, err error) {
	f, err := openFile(root, name)
	if err != nil {
		return nil, err
	}
	opened := false
	defer func() {
		if p := recover(); p != nil {
			err = damaged(name, p)
		}
		if !opened || err != nil {
			_ = f.Close() // it was only read, and may be closed already
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() == 0 || fi.Size() > maxDatabase {
		return nil, errs.New(errs.DataLoss, "database %s has %d bytes", name, fi.Size())
	}
	// bbolt makes the lock a shared one.
	if err := procid.LockFile(f, lockWait); err != nil {
		held := new(procid.LockedError)
		if !errors.As(err, &held) {
			return nil, err
		}
		return nil, errs.New(errs.Conflict, "%s runs on this data root: %s is in use by %s", owner, name, held.Holder).
			WithHint("Stop it first, such as with systemctl stop docker.socket docker containerd: nothing can be imported while it runs.")
	}
	// bbolt would follow a page that refers to itself until the process ends.
	if err := boltfile.CheckToRead(f, fi.Size(), maxPages); err != nil {
		return nil, damaged(name, err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err := bbolt.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), 0, &bbolt.Options{
		ReadOnly: true, Timeout: lockWait, NoStatistics: true, PreLoadFreelist: false,
		OpenFile: func(string, int, fs.FileMode) (*os.File, error) { return f, nil },
	})
	if err != nil {
		return nil, errs.New(errs.DataLoss, "database %s: %w", name, err)
	}
	opened = true
	return &database{name, db}, nil
}

func damaged(name string, cause any) error {
	return errs.New(errs.DataLoss, "database %s is damaged: %.200s", name, fmt.Sprint(cause))
}

// view calls read with the root bucket. A panic of bbolt, or a part of the file that cannot be read, is an error of class errs.DataLoss.
func (d *database) view(read func(tx *bbolt.Tx) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged(d.name, p)
		}
	}()
	return d.bolt.View(read)
}

func (d *database) close() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = damaged(d.name, p)
		}
	}()
	return d.bolt.Close()
}

// bucket returns a bucket by its path; nil when it is not there.
func bucket(tx *bbolt.Tx, names ...string) *bbolt.Bucket {
	b := tx.Bucket([]byte(names[0]))
	for _, n := range names[1:] {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(n))
	}
	return b
}
