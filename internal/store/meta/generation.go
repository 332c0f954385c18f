package meta

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.etcd.io/bbolt"

	"ply/internal/boltfile"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/record"
)

// Generation says which state of which database a file holds. It is in the database, and the mark in the data root repeats
// it. An epoch begins with each Open, so two files with the same numbers have the same history.
type Generation struct {
	Database string `json:"database"`          // random, from the creation of the database
	Epoch    uint64 `json:"epoch"`             // number of the Open that wrote last
	Commits  uint64 `json:"commits"`           // number of updates since the creation
	Doubt    string `json:"doubt,omitempty"`   // why the records may be incomplete; "" = they are not
	Doubted  uint64 `json:"doubted,omitempty"` // the epoch in which the doubt arose
}

// before reports whether g is an earlier state than h of the same database.
func (g Generation) before(h Generation) bool {
	return g.Epoch < h.Epoch || g.Epoch == h.Epoch && g.Commits < h.Commits
}

// mark is the file beside the database that says which generation belongs to the data root. It is durable from each Open
// before the first update; after an update it is overwritten without a sync, so that after a power cut, and only then, it
// may be older than the database.
type mark struct {
	Database string `json:"database"`
	Epoch    uint64 `json:"epoch"`
	Commits  uint64 `json:"commits"`
	Clean    bool   `json:"clean"` // written, durable, by Close: the database has exactly this generation
}

const (
	markVersion = 1
	markSize    = 256 // the file never changes its size, and lies in one sector
)

func markPath(path string) string { return path + ".mark" }

// readMark returns the mark of a data root; nil when there is none. The error's class is errs.DataLoss when it is damaged.
func readMark(fsys durable.FS, path string) (*mark, error) {
	m := &mark{}
	err := record.ReadFile(fsys, markPath(path), markSize, markVersion, m)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return m, err
}

func (m mark) encode() ([]byte, error) {
	data, err := record.Marshal(markVersion, m)
	if err != nil {
		return nil, err
	}
	if len(data) >= markSize {
		return nil, errs.New(errs.Internal, "mark of the database: %d bytes", len(data))
	}
	return []byte(string(data) + strings.Repeat(" ", markSize-1-len(data)) + "\n"), nil
}

// marker keeps the mark of an open database.
type marker struct {
	fs   durable.FS
	path string

	mu   sync.Mutex
	file durable.File // open for overwriting; nil until set
	last mark
}

// set writes the mark, durable when it returns.
func (k *marker) set(m mark) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	data, err := m.encode()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(k.fs, markPath(k.path), data, 0o600); err != nil {
		return err
	}
	if k.file != nil {
		err = k.file.Close()
		k.file = nil
	}
	if err == nil && !m.Clean {
		k.file, err = durable.OS.OpenFile(markPath(k.path), os.O_WRONLY, 0) // no operation depends on what follow writes
	}
	k.last = m
	return err
}

// follow overwrites the mark after an update. It is one small write without a sync. An error leaves the mark older than the
// database, as a power cut does.
func (k *marker) follow(commits uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file == nil || commits <= k.last.Commits {
		return
	}
	k.last.Commits = commits
	if data, err := k.last.encode(); err == nil {
		_, _ = k.file.WriteAt(data, 0)
	}
}

func (k *marker) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.file == nil {
		return nil
	}
	err := k.file.Close()
	k.file = nil
	return err
}

// fits compares a database with the mark of its data root. It returns what is wrong; "" = nothing. foreign says that the
// database is of another root, older that it lacks updates that were acknowledged.
func (m *mark) fits(g Generation, occupied bool) (wrong string, foreign, older bool) {
	switch {
	case m == nil && (g.Database == "" || !occupied || g.Epoch == 1 && g.Commits == 0):
		return "", false, false // of a build before the first release, or new
	case m == nil:
		return "the mark of the data root is missing, so the database may be older", false, false
	case g.Database == "":
		return "the database is older than the data root", false, true
	case g.Database != m.Database:
		return "the database belongs to another data root", true, false
	case g.Epoch > m.Epoch:
		return "the database is younger than the data root", false, false
	case g.Epoch == m.Epoch && g.Commits >= m.Commits:
		return "", false, false
	case g.Epoch == m.Epoch-1 && g.Commits == m.Commits && !m.Clean:
		return "", false, false // nothing was written since the last Open
	}
	return "the database is older than the data root", false, true
}

// is reports whether a generation is surely the newest of the root: Close has written it, and nothing was opened since.
func (m *mark) is(g Generation) bool {
	return m != nil && m.Clean && g.Database == m.Database && g.Epoch == m.Epoch && g.Commits == m.Commits
}

func newDatabaseID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x", b)
}

var generationKey = []byte("generation")

// generation reads the generation of a database; the zero one when a build before the first release wrote it.
func generation(tx *bbolt.Tx) (g Generation, err error) {
	onBolt(func() {
		m := tx.Bucket(metaBucket)
		if m == nil {
			return
		}
		if data := m.Get(generationKey); data != nil {
			if err = json.Unmarshal(data, &g); err == nil && g.Database == "" {
				err = errors.New("it names no database")
			}
		}
	})
	if err != nil {
		err = &boltfile.PageError{What: fmt.Sprintf("its generation cannot be read: %v", err)}
	}
	return g, err
}

func putGeneration(tx *bbolt.Tx, g Generation) (err error) {
	data, err := json.Marshal(g)
	if err != nil {
		return err
	}
	onBolt(func() { err = tx.Bucket(metaBucket).Put(generationKey, data) })
	return err
}

// setAside renames a database that is not used any more. It is never deleted. It returns the new name.
func setAside(fsys durable.FS, path, stamp string) (string, error) {
	for i := 0; ; i++ {
		to := path + ".damaged-" + stamp
		if i > 0 {
			to += fmt.Sprint("-", i)
		}
		if _, err := fsys.Lstat(to); err == nil {
			continue
		}
		return filepath.Base(to), durable.Rename(fsys, path, to)
	}
}
