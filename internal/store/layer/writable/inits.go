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

// maxSpare is how many spare init layers are kept.
const maxSpare = 32

// Inits makes init layers. The init layer of a removed writable is kept for the next writable over the same chain, because
// creating and deleting a dozen files is a large part of the cost of a short-lived container. Safe for concurrent use.
type Inits struct {
	fsys durable.FS
	dir  string

	mu    sync.Mutex
	made  int
	spare []spareInit // oldest first
}

type spareInit struct{ name, path string }

// OpenInits keeps spare init layers in dir, which nothing else uses. It removes those of an earlier process, because a
// crash may have left them incomplete.
func OpenInits(fsys durable.FS, dir string) (*Inits, error) {
	if err := durable.MkdirPrivate(fsys, dir); err != nil {
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

// initPrefix starts the names of init layers. The rest is a digest of chain and entries.
const initPrefix = initName + "."

// initOf returns the name of the init layer with these entries over a chain.
func initOf(chain oci.Chain, entries []layer.InitEntry) (string, error) {
	list, err := json.Marshal(entries)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(string(chain.ID())+" "), list...))
	return initPrefix + hex.EncodeToString(sum[:16]), nil
}

// provide creates the init layer in the directory of a writable, unless it exists, and returns its path.
func (in *Inits) provide(dir string, chain oci.Chain, base Base, entries []layer.InitEntry) (string, error) {
	name, err := initOf(chain, entries)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if _, err := in.fsys.Lstat(path); err == nil {
		return path, nil
	}
	if err := removeInits(in.fsys, dir, nil); err != nil { // with other entries
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

// take moves a spare init layer to path.
func (in *Inits) take(name, path string) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	i := slices.IndexFunc(in.spare, func(s spareInit) bool { return s.name == name })
	if i < 0 {
		return false
	}
	s := in.spare[i]
	in.spare = slices.Delete(in.spare, i, i+1)
	return in.fsys.Rename(s.path, path) == nil // otherwise a new one is made
}

// keep makes the init layer at path a spare one. It replaces the oldest when there are too many.
func (in *Inits) keep(name, path string) error {
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

// removeInits removes the init layers of a writable, or moves them to the spare ones.
func removeInits(fsys durable.FS, dir string, to *Inits) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return ignoreAbsent(err)
	}
	var all error
	for _, e := range entries {
		old := e.Name() == initName || e.Name() == initListName // of builds before the first release
		if !old && !strings.HasPrefix(e.Name(), initPrefix) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if !old && to != nil && to.keep(e.Name(), path) == nil {
			continue
		}
		all = errors.Join(all, fsys.RemoveAll(path))
	}
	return all
}
