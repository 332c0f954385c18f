package fileop

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/build/tree"
	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Limits bounds what one archive may unpack to. Zero means the default, which is as much as one layer may have.
type Limits struct {
	Entries int   // default 2,000,000
	Bytes   int64 // of all files together; default 64 GiB
}

const (
	maxEntries   = 2_000_000
	maxPAX       = 1 << 20  // bytes of the extended header of one entry
	maxDirectory = 64 << 20 // bytes of the directory of a zip, all of which is in memory at once
)

// budget is what an archive may still unpack to.
type budget struct {
	limits  Limits
	entries int
	bytes   int64
}

func newBudget(l Limits) *budget {
	b := &budget{limits: Limits{Entries: cmp.Or(l.Entries, maxEntries), Bytes: cmp.Or(l.Bytes, oci.MaxLayerSize)}}
	b.entries, b.bytes = b.limits.Entries, b.limits.Bytes
	return b
}

// take counts an entry with size bytes, before any of them is unpacked.
func (b *budget) take(size uint64) error {
	if b.entries--; b.entries < 0 {
		return errs.New(errs.Invalid, "the archive has more than %d entries", b.limits.Entries)
	}
	if size > uint64(b.bytes) {
		return errs.New(errs.Invalid, "the archive unpacks to more than %d bytes", b.limits.Bytes)
	}
	b.bytes -= int64(size)
	return nil
}

// unpack unpacks an item into the destination if it is an archive: a tar, compressed or not, or a zip.
func (c *copying) unpack(item string) (bool, error) {
	from := c.step.From
	info, err := from.Stat(item, true)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return false, missing(c.do.Src)
	}
	if err != nil || !info.IsRegular() {
		return false, err
	}
	done := false
	err = from.Walk(item, tree.WalkOptions{Follow: true, Context: c.ctx}, func(e *tree.Entry) error {
		f, err := e.Open()
		if err != nil {
			return err
		}
		defer f.Close()
		switch kind, err := c.archiveKind(f); {
		case err != nil || kind == "":
			return err
		case kind == "zip":
			done = true
			err = c.unzip(f, info.Size)
			return wrapArchive(item, err)
		}
		done = true
		return wrapArchive(item, c.untar(f))
	})
	return done, err
}

// wrapArchive names the archive in an error.
func wrapArchive(item string, err error) error {
	item = strings.TrimPrefix(item, "/")
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tar.ErrHeader), errors.Is(err, zip.ErrFormat), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, zip.ErrChecksum):
		return errs.New(errs.Invalid, "%s: damaged archive: %v", item, err)
	}
	return fmt.Errorf("%s: %w", item, err)
}

// archiveKind returns "tar", "zip" or "", judged by content. It leaves f at the start.
func (c *copying) archiveKind(f *os.File) (string, error) {
	var magic [4]byte
	n, err := io.ReadFull(f, magic[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	if m := string(magic[:n]); m == "PK\x03\x04" || m == "PK\x05\x06" {
		return "zip", nil
	}
	kind := ""
	if r, _, err := compress.NewReader(c.ctx, bufio.NewReader(f)); err == nil {
		if _, err := tar.NewReader(r).Next(); err == nil {
			kind = "tar"
		}
		if err := r.Close(); err != nil && kind != "" {
			return "", err
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return kind, err
}

// unpackRoot makes the destination of an archive, a directory, and returns its resolved path.
func (c *copying) unpackRoot() (string, error) {
	top, err := c.l.resolve("/", c.do.Dest, true)
	if err != nil {
		return "", err
	}
	return top, c.l.mkdirAll(top, attrs{mode: 0o755, uid: c.uid, gid: c.gid, time: c.time(c.do.Time)})
}

// place returns the resolved path of a name in an archive, and makes the directories above it. Links that lead there are those of the destination, which
// is the root for them.
func (c *copying) place(top, name string) (string, error) {
	clean := path.Clean("/" + name)
	if clean == "/" {
		return top, nil
	}
	up, err := c.l.resolve(top, path.Dir(clean), true)
	if err != nil {
		return "", err
	}
	if err := c.l.mkdirAll(up, attrs{mode: 0o755, uid: c.uid, gid: c.gid, time: c.time(c.do.Time)}); err != nil {
		return "", err
	}
	return path.Join(up, path.Base(clean)), nil
}

func (c *copying) untar(f *os.File) error {
	r, _, err := compress.NewReader(c.ctx, bufio.NewReaderSize(f, 1<<16))
	if err != nil {
		return err
	}
	defer r.Close()
	top, err := c.unpackRoot()
	if err != nil {
		return err
	}
	tr := tar.NewReader(r)
	left := newBudget(c.o.Limits)
	for {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := left.take(uint64(max(h.Size, 0))); err != nil {
			return err
		}
		if err := c.tarEntry(top, h, tr); err != nil {
			return err
		}
	}
}

func (c *copying) tarEntry(top string, h *tar.Header, r io.Reader) error {
	if strings.ContainsRune(h.Name, 0) || len(h.Name) > unix.PathMax {
		return errs.New(errs.Invalid, "the archive has the name %.80q", h.Name)
	}
	a := attrs{mode: uint32(h.Mode) & 0o7777, uid: uint32(h.Uid), gid: uint32(h.Gid), time: h.ModTime}
	if c.chown {
		a.uid, a.gid = c.uid, c.gid
	}
	if c.do.Time != nil {
		a.time = *c.do.Time
	}
	size := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || name != "security.capability" && !strings.HasPrefix(name, "user.") {
			continue
		}
		if size += len(value); size > maxPAX {
			return errs.New(errs.Invalid, "%s: extended attributes have more than %d bytes", h.Name, maxPAX)
		}
		if a.xattrs == nil {
			a.xattrs = map[string]string{}
		}
		a.xattrs[name] = value
	}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return errs.New(errs.Invalid, "%s: the archive has an entry of type %q", h.Name, h.Typeflag)
	}
	p, err := c.place(top, h.Name)
	if err != nil {
		return err
	}
	old, _, err := c.l.lookup(p)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if p == top {
			return nil // the destination keeps its attributes
		}
		return c.l.mkdir(p, a)
	}
	if old != nil && old.isDir() {
		return errs.New(errs.Invalid, "cannot overwrite directory %s with the archive's %s", p, h.Name)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return c.l.file(p, h.Size, reader{c.ctx, r}, a)
	case tar.TypeSymlink:
		return c.l.symlink(p, h.Linkname, a)
	case tar.TypeLink:
		to, err := c.l.resolve(top, h.Linkname, false)
		if err != nil {
			return err
		}
		return c.l.hardLink(p, to, a)
	}
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	return c.l.special(p, kind, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)), a)
}

func (c *copying) unzip(f *os.File, size int64) error {
	at := &directoryReader{file: f, left: maxDirectory}
	z, err := zip.NewReader(at, size)
	if err != nil {
		return err
	}
	at.open = true
	left := newBudget(c.o.Limits)
	top, err := c.unpackRoot()
	if err != nil {
		return err
	}
	for _, e := range z.File {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := left.take(e.UncompressedSize64); err != nil {
			return err
		}
		if err := c.zipEntry(top, e); err != nil {
			return err
		}
	}
	return nil
}

// directoryReader reads a zip and bounds how much of it the directory has, because the directory is kept in memory.
type directoryReader struct {
	file io.ReaderAt
	left int64
	open bool // the directory was read
}

// ReadAt implements io.ReaderAt.
func (r *directoryReader) ReadAt(p []byte, off int64) (int, error) {
	if !r.open {
		if r.left -= int64(len(p)); r.left < 0 {
			return 0, errs.New(errs.Invalid, "the archive has a directory of more than %d bytes", maxDirectory)
		}
	}
	return r.file.ReadAt(p, off)
}

const maxLinkTarget = unix.PathMax

func (c *copying) zipEntry(top string, e *zip.File) error {
	if strings.ContainsRune(e.Name, 0) || strings.ContainsRune(e.Name, '\\') || len(e.Name) > unix.PathMax {
		return errs.New(errs.Invalid, "the archive has the name %.80q", e.Name)
	}
	m := e.Mode()
	a := attrs{mode: unixMode(m), uid: c.uid, gid: c.gid, time: e.Modified.UTC()}
	if c.do.Time != nil {
		a.time = *c.do.Time
	}
	p, err := c.place(top, e.Name)
	if err != nil {
		return err
	}
	if m.IsDir() || strings.HasSuffix(e.Name, "/") {
		if p == top {
			return nil
		}
		return c.l.mkdir(p, a)
	}
	if old, _, err := c.l.lookup(p); err != nil || old != nil && old.isDir() {
		return errors.Join(err, errs.New(errs.Invalid, "cannot overwrite directory %s with the archive's %s", p, e.Name))
	}
	r, err := e.Open()
	if err != nil {
		return errs.New(errs.Invalid, "%s: %v", e.Name, err)
	}
	defer r.Close()
	switch {
	case m&fs.ModeSymlink != 0:
		target, err := io.ReadAll(io.LimitReader(r, maxLinkTarget+1))
		if err != nil {
			return err
		}
		if len(target) > maxLinkTarget {
			return errs.New(errs.Invalid, "%s: the target of the link has more than %d bytes", e.Name, maxLinkTarget)
		}
		return c.l.symlink(p, string(target), a)
	case !m.IsRegular():
		return errs.New(errs.Invalid, "%s: the archive has an entry of type %s", e.Name, m.Type())
	}
	if err := c.l.file(p, int64(e.UncompressedSize64), reader{c.ctx, r}, a); err != nil {
		return err
	}
	// The checksum is compared at the end of the entry only.
	n, err := r.Read(make([]byte, 1))
	switch {
	case n > 0:
		return errs.New(errs.Invalid, "%s: the archive has more than the %d bytes that it says", e.Name, e.UncompressedSize64)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}
