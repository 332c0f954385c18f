package erofs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"ply/internal/durable"
	"ply/internal/memory"
	"ply/internal/oci"
	"ply/internal/spill"
	"ply/internal/store/layer/erofs/image"
	"ply/internal/store/layer/tarscan"
)

// hasher computes the digest of the tar from its pieces.
type hasher struct {
	in chan *piece
	h  hash.Hash
}

func newHasher() *hasher { return &hasher{in: make(chan *piece, 2), h: sha256.New()} }

func (h *hasher) run() {
	for p := range h.in {
		h.h.Write(p.b)
		p.done()
	}
}

// scanner indexes the tar from its pieces. When the memory for the index is exhausted it forgets what it has, and again
// starts over when the layer is committed.
type scanner struct {
	d     *Driver
	dir   string
	in    chan *piece
	fail  atomic.Pointer[error]
	share *memory.Share // for the index

	// These belong to run until it has returned.
	cur     *piece
	off     int
	tree    *image.Tree
	space   *spill.Space // of the tree
	size    int64
	entries int
	side    *sideFile
}

func newScanner(d *Driver, dir string) *scanner {
	s := &scanner{d: d, dir: dir, in: make(chan *piece, 2), share: d.opts.Memory.Share()}
	s.begin()
	return s
}

// indexMemory is how much memory the index of one layer takes before parts of it move to a file.
const indexMemory = 8 << 20

// begin makes an empty tree.
func (s *scanner) begin() {
	s.space = spill.NewSpace(indexMemory, spill.InDir(s.dir))
	s.tree = image.NewTreeIn(s.space)
}

// errNoMemory means that the share cannot grow.
var errNoMemory = errors.New("index: no memory left")

func (s *scanner) run() {
	err := s.read(s, s.visit)
	if errors.Is(err, errNoMemory) {
		err = s.forget()
	}
	if err != nil {
		s.fail.Store(&err)
	}
	if s.cur != nil {
		s.cur.done()
		s.cur = nil
	}
	for p := range s.in {
		p.done()
	}
}

// read indexes a tar.
func (s *scanner) read(r io.Reader, visit func(*tarscan.Entry, io.Reader) error) (err error) {
	defer spill.Guard(&err)()
	return tarscan.Scan(r, s.d.opts.Limits, visit)
}

// missing returns what the layer takes from those below.
func (s *scanner) missing() (_ []image.Missing, err error) {
	defer spill.Guard(&err)()
	return s.tree.Missing()
}

// forget drops the index and what belongs to it. The tar alone has everything.
func (s *scanner) forget() error {
	side := s.side != nil
	err := s.close()
	s.size, s.entries = 0, 0
	if !side {
		return err
	}
	return errors.Join(err, s.d.fs.Remove(filepath.Join(s.dir, sideName)))
}

// again indexes the tar, which was written, with the memory of another share.
func (s *scanner) again(ctx context.Context, tar io.ReaderAt, size int64) error {
	turn, err := s.d.opts.Memory.Turn(ctx)
	if err != nil {
		return err
	}
	s.share = turn
	s.begin()
	err = s.read(io.NewSectionReader(tar, 0, size), func(e *tarscan.Entry, data io.Reader) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		return s.visit(e, data)
	})
	if errors.Is(err, errNoMemory) {
		err = s.d.opts.Memory.Exhausted("index of the layer")
	}
	return err
}

// failure returns the scan's error, or nil while there is none.
func (s *scanner) failure() error {
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return nil
}

// Read implements io.Reader over the pieces.
func (s *scanner) Read(p []byte) (int, error) {
	for s.cur == nil || s.off == len(s.cur.b) {
		if s.cur != nil {
			s.cur.done()
		}
		var ok bool
		if s.cur, ok = <-s.in; !ok {
			s.cur = nil
			return 0, io.EOF
		}
		s.off = 0
	}
	n := copy(p, s.cur.b[s.off:])
	s.off += n
	return n, nil
}

func (s *scanner) visit(e *tarscan.Entry, data io.Reader) error {
	if !s.share.Fit(s.tree.Memory()) {
		return errNoMemory
	}
	var where image.Extent
	switch e.Kind {
	case tarscan.Whiteout, tarscan.Opaque:
		return s.tree.Add(e, where)
	case tarscan.Regular:
		s.size += e.Size
		if e.Size == 0 {
			break
		}
		if !e.Sparse {
			where = image.Extent{Device: 1, Offset: e.Offset}
			break
		}
		if s.side == nil {
			var err error
			if s.side, err = s.d.newSide(filepath.Join(s.dir, sideName)); err != nil {
				return err
			}
		}
		off, err := s.side.add(data, e.Size)
		if err != nil {
			return err
		}
		where = image.Extent{Device: 2, Offset: off}
	}
	s.entries++
	return s.tree.Add(e, where)
}

// finish completes the side file and returns its sum, or nil when there is none.
func (s *scanner) finish(syncs *syncing) (*fileSum, error) {
	if s.side == nil {
		return nil, nil
	}
	side := s.side
	s.side = nil
	return side.finish(syncs)
}

// release drops what only run needs.
func (s *scanner) release() {
	if s.side != nil {
		s.side.buf, s.side.zero = nil, nil
	}
}

// close drops the index and closes the side file, if there is one.
func (s *scanner) close() error {
	s.tree = nil
	err := s.space.Close()
	s.share.Close()
	if s.side == nil {
		return err
	}
	f := s.side.f
	s.side = nil
	return errors.Join(err, f.Close())
}

// sideFile holds file content that is not one piece of the tar. Regions of zeros become holes.
type sideFile struct {
	f    durable.File
	size int64
	buf  []byte
	zero []byte
}

const (
	sideAlign = 4096
	sideBuf   = 64 << 10
)

func (fs *files) newSide(name string) (*sideFile, error) {
	f, err := fs.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &sideFile{f: f, buf: make([]byte, sideBuf), zero: make([]byte, sideBuf)}, nil
}

// add appends size bytes of r and returns their offset.
func (s *sideFile) add(r io.Reader, size int64) (int64, error) {
	start := s.size
	for pos, left := start, size; left > 0; {
		b := s.buf[:min(left, sideBuf)]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		if !bytes.Equal(b, s.zero[:len(b)]) {
			if _, err := s.f.WriteAt(b, pos); err != nil {
				return 0, exhausted(err)
			}
		}
		pos, left = pos+int64(len(b)), left-int64(len(b))
	}
	s.size = (start + size + sideAlign - 1) / sideAlign * sideAlign
	return start, nil
}

func (s *sideFile) finish(syncs *syncing) (*fileSum, error) {
	var d oci.Digest
	err := s.f.Truncate(s.size)
	if err == nil {
		d, err = digestOf(s.f, s.size)
	}
	return &fileSum{s.size, d}, syncs.file(s.f, err)
}

func digestOf(r io.ReaderAt, size int64) (oci.Digest, error) {
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(r, 0, size), make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return oci.DigestOfHash(h), nil
}
