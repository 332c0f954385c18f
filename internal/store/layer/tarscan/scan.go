package tarscan

import (
	"archive/tar"
	"bufio"
	"cmp"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/safepath"
)

// Scan reads r to its end and calls visit for every entry, in the order of the tar. Data is the content of a Regular, with
// the holes of a sparse file as zeros, and empty for other kinds; visit need not read it. What follows the end-of-archive
// mark is read and ignored. Scan reads ahead of r by at most the size of its buffer.
func Scan(r io.Reader, lim Limits, visit func(e *Entry, data io.Reader) error) error {
	if lim.Entries == 0 {
		lim.Entries = MaxEntries
	}
	if lim.Bytes == 0 {
		lim.Bytes = MaxBytes
	}
	if lim.Text == 0 {
		lim.Text = MaxText
	}
	c := &counter{r: bufio.NewReaderSize(r, 64<<10), limit: lim.Bytes}
	s := scanner{c: c, tr: tar.NewReader(c), lim: lim}
	for {
		h, err := s.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return s.broken(err)
		}
		if err := s.one(h, visit); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		return s.broken(err)
	}
	return nil
}

type scanner struct {
	c       *counter
	tr      *tar.Reader
	lim     Limits
	entries int
	bytes   int64
	text    int64
	last    string // name of the previous entry, for errors about what follows it
	entry   Entry
}

func (s *scanner) one(h *tar.Header, visit func(*Entry, io.Reader) error) error {
	if s.entries++; s.entries > s.lim.Entries {
		return errs.New(errs.Invalid, "layer tar: more than %d entries", s.lim.Entries)
	}
	s.last = h.Name
	s.entry = Entry{Offset: -1}
	e := &s.entry
	keep, err := s.read(h, e)
	if err != nil {
		return errs.New(errs.Invalid, "layer tar: entry %.200q: %w", h.Name, err)
	}
	if !keep {
		return nil
	}
	if s.text += e.cost(); s.text > s.lim.Text {
		return errs.New(errs.Invalid, "layer tar: more than %d bytes of names and attributes", s.lim.Text)
	}
	detach(h, e)
	var data io.Reader = eof{}
	if e.Kind == Regular && e.Size > 0 {
		data = s.tr
		if !e.Sparse {
			e.Offset = s.c.n
		}
	}
	if err := visit(e, data); err != nil {
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return s.broken(err)
		}
		return err
	}
	return nil
}

// detach copies the texts of e that are parts of a PAX header. Such a header is one string of up to 1 MiB, and a driver that
// keeps a name of a few bytes would keep all of it. Texts of other headers are strings of their own.
func detach(h *tar.Header, e *Entry) {
	if len(h.PAXRecords) == 0 {
		return
	}
	e.Path, e.Link = strings.Clone(e.Path), strings.Clone(e.Link)
	for i, x := range e.Xattrs {
		e.Xattrs[i] = Xattr{strings.Clone(x.Name), strings.Clone(x.Value)}
	}
}

// broken adds the position to an error of archive/tar or of the stream.
func (s *scanner) broken(err error) error {
	if err == s.c.err && s.c.err != nil && err != io.ErrUnexpectedEOF {
		return err // the tar is not the cause
	}
	after := ""
	if s.last != "" {
		after = " after entry " + quote(s.last)
	}
	switch {
	case errors.Is(err, errTooLong):
		return errs.New(errs.Invalid, "layer tar: longer than %d bytes", s.lim.Bytes)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Invalid, "layer tar: cut short at byte %d%s", s.c.n, after)
	case errors.Is(err, tar.ErrFieldTooLong):
		return errs.New(errs.Invalid, "layer tar: header at byte %d%s: a field is longer than 1 MiB", s.c.n, after)
	default:
		return errs.New(errs.Invalid, "layer tar: header at byte %d%s: %w", s.c.n, after, err)
	}
}

func quote(name string) string {
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	return "\"" + strings.ToValidUTF8(name, "�") + "\""
}

// read converts a header into e. Keep is false for entries that have no meaning in a layer.
func (s *scanner) read(h *tar.Header, e *Entry) (keep bool, err error) {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return false, nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, 0:
		e.Kind = Regular
	case tar.TypeDir:
		e.Kind = Dir
	case tar.TypeSymlink:
		e.Kind = Symlink
	case tar.TypeLink:
		e.Kind = Hardlink
	case tar.TypeChar:
		e.Kind = CharDev
	case tar.TypeBlock:
		e.Kind = BlockDev
	case tar.TypeFifo:
		e.Kind = Fifo
	default:
		return false, plainError("type " + quote(string(h.Typeflag)) + " is not known")
	}
	if e.Path, err = safepath.Clean(h.Name); err != nil {
		return false, reason(err)
	}
	if e.Path == "." && e.Kind != Dir {
		return false, plainError("the root of a layer must be a directory")
	}
	if keep, err := marker(e); !keep || err != nil || e.Kind == Whiteout || e.Kind == Opaque {
		return keep, err
	}
	if err := attributes(h, e); err != nil {
		return false, err
	}
	return s.content(h, e)
}

const (
	whPrefix = ".wh."
	whMeta   = ".wh..wh."
	whOpaque = ".wh..wh..opq"
)

// marker recognises whiteouts in e.Path.
func marker(e *Entry) (keep bool, err error) {
	if !strings.Contains(e.Path, whPrefix) {
		return true, nil
	}
	dir, base := path.Split(e.Path)
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whMeta) {
			return false, nil // below .wh..wh.plnk and the like
		}
		if strings.HasPrefix(part, whPrefix) {
			return false, plainError("a whiteout name cannot be a directory")
		}
	}
	name, ok := strings.CutPrefix(base, whPrefix)
	switch {
	case !ok:
		return true, nil
	case base == whOpaque:
		e.Kind, e.Path = Opaque, path.Clean(dir)
		return true, nil
	case name == "" || name == "." || name == "..":
		return false, plainError("whiteout of no name")
	case strings.HasPrefix(base, whMeta):
		return false, nil
	}
	e.Kind, e.Path = Whiteout, path.Join(dir, name)
	return true, nil
}

func attributes(h *tar.Header, e *Entry) error {
	const maxID = 1<<32 - 2
	if h.Uid < 0 || int64(h.Uid) > maxID || h.Gid < 0 || int64(h.Gid) > maxID {
		return plainError("owner is out of range")
	}
	e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	e.Mode = uint32(h.Mode) & 0o7777
	e.Mtime = clampTime(h.ModTime)
	return xattrs(h.PAXRecords, e)
}

func (s *scanner) content(h *tar.Header, e *Entry) (keep bool, err error) {
	switch e.Kind {
	case Regular:
		e.Size, e.Sparse = h.Size, sparse(h)
		if s.bytes += h.Size; h.Size < 0 || h.Size > s.lim.Bytes || s.bytes > s.lim.Bytes {
			return false, plainError("the files of the layer are larger than its limit")
		}
	case Symlink:
		e.Link, e.Mode = h.Linkname, 0o777
		if e.Link == "" || len(e.Link) > maxTarget || strings.IndexByte(e.Link, 0) >= 0 {
			return false, plainError("the target of a symbolic link must have 1 to 4095 bytes and no NUL")
		}
	case Hardlink:
		if e.Link, err = safepath.Clean(h.Linkname); err != nil {
			return false, reason(err)
		}
		if e.Link == "." {
			return false, plainError("hard link to a directory")
		}
	case CharDev, BlockDev:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return false, plainError("device number is out of range")
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
		return e.Kind == BlockDev || e.Major != 0 || e.Minor != 0, nil
	}
	return true, nil
}

// sparse reports whether archive/tar assembles the content from pieces.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

const paxXattr = "SCHILY.xattr."

func xattrs(records map[string]string, e *Entry) error {
	total := 0
	for k, v := range records {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok || !carried(name, e.Kind) {
			continue
		}
		if len(name) > 255 {
			return plainError("the name of an extended attribute is longer than 255 bytes")
		}
		if total += len(name) + len(v); total > maxXattrs {
			return plainError("more than 64 KiB of extended attributes")
		}
		if strings.HasPrefix(name, "system.posix_acl_") && !validACL(v) {
			return plainError(name + " is malformed")
		}
		e.Xattrs = append(e.Xattrs, Xattr{name, v})
	}
	slices.SortFunc(e.Xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// carried reports whether a layer can have the attribute.
func carried(name string, kind Kind) bool {
	space, rest, _ := strings.Cut(name, ".")
	if rest == "" {
		return false
	}
	switch space {
	case "user":
		return (kind == Regular || kind == Dir) && rest != "overlay" && !strings.HasPrefix(rest, "overlay.")
	case "trusted":
		return rest != "overlay" && !strings.HasPrefix(rest, "overlay.")
	case "security":
		return true
	}
	return kind != Symlink && (name == "system.posix_acl_access" || name == "system.posix_acl_default" && kind == Dir)
}

// validACL checks the structure of a POSIX ACL: version 2, then entries of 8 bytes.
func validACL(v string) bool {
	return len(v) >= 4 && (len(v)-4)%8 == 0 && v[0] == 2 && v[1] == 0 && v[2] == 0 && v[3] == 0
}

// plainError is a reason without an object: the caller adds the entry and the class.
type plainError string

func (e plainError) Error() string { return string(e) }

// reason removes the path from an error of safepath, because the caller names it.
func reason(err error) error {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		if i := strings.LastIndex(e.Msg, ": "); i >= 0 {
			return plainError("name " + e.Msg[i+2:])
		}
	}
	return err
}

var errTooLong = errors.New("stream is longer than its limit")

// counter counts the bytes of the tar that were read, stops at a limit and keeps the first error of the stream.
type counter struct {
	r     *bufio.Reader
	n     int64
	limit int64
	err   error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.n += int64(n); c.n > c.limit {
		return n, errTooLong
	}
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// Seek lets archive/tar skip content without copying it. It supports only forward seeks from the current position.
func (c *counter) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || off < 0 {
		return 0, errors.ErrUnsupported
	}
	for off > 0 && c.n <= c.limit {
		n, err := c.r.Discard(int(min(off, 1<<30)))
		c.n, off = c.n+int64(n), off-int64(n)
		if err == io.EOF {
			break // the next read reports it
		}
		if err != nil {
			c.err = err
			return c.n, err
		}
	}
	return c.n, nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }
