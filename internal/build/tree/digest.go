package tree

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Digests remembers the digests and extended attributes of files, so that a file that did not change is not opened again. Safe for concurrent use.
//
// A file is taken as unchanged when device, inode, size, and the times of content and attributes are the same. A file that changed a moment
// before it was read could change again without a new time, so its digest is not remembered, as git does it.
type Digests struct {
	racy time.Duration // coarser than the clock of any file system

	mu    sync.Mutex
	table *table
	rich  map[key]known // the files with extended attributes
}

type known struct {
	digest [sha256.Size]byte
	xattrs map[string]string
}

const (
	maxRich = 1 << 16 // files with extended attributes that Digests remembers
	racy    = 2 * time.Second
)

// NewDigests returns an empty memory.
func NewDigests() *Digests {
	return &Digests{racy: racy, table: newTable(maxSlots), rich: map[key]known{}}
}

func (d *Digests) get(st *unix.Stat_t) (k known, ok bool) {
	if d == nil {
		return k, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.table.key(st)
	if k.digest, ok = d.table.get(at); ok {
		return k, true
	}
	k, ok = d.rich[at]
	return k, ok
}

// put remembers a file that was examined from the time read on.
func (d *Digests) put(st *unix.Stat_t, read time.Time, sum [sha256.Size]byte, xattrs map[string]string) {
	if d == nil || read.Sub(time.Unix(st.Ctim.Unix())) < d.racy || read.Sub(time.Unix(st.Mtim.Unix())) < d.racy {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.table.key(st)
	if len(xattrs) == 0 {
		d.table.put(at, sum)
		return
	}
	if len(d.rich) >= maxRich {
		for k := range d.rich { // any: the next build of that file reads it once
			delete(d.rich, k)
			if len(d.rich) < maxRich*3/4 {
				break
			}
		}
	}
	d.rich[at] = known{sum, xattrs}
}

// size returns how many files are remembered.
func (d *Digests) size() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	count, _ := d.table.size()
	return count + len(d.rich)
}

const bufferSize = 64 << 10

// buffers are for reading files.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// content returns the digest of a regular file.
func (e *Entry) content() (sum [sha256.Size]byte, err error) {
	if e.sum != nil {
		return *e.sum, nil
	}
	f, err := e.Open()
	if err != nil {
		return sum, err
	}
	defer f.Close()
	var before, after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return sum, err
	}
	if k, ok := e.tree.digest.get(&before); ok {
		return k.digest, nil
	}
	h := sha256.New()
	buf := buffers.Get().(*[bufferSize]byte)
	n, err := io.CopyBuffer(h, struct{ io.Reader }{f}, buf[:]) // without the file's WriteTo, which would make a buffer for each file
	buffers.Put(buf)
	if err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return sum, err
	}
	if n == before.Size && before.Mtim == after.Mtim && before.Ctim == after.Ctim && before.Ctim == e.Info.ctime {
		e.tree.digest.put(&before, e.seen, sum, e.Info.Xattrs)
	}
	return sum, nil
}

// Selection is what a copy takes from a tree.
type Selection struct {
	Src       string
	Follow    bool
	Wildcards bool
	Include   []string
	Exclude   []string
}

// Items returns the paths that a selection names.
func (t *Tree) Items(s *Selection) ([]string, error) {
	if !s.Wildcards {
		return []string{relative(s.Src)}, nil
	}
	return t.Match(s.Src, s.Follow)
}

// Digest returns the digest of what selections take: names, kinds, modes, owners, extended attributes and content, but no times. The same digest
// means that a copy makes the same files. Errors: errs.NotFound when a selection without wildcards names nothing.
func (t *Tree) Digest(ctx context.Context, selections []Selection) (oci.Digest, error) {
	h := sha256.New()
	for i := range selections {
		s := &selections[i]
		items, err := t.Items(s)
		if err != nil {
			return "", err
		}
		number(h, uint64(len(items)))
		for _, item := range items {
			text(h, item)
			err := t.Walk(item, WalkOptions{Follow: s.Follow, Include: s.Include, Exclude: s.Exclude, Context: ctx, known: true}, func(e *Entry) error { return e.hash(h) })
			if err != nil {
				return "", selectError(s.Src, err)
			}
			text(h, "\x00end")
		}
	}
	return oci.DigestOfHash(h), nil
}

func selectError(src string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "%q: not found", src)
	}
	return err
}

func number(h hash.Hash, n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	_, _ = h.Write(b[:]) // never fails
}

func text(h hash.Hash, s string) {
	number(h, uint64(len(s)))
	_, _ = io.WriteString(h, s)
}

// hash adds a file to a digest.
func (e *Entry) hash(h hash.Hash) error {
	i := &e.Info
	text(h, e.Rel)
	number(h, uint64(i.Mode))
	number(h, uint64(i.UID)<<32|uint64(i.GID))
	number(h, uint64(len(i.Xattrs)))
	for _, key := range slices.Sorted(maps.Keys(i.Xattrs)) {
		text(h, key)
		text(h, i.Xattrs[key])
	}
	switch i.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		sum, err := e.content()
		if err != nil {
			return err
		}
		_, _ = h.Write(sum[:])
	case unix.S_IFLNK:
		text(h, i.Link)
	case unix.S_IFBLK, unix.S_IFCHR:
		number(h, i.Rdev)
	}
	return nil
}
