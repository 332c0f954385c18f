package tree

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"hash/crc64"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
)

// recipe writes tar-split entries while the tar is read. Write receives the raw bytes first; file then tells which of them
// are the content of a file.
type recipe struct {
	file durable.File
	gz   *gzip.Writer
	enc  *json.Encoder
	pos  int   // number of the next entry
	at   int64 // offset in the tar of raw[0]
	raw  []byte
	skip int64 // bytes of content that are still to come
}

const segmentSize = 64 << 10

func newRecipe(fsys durable.FS, dir string) (*recipe, error) {
	f, err := fsys.OpenFile(filepath.Join(dir, recipeName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	gz, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &recipe{file: f, gz: gz, enc: json.NewEncoder(gz)}, nil
}

// Write receives the next bytes of the tar. They are not interpreted yet, but everything before them is: the scanner reads
// only when it has used up what it has.
func (r *recipe) Write(p []byte) (int, error) {
	if len(r.raw) >= segmentSize {
		if err := r.segments(len(r.raw)); err != nil {
			return 0, err
		}
	}
	n := min(r.skip, int64(len(p)))
	r.skip -= n
	r.at += n // raw is empty while skip is not 0
	r.raw = append(r.raw, p[n:]...)
	return len(p), nil
}

// content declares size bytes from offset as the content of a file, which is not stored here. The bytes before it become a
// raw segment.
func (r *recipe) content(offset, size int64) error {
	if err := r.segments(int(offset - r.at)); err != nil {
		return err
	}
	have := min(size, int64(len(r.raw)))
	r.raw = append(r.raw[:0], r.raw[have:]...)
	r.skip = size - have
	r.at += have
	return nil
}

// segments writes raw[:n] as segments.
func (r *recipe) segments(n int) error {
	for done := 0; done < n; {
		m := min(n-done, segmentSize)
		if err := r.add(storage.Entry{Type: storage.SegmentType, Payload: r.raw[done : done+m]}); err != nil {
			return err
		}
		done += m
	}
	r.raw = append(r.raw[:0], r.raw[n:]...)
	r.at += int64(n)
	return nil
}

// stored names the file with the content that was declared last.
func (r *recipe) stored(name string, size int64, crc uint64) error {
	e := storage.Entry{Type: storage.FileType, Size: size}
	e.SetName(name)
	e.Payload = make([]byte, 0, 8)
	for i := 56; i >= 0; i -= 8 {
		e.Payload = append(e.Payload, byte(crc>>i))
	}
	return r.add(e)
}

func (r *recipe) add(e storage.Entry) error {
	e.Position = r.pos
	r.pos++
	return r.enc.Encode(e)
}

func (r *recipe) close() error {
	return errors.Join(r.segments(len(r.raw)), r.gz.Close(), r.file.Close())
}

// OpenTar rebuilds the tar of a layer directory; content is the tree with its files. The reader compares every file with
// its checksum, but does not check the digest of the tar. The error's class is errs.DataLoss for damage.
func OpenTar(fsys durable.FS, dir, content string, m *Meta) (io.ReadCloser, error) {
	f, err := fsys.OpenFile(filepath.Join(dir, recipeName), os.O_RDONLY, 0)
	if err != nil {
		return nil, errs.New(errs.DataLoss, "recipe of the tar: %w", err)
	}
	root, err := unix.Open(content, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(errs.New(errs.DataLoss, "tree: %w", &os.PathError{Op: "open", Path: content, Err: err}), f.Close())
	}
	gz, err := gzip.NewReader(f)
	if err != nil {
		unix.Close(root)
		return nil, errors.Join(errs.New(errs.DataLoss, "recipe of the tar: %w", err), f.Close())
	}
	r := &tarReader{
		file: f, dec: json.NewDecoder(gz), root: os.NewFile(uintptr(root), content), dir: dir,
		hidden: make(map[string]int, len(m.Hidden)), crc: crc64.New(storage.CRCTable),
	}
	for _, h := range m.Hidden {
		r.hidden[string(h.Name)] = h.File
	}
	return r, nil
}

// hashCRC is the part of hash.Hash64 that tarReader needs.
type hashCRC interface {
	io.Writer
	Sum64() uint64
	Reset()
}

type tarReader struct {
	file   durable.File
	dec    *json.Decoder
	root   *os.File
	dir    string
	hidden map[string]int
	crc    hashCRC

	raw  []byte   // of the current segment
	cur  *os.File // the current file
	name string
	left int64
	want uint64
	err  error
}

func (r *tarReader) Read(p []byte) (int, error) {
	for r.err == nil {
		switch {
		case len(r.raw) > 0:
			n := copy(p, r.raw)
			r.raw = r.raw[n:]
			return n, nil
		case r.cur != nil:
			if n, more := r.content(p); more {
				return n, r.err
			}
		default:
			r.err = r.next()
		}
	}
	return 0, r.err
}

// content reads from the current file; more is false at its end.
func (r *tarReader) content(p []byte) (n int, more bool) {
	if r.left == 0 {
		sum := r.crc.Sum64()
		r.cur.Close()
		r.cur = nil
		if sum != r.want {
			r.err = errs.New(errs.DataLoss, "file %q: content has changed", r.name)
			return 0, true
		}
		return 0, false
	}
	n, err := r.cur.Read(p[:min(int64(len(p)), r.left)])
	if n > 0 {
		r.left -= int64(n)
		r.crc.Write(p[:n])
		return n, true
	}
	if err == nil || err == io.EOF {
		err = errors.New("is too short")
	}
	r.err = errs.New(errs.DataLoss, "file %q: %w", r.name, err)
	return 0, true
}

func (r *tarReader) next() error {
	var e storage.Entry
	err := r.dec.Decode(&e)
	if err == io.EOF {
		return err
	}
	if err != nil {
		return errs.New(errs.DataLoss, "recipe of the tar: %w", err)
	}
	switch e.Type {
	case storage.SegmentType:
		r.raw = e.Payload
		return nil
	case storage.FileType:
		if e.Size <= 0 || len(e.Payload) != 8 {
			return errs.New(errs.DataLoss, "recipe of the tar: entry %d is malformed", e.Position)
		}
		r.name, r.left, r.want = e.GetName(), e.Size, 0
		for _, b := range e.Payload {
			r.want = r.want<<8 | uint64(b)
		}
		r.crc.Reset()
		return r.open()
	default:
		return errs.New(errs.DataLoss, "recipe of the tar: entry %d has type %d", e.Position, e.Type)
	}
}

func (r *tarReader) open() error {
	if n, ok := r.hidden[r.name]; ok {
		f, err := os.Open(filepath.Join(r.dir, hiddenName, strconv.Itoa(n)))
		if err != nil {
			return errs.New(errs.DataLoss, "file %q: %w", r.name, err)
		}
		r.cur = f
		return nil
	}
	path, _, _ := strings.Cut(r.name, "\x00")
	fd, err := openBelow(int(r.root.Fd()), path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME)
	if err != nil {
		return errs.New(errs.DataLoss, "file %q: %w", r.name, err)
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != r.left {
		f.Close()
		return errs.New(errs.DataLoss, "file %q: has %d bytes, want %d", r.name, st.Size, r.left)
	}
	r.cur = f
	return nil
}

func (r *tarReader) Close() error {
	if r.cur != nil {
		r.cur.Close()
		r.cur = nil
	}
	if r.err == nil {
		r.err = os.ErrClosed
	}
	return errors.Join(r.root.Close(), r.file.Close())
}

// openBelow opens a path below dirfd without following symbolic links.
func openBelow(dirfd int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat2(dirfd, path, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}
