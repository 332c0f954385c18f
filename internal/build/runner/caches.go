package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ply/internal/build/ops"
	"ply/internal/durable"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/store/layer/upper"
)

// caches are the directories of cache mounts. They outlive builds.
type caches struct {
	dir string
	fs  durable.FS

	mu     sync.Mutex
	users  map[string]*cacheUse
	notes  map[string]*note // of directories that were used or listed since the engine started
	unsaid map[string]bool  // notes that are not on disk
	gone   int              // how many directories were removed

	keeping sync.Mutex // held while notes are written and while directories are removed
}

// note is what is known of a directory besides its content.
type note struct {
	cacheRecord
	size int64 // bytes of its files; -1 = it was used since it was measured
}

// cacheRecord is a note on disk, written behind: a crash may lose the last uses, or all of it, and then the times of the directory count.
type cacheRecord struct {
	Description string    `json:"description"`
	Created     time.Time `json:"created"`
	Used        time.Time `json:"used"`
	Uses        int       `json:"uses"`
}

const (
	cacheVersion   = 1
	maxCacheRecord = 64 << 10
	maxDescription = 1000 // bytes
)

// cacheUse is who uses one directory.
type cacheUse struct {
	shared int
	locked bool
	free   chan struct{} // closed when it is not locked any more
	making sync.Mutex    // held while the directory is made
}

// acquire returns a directory for a cache mount. A new one has what fill puts into it, and has its name only when that is complete.
func (c *caches) acquire(ctx context.Context, id, about string, sharing ops.Sharing, fill func(dir string) error) (dir string, release func(), err error) {
	for n := 0; ; n++ {
		name := cacheName(id)
		if n > 0 && sharing == ops.SharingPrivate {
			name = cacheName(fmt.Sprint(id, "\x00", n))
		}
		use, release, busy := c.try(name, sharing)
		if busy != nil {
			if sharing == ops.SharingPrivate {
				continue
			}
			select {
			case <-busy:
				continue
			case <-ctx.Done():
				return "", nil, context.Cause(ctx)
			}
		}
		dir := filepath.Join(c.dir, name)
		if err := c.make(use, dir, fill); err != nil {
			release()
			return "", nil, err
		}
		c.note(name, about)
		return dir, sync.OnceFunc(func() { c.note(name, ""); release() }), nil
	}
}

func (c *caches) make(use *cacheUse, dir string, fill func(dir string) error) error {
	use.making.Lock()
	defer use.making.Unlock()
	if _, err := c.fs.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	tmp := durable.TempName(c.dir)
	err := c.fs.Mkdir(tmp, 0o755)
	if err == nil {
		err = fill(tmp)
	}
	if err == nil {
		err = c.fs.Rename(tmp, dir)
	}
	if err != nil {
		return errors.Join(err, c.fs.RemoveAll(tmp))
	}
	return nil
}

// clean removes what was not complete when an engine was killed: directories, and notes without one.
func (c *caches) clean() error {
	entries, err := os.ReadDir(c.dir)
	for _, e := range entries {
		name, isNote := strings.CutSuffix(e.Name(), noteSuffix)
		lost := false
		if isNote {
			_, missing := c.fs.Lstat(filepath.Join(c.dir, name))
			lost = errors.Is(missing, fs.ErrNotExist)
		}
		if lost || durable.IsTemp(e.Name()) {
			err = errors.Join(err, c.fs.RemoveAll(filepath.Join(c.dir, e.Name())))
		}
	}
	return err
}

// try takes a directory. When another user excludes that, it returns a channel that is closed when it is worth another try.
func (c *caches) try(name string, sharing ops.Sharing) (use *cacheUse, release func(), busy <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users == nil {
		c.users = map[string]*cacheUse{}
	}
	u := c.users[name]
	if u == nil {
		u = &cacheUse{free: make(chan struct{})}
		c.users[name] = u
	}
	exclusive := sharing != ops.SharingShared
	if u.locked || exclusive && u.shared > 0 {
		return nil, nil, u.free
	}
	if exclusive {
		u.locked = true
	} else {
		u.shared++
	}
	return u, sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if exclusive {
			u.locked = false
		} else {
			u.shared--
		}
		close(u.free)
		u.free = make(chan struct{})
		if !u.locked && u.shared == 0 {
			delete(c.users, name)
		}
	}), nil
}

// noteSuffix ends the names of notes.
const noteSuffix = ".json"

// note notes that a step begins to use a directory, or with about == "" that it ends.
func (c *caches) note(name, about string) {
	stored := c.read(name)
	now := time.Now().UTC()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.remember(name, stored)
	if n.Created.IsZero() {
		n.Created = now
	}
	n.Used, n.size = now, -1
	if about != "" {
		n.Uses++
		n.Description = clip(about)
	}
	if c.unsaid == nil {
		c.unsaid = map[string]bool{}
	}
	c.unsaid[name] = true
}

func clip(s string) string {
	if len(s) > maxDescription {
		s = s[:maxDescription]
	}
	return strings.ToValidUTF8(s, "")
}

// read reads the note about a directory from disk, unless it is in memory.
func (c *caches) read(name string) (r cacheRecord) {
	c.mu.Lock()
	n := c.notes[name]
	c.mu.Unlock()
	if n != nil {
		return r
	}
	file := filepath.Join(c.dir, name)
	if err := record.ReadFile(c.fs, file+noteSuffix, maxCacheRecord, cacheVersion, &r); err == nil {
		return r
	}
	r = cacheRecord{}
	if st, err := c.fs.Lstat(file); err == nil {
		r.Created, r.Used = st.ModTime().UTC(), st.ModTime().UTC()
	}
	return r
}

// remember returns the note in memory; stored becomes it when there is none. The caller has c.mu.
func (c *caches) remember(name string, stored cacheRecord) *note {
	n := c.notes[name]
	if n == nil {
		n = &note{cacheRecord: stored, size: -1}
		if c.notes == nil {
			c.notes = map[string]*note{}
		}
		c.notes[name] = n
	}
	return n
}

// flush writes the notes that are not on disk.
func (c *caches) flush() error {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	c.mu.Lock()
	write := map[string]cacheRecord{}
	for name := range c.unsaid {
		write[name] = c.notes[name].cacheRecord
	}
	c.unsaid = nil
	c.mu.Unlock()
	var all error
	for name, r := range write {
		if err := record.WriteFile(c.fs, filepath.Join(c.dir, name)+noteSuffix, cacheVersion, r, 0o600); err != nil {
			all = errors.Join(all, err)
		}
	}
	return all
}

// CacheMount is a directory of cache mounts.
type CacheMount struct {
	ID          oci.Digest
	Description string
	Size        int64 // bytes of its files
	Created     time.Time
	Used        time.Time
	Uses        int
	InUse       bool // by a step that runs
}

// list returns all directories. It measures those that were used since it was called before.
func (c *caches) list(ctx context.Context) ([]CacheMount, error) {
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var out []CacheMount
	for _, e := range entries {
		name := e.Name()
		id, err := oci.ParseDigest("sha256:" + name)
		if err != nil || !e.IsDir() {
			continue
		}
		stored := c.read(name)
		c.mu.Lock()
		n := c.notes[name]
		switch {
		case n != nil:
		case c.gone == gone:
			n = c.remember(name, stored)
		default: // this one may have been removed, and then nothing is to be known of it any more
			n = &note{cacheRecord: stored, size: -1}
		}
		was, size := n.cacheRecord, n.size
		inUse := c.users[name] != nil
		c.mu.Unlock()
		if size < 0 || inUse {
			if size, err = upper.Usage(ctx, filepath.Join(c.dir, name)); err != nil {
				if errors.Is(err, fs.ErrNotExist) || ctx.Err() == nil && inUse { // it goes, or it changes while it is read
					size = 0
				} else {
					return nil, err
				}
			}
			c.mu.Lock()
			if c.users[name] == nil && n.Used.Equal(was.Used) {
				n.size = size
			}
			c.mu.Unlock()
		}
		out = append(out, CacheMount{ID: id, Description: was.Description, Size: size, Created: was.Created, Used: was.Used, Uses: was.Uses, InUse: inUse})
	}
	return out, nil
}

// remove removes directories that no step is using, and returns the IDs of those. A step that wants one meanwhile gets a new one.
func (c *caches) remove(ids []oci.Digest) (gone []oci.Digest, err error) {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	for _, id := range ids {
		name := id.Hex()
		_, release, busy := c.try(name, ops.SharingLocked)
		if busy != nil {
			continue
		}
		away := durable.TempName(c.dir)
		e := c.fs.Rename(filepath.Join(c.dir, name), away)
		if e == nil {
			e = c.fs.RemoveAll(filepath.Join(c.dir, name) + noteSuffix)
			gone = append(gone, id)
		} else if errors.Is(e, fs.ErrNotExist) {
			e = nil // it is gone already
		}
		c.mu.Lock()
		delete(c.notes, name)
		delete(c.unsaid, name)
		c.gone++
		c.mu.Unlock()
		release()
		err = errors.Join(err, e)
		if e == nil {
			err = errors.Join(err, c.fs.RemoveAll(away))
		}
	}
	return gone, err
}

// CacheMounts lists the directories of cache mounts.
func (r *Runner) CacheMounts(ctx context.Context) ([]CacheMount, error) { return r.caches.list(ctx) }

// RemoveCacheMounts removes directories of cache mounts that no step is using, and returns which.
func (r *Runner) RemoveCacheMounts(ids []oci.Digest) ([]oci.Digest, error) {
	return r.caches.remove(ids)
}

// Flush writes what is known of cache mounts in memory only.
func (r *Runner) Flush() error { return r.caches.flush() }
