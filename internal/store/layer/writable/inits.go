package writable

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// maxSpare is how many init layers are kept for writables to come.
const maxSpare = 32

// Inits makes init layers. A removed writable leaves its own to the next one over the same chain, because to make and
// delete a dozen files is a good part of what a short-lived container costs. Safe for concurrent use.
type Inits struct {
	fsys durable.FS
	dir  string

	mu    sync.Mutex
	made  int
	spare []spareInit // oldest first
}

type spareInit struct{ name, path string }

// OpenInits keeps the spare ones in the directory dir, which is the caller's alone. What a former process left there is
// removed: nothing tells whether a crash left it whole.
func OpenInits(fsys durable.FS, dir string) (*Inits, error) {
	if err := mkdir(fsys, dir); err != nil {
		return nil, err
	}
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := fsys.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return nil, err
		}
	}
	return &Inits{fsys: fsys, dir: dir}, nil
}

// initPrefix begins the names of init layers; the rest tells what is in it.
const initPrefix = initName + "."

// initOf names the init layer with entries over a chain.
func initOf(chain oci.Chain, entries []layer.InitEntry) (string, error) {
	list, err := json.Marshal(entries)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(string(chain.ID())+" "), list...))
	return initPrefix + hex.EncodeToString(sum[:16]), nil
}

// place makes the init layer in the writable dir, unless it is there already, and gives its path.
func (in *Inits) place(dir string, chain oci.Chain, base Base, entries []layer.InitEntry) (string, error) {
	name, err := initOf(chain, entries)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if _, err := in.fsys.Lstat(path); err == nil {
		return path, nil
	}
	if err := removeInits(in.fsys, dir, nil); err != nil { // of another list
		return "", err
	}
	if in.take(name, path) {
		return path, nil
	}
	tmp := durable.TempName(dir)
	if err := in.fsys.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	err = BuildInit(tmp, base, entries)
	if err == nil {
		err = in.fsys.Rename(tmp, path)
	}
	if err != nil {
		return "", errors.Join(errs.New(errs.Internal, "mount points of the runtime: %w", err), in.fsys.RemoveAll(tmp))
	}
	return path, nil
}

// take moves a spare one to path.
func (in *Inits) take(name, path string) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	i := slices.IndexFunc(in.spare, func(s spareInit) bool { return s.name == name })
	if i < 0 {
		return false
	}
	s := in.spare[i]
	in.spare = slices.Delete(in.spare, i, i+1)
	return in.fsys.Rename(s.path, path) == nil // without it, one is made
}

// give keeps the one at path, in the stead of the oldest when there are many.
func (in *Inits) give(name, path string) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.spare) >= maxSpare {
		if err := in.fsys.RemoveAll(in.spare[0].path); err != nil {
			return err
		}
		in.spare = in.spare[1:]
	}
	in.made++
	to := filepath.Join(in.dir, strconv.Itoa(in.made))
	if err := in.fsys.Rename(path, to); err != nil {
		return err
	}
	in.spare = append(in.spare, spareInit{name, to})
	return nil
}

// removeInits removes the init layers of a writable, or gives them away.
func removeInits(fsys durable.FS, dir string, to *Inits) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return ignoreAbsent(err)
	}
	var all error
	for _, e := range entries {
		old := e.Name() == initName || e.Name() == initListName // of an earlier version
		if !old && !strings.HasPrefix(e.Name(), initPrefix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if !old && to != nil && to.give(e.Name(), path) == nil {
			continue
		}
		all = errors.Join(all, fsys.RemoveAll(path))
	}
	return all
}
