package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	reader "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/spill"
	"ply/internal/store/layer/erofs/image"
	"ply/internal/store/layer/tarscan"
)

// made is an image with its devices.
type made struct {
	index, tar, side []byte
}

// build makes an image of a tar. What the layers below would provide is filled in with fixed values.
func build(data []byte, lim tarscan.Limits) (*made, error) {
	return buildIn(image.NewTree(), data, lim)
}

func buildIn(t *image.Tree, data []byte, lim tarscan.Limits) (*made, error) {
	m := &made{tar: data}
	err := tarscan.Scan(bytes.NewReader(data), lim, func(e *tarscan.Entry, r io.Reader) error {
		where := image.Extent{Device: 1, Offset: e.Offset}
		if e.Sparse && e.Size > 0 {
			where = image.Extent{Device: 2, Offset: int64(len(m.side))}
			content, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			m.side = append(m.side, content...)
			m.side = append(m.side, make([]byte, -len(content)&511)...)
		}
		return t.Add(e, where)
	})
	if err != nil {
		return nil, err
	}
	missing, err := t.Missing()
	if err != nil {
		return nil, err
	}
	for _, miss := range missing {
		if miss.File {
			if err := t.Fill(miss, lowerFile); err != nil {
				return nil, err
			}
		}
	}
	var buf bytes.Buffer
	size, err := t.Write(&buf, [16]byte{1, 2, 3}, []image.Device{{Tag: "layer.tar", Size: int64(len(data))}, {Tag: "side", Size: int64(len(m.side))}})
	if err != nil {
		return nil, err
	}
	if m.index = buf.Bytes(); size != int64(len(m.index)) {
		return nil, fmt.Errorf("Write says %d bytes and wrote %d", size, len(m.index))
	}
	return m, nil
}

var lowerFile = image.Attr{Mode: unix.S_IFREG | 0o604, UID: 9, Mtime: time.Unix(9, 9)}

// readBack reads an image with an independent reader.
func readBack(m *made) (map[string]*file, error) {
	img, err := reader.Open(bytes.NewReader(m.index), reader.WithExtraDevices(bytes.NewReader(m.tar), bytes.NewReader(m.side)))
	if err != nil {
		return nil, err
	}
	all := map[string]*file{}
	err = fs.WalkDir(img, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		info, err := d.Info()
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		st, ok := info.Sys().(*reader.Stat)
		if !ok {
			return fmt.Errorf("%s: Sys is %T", p, info.Sys())
		}
		f := &file{
			mode: unixMode(st.Mode), uid: st.UID, gid: st.GID, mtime: time.Unix(int64(st.Mtime), int64(st.MtimeNs)),
			size: st.Size, rdev: st.Rdev, xattrs: st.Xattrs, nlink: st.Nlink,
		}
		for name, v := range f.xattrs { // this reader adds a dot to the names of ACLs
			if plain, acl := strings.CutSuffix(name, "."); acl && strings.HasPrefix(name, "system.") {
				delete(f.xattrs, name)
				f.xattrs[plain] = v
			}
		}
		switch f.mode & unix.S_IFMT {
		case unix.S_IFREG:
			content, err := fs.ReadFile(img, p)
			if err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
			f.sum = sha256.Sum256(content)
		case unix.S_IFLNK:
			if f.link, err = fs.ReadLink(img, p); err != nil {
				return fmt.Errorf("%s: %w", p, err)
			}
		case unix.S_IFDIR:
			f.size = 0
		}
		all[p] = f
		return nil
	})
	return all, err
}

func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for _, b := range []struct {
		m fs.FileMode
		u uint32
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if m&b.m != 0 {
			u |= b.u
		}
	}
	switch {
	case m&fs.ModeDir != 0:
		return u | unix.S_IFDIR
	case m&fs.ModeSymlink != 0:
		return u | unix.S_IFLNK
	case m&fs.ModeCharDevice != 0:
		return u | unix.S_IFCHR
	case m&fs.ModeDevice != 0:
		return u | unix.S_IFBLK
	case m&fs.ModeNamedPipe != 0:
		return u | unix.S_IFIFO
	}
	return u | unix.S_IFREG
}

func compare(got, want map[string]*file) []string {
	var lines []string
	names := slices.Collect(maps.Keys(want))
	for p := range got {
		if want[p] == nil {
			names = append(names, p)
		}
	}
	slices.Sort(names)
	for _, p := range names {
		g, w := got[p], want[p]
		switch {
		case g == nil:
			lines = append(lines, fmt.Sprintf("%q is missing", p))
		case w == nil:
			lines = append(lines, fmt.Sprintf("%q is not wanted: %v", p, g))
		case g.mode != w.mode || g.uid != w.uid || g.gid != w.gid || !g.mtime.Equal(w.mtime) || g.size != w.size ||
			g.sum != w.sum || g.link != w.link || g.rdev != w.rdev || !maps.Equal(g.xattrs, w.xattrs) || g.nlink != w.nlink:
			lines = append(lines, fmt.Sprintf("%q:\n got %v\nwant %v", p, g, w))
		}
	}
	return lines
}

// check builds an image twice and compares the bytes, then what a reader sees with the model.
func check(t *testing.T, data []byte, lim tarscan.Limits) *made {
	t.Helper()
	want, wantErr := flatten(data, lim)
	if errors.Is(wantErr, errImpossible) {
		t.Skip(wantErr)
	}
	m, err := build(data, lim)
	if wantErr != nil || err != nil {
		if (wantErr == nil) != (err == nil) || !errors.Is(err, errs.Invalid) {
			t.Fatalf("writer says %v, model %v; want both errs.Invalid", err, wantErr)
		}
		return nil
	}
	again, err := build(data, lim)
	if err != nil || !bytes.Equal(m.index, again.index) {
		t.Fatalf("the same tar gave another image: %v", err)
	}
	got, err := readBack(m)
	if err != nil {
		t.Fatalf("read back: %v", err)
	}
	if lines := compare(got, want); len(lines) > 0 {
		t.Fatalf("image differs:\n%s", strings.Join(lines, "\n"))
	}
	return m
}

func hdr(name string, kind byte) *tar.Header {
	return &tar.Header{Name: name, Typeflag: kind, Mode: 0o640, ModTime: time.Unix(1_500_000_000, 7), Format: tar.FormatPAX}
}

type entry struct {
	*tar.Header
	body string
}

func pack(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		if err := w.WriteHeader(e.Header); err != nil {
			tb.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func file1(name, body string) entry { return entry{hdr(name, tar.TypeReg), body} }
func dir(name string) entry         { return entry{Header: hdr(name+"/", tar.TypeDir)} }
func link(name, to string) entry {
	h := hdr(name, tar.TypeLink)
	h.Linkname = to
	return entry{Header: h}
}
func sym(name, to string) entry {
	h := hdr(name, tar.TypeSymlink)
	h.Linkname = to
	return entry{Header: h}
}
func with(e entry, name, value string) entry {
	if e.PAXRecords == nil {
		e.PAXRecords = map[string]string{}
	}
	e.PAXRecords["SCHILY.xattr."+name] = value
	return e
}

// trees are shapes that the layout must handle.
func trees(tb testing.TB) map[string][]byte {
	many := []entry{dir("big")}
	for i := range 3000 {
		many = append(many, file1(fmt.Sprintf("big/%0*d", 1+i%200, i), strings.Repeat("x", i%1500)))
	}
	deep := strings.TrimSuffix(strings.Repeat("d/", 400), "/")
	odd := func(name string, kind byte, change func(h *tar.Header)) entry {
		h := hdr(name, kind)
		change(h)
		return entry{Header: h}
	}
	var xattrs []entry
	for i := range 60 { // every length of attributes moves the tail
		e := file1(fmt.Sprintf("x%02d", i), strings.Repeat("y", i))
		d := with(dir(fmt.Sprintf("d%02d", i)), "user.n", strings.Repeat("d", i*9))
		s := with(sym(fmt.Sprintf("s%02d", i), strings.Repeat("t", 1+i*7)), "security.a", strings.Repeat("s", i*3))
		xattrs = append(xattrs, with(with(e, "user."+strings.Repeat("k", 1+i), strings.Repeat("v", i*i)), "trusted.t", ""), d, s, file1(d.Name+"f", "1"))
	}
	return map[string][]byte{
		"empty":    pack(tb),
		"scripted": script(tb, []byte("\x04\x01\x00\x02\x00\x00\x06\x00\x00\x05\x03\x00\x00\x03\x07\x04\x05\x03\x02\x01\x00\x03\x01\x20")),
		"root":     pack(tb, odd("./", tar.TypeDir, func(h *tar.Header) { h.Mode, h.Uid = 0o1777, 5 })),
		"many":     pack(tb, many...),
		"deep":     pack(tb, file1(deep+"/f", "deep")),
		"xattrs":   pack(tb, xattrs...),
		"capability": pack(tb, with(with(file1("ping", "elf"), "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
			"system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")),
		"owners_and_times": pack(tb, odd("a", tar.TypeReg, func(h *tar.Header) { h.Uid, h.Gid, h.ModTime = 1<<31-1, 4_000_000_000, time.Unix(-5, 999_999_999) }),
			odd("b", tar.TypeReg, func(h *tar.Header) { h.ModTime, h.Mode = time.Unix(1<<40, 0), 0o7777 }),
			odd("c", tar.TypeDir, func(h *tar.Header) { h.ModTime = time.Unix(-1<<40, 0) })),
		"devices": pack(tb, odd("null", tar.TypeChar, func(h *tar.Header) { h.Devmajor, h.Devminor = 1, 3 }),
			odd("big", tar.TypeBlock, func(h *tar.Header) { h.Devmajor, h.Devminor = 4095, 1_048_575 }), odd("p", tar.TypeFifo, func(*tar.Header) {})),
		"symlinks": pack(tb, sym("a", "x"), sym("b", strings.Repeat("y", 447)), sym("c", strings.Repeat("y", 448)), sym("d", strings.Repeat("y", 449)), sym("e", strings.Repeat("z/", 2047))),
		"links":    pack(tb, file1("a", "one"), link("b", "a"), link("d/c", "./a"), file1("a", "two"), link("e", "a"), link("a", "a"), sym("s", "q"), link("t", "s")),
		"lower_hidden": pack(tb, link("b", "a"), file1(".wh.a", ""), link("g", "d/f"), file1(".wh.d", ""), link("h", "o/f"), file1("o/.wh..wh..opq", ""),
			link("i", "r/f"), file1("r", "file"), link("j", "k/l/m")),
		"lower": pack(tb, link("x", "usr/lib/y"), link("z", "x"), file1("usr/lib/y", "own")),
		"clashes": pack(tb, dir("a"), file1("a/b", "1"), file1("a", "file"), dir("a"), file1("a/c", "2"), dir("a"), sym("a", "b"), file1("a/d", "3"),
			file1("p/q/r", "1"), file1("p", "2")),
		"whiteouts": pack(tb, file1("d/.wh.gone", ""), file1(".wh.x", ""), dir("x"), file1("x/y", "1"), file1("o/a", "1"), file1("o/.wh..wh..opq", ""),
			file1(".wh.both", ""), file1("both", "2"), file1("w/.wh.a", ""), file1("w", "file"), file1(".wh..wh.plnk/12.34", "aufs")),
		"whiteout_parent_lost": pack(tb, file1("a/.wh.b", ""), file1("a", "x"), dir("a")),
		"names":                pack(tb, file1(strings.Repeat("n", 255), "1"), file1("\xff\xfe", "2"), file1("new\nline", "3"), file1("!", "4"), file1(".a", "5"), file1("-", "6"), file1("...", "7")),
	}
}

func TestImageReadsBack(t *testing.T) {
	for name, data := range trees(t) {
		t.Run(name, func(t *testing.T) { check(t, data, tarscan.Limits{}) })
	}
}

func TestDevicesReadsTags(t *testing.T) {
	m, err := build(pack(t, file1("a", "b")), tarscan.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := image.Devices(bytes.NewReader(m.index)); err != nil || !slices.Equal(got, []string{"layer.tar", "side"}) {
		t.Errorf("Devices = %q, %v", got, err)
	}
	for _, bad := range [][]byte{nil, make([]byte, 4096), m.index[:1100]} {
		if got, err := image.Devices(bytes.NewReader(bad)); err == nil {
			t.Errorf("Devices of %d bytes of junk = %q", len(bad), got)
		}
	}
}

// The cost of names and marks in one directory is proportional to their number. The length of the image is checked, not
// time: an image of twice the entries is at most a little more than twice as long.
func TestManyNamesAndMarks(t *testing.T) {
	sizes := map[int]int{}
	for _, n := range []int{20_000, 40_000} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for i := range n {
			h := hdr(fmt.Sprintf("d/%06d", i), tar.TypeReg)
			h.Format = tar.FormatUSTAR
			h.ModTime = time.Unix(5, 0)
			if i%10 == 0 {
				h.Name = fmt.Sprintf("d/.wh.w%06d", i)
			}
			if i%100 == 7 {
				h.Name = fmt.Sprintf("o%d/.wh..wh..opq", i)
			}
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		m, err := build(buf.Bytes(), tarscan.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		sizes[n] = len(m.index)
		moved := 0
		space := spill.NewSpace(0, func() (*os.File, error) { moved++; return os.CreateTemp(t.TempDir(), "") })
		other, err := buildIn(image.NewTreeIn(space), buf.Bytes(), tarscan.Limits{})
		if err = errors.Join(err, space.Close()); err != nil || !bytes.Equal(m.index, other.index) {
			t.Errorf("the image of %d names is another one when they moved to a file: %v", n, err)
		}
		if moved != 1 {
			t.Errorf("%d files for what does not fit into memory", moved)
		}
	}
	if float64(sizes[40_000]) > 2.1*float64(sizes[20_000]) {
		t.Errorf("index sizes %v", sizes)
	}
}

// What a tree takes in memory does not grow with the names as fast as the names and their attributes do, because these move to a file.
func TestManyNamesTakeLittleMemory(t *testing.T) {
	space := spill.NewSpace(1<<20, func() (*os.File, error) { return os.CreateTemp(t.TempDir(), "") })
	defer space.Close()
	tree := image.NewTreeIn(space)
	const n = 300_000
	for i := range n {
		e := tarscan.Entry{Path: fmt.Sprintf("directory-%d/file-%d", i/1000, i), Kind: tarscan.Regular, Size: 1, Mtime: time.Unix(int64(i), 0)}
		if err := tree.Add(&e, image.Extent{Device: 1, Offset: int64(i) * 512}); err != nil {
			t.Fatal(err)
		}
	}
	if got := tree.Memory(); got > 40*n {
		t.Errorf("%d names take %d bytes each", n, got/n)
	}
	if _, err := tree.Write(io.Discard, [16]byte{}, []image.Device{{Tag: "layer.tar", Size: n * 512}}); err != nil {
		t.Fatal(err)
	}
	if got := space.Memory(); got > 40*n {
		t.Errorf("the layout of %d names takes %d bytes each", n, got/n)
	}
}

// One entry may imply many directories. Their number is bounded like that of the entries.
func TestImpliedDirectoriesAreBounded(t *testing.T) {
	tree := image.NewTree()
	var err error
	for i := 0; err == nil && i < 2000; i++ {
		e := &tarscan.Entry{Kind: tarscan.Dir, Path: fmt.Sprintf("%d/", i) + strings.Repeat("a/", 1900) + "x"}
		err = tree.Add(e, image.Extent{})
	}
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "names") {
		t.Errorf("four million implied directories: %v", err)
	}
}

// script turns bytes into entries with few different names, so that they clash; three bytes are one entry.
func script(tb testing.TB, b []byte) []byte {
	parts := []string{"a", "b", "c", "a/b", "b/a", "a/b/c", "c/c/c", ".", "/a/./c", "." + strings.Repeat("n", 250), "a/!", "b/~"}
	pick := func(i byte) string { return parts[int(i)%len(parts)] }
	var entries []entry
	for ; len(b) >= 3 && len(entries) < 200; b = b[3:] {
		name, arg := pick(b[1]), b[2]
		var e entry
		switch b[0] % 10 {
		case 0, 1:
			e = file1(name, strings.Repeat(string('a'+rune(arg%26)), int(arg)*9))
		case 2:
			e = dir(name)
		case 3:
			e = sym(name, strings.Repeat(pick(arg)+"/", 1+int(arg)/8))
		case 4:
			e = link(name, pick(arg))
		case 5:
			e = file1(path.Dir(name)+"/.wh."+path.Base(name), "")
		case 6:
			e = file1(name+"/.wh..wh..opq", "")
		case 7:
			e = with(dir(name), "user."+pick(arg), strings.Repeat("v", int(arg)*2))
		case 8:
			e = with(file1(name, "x"), "trusted.x", strings.Repeat("w", int(arg)))
		case 9:
			h := hdr(name, tar.TypeChar)
			h.Devmajor, h.Devminor = int64(arg%2), int64(arg/2)
			e = entry{Header: h}
		}
		e.Mode, e.Uid = int64(b[0])<<3, int(arg)
		entries = append(entries, e)
	}
	return pack(tb, entries...)
}

// FuzzImage compares the image of a random layer, as an independent reader sees it, with the model.
func FuzzImage(f *testing.F) {
	f.Add([]byte("\x00\x00\x09\x02\x00\x00\x00\x03\x05\x03\x00\x04\x04\x01\x03"))
	f.Add([]byte("\x05\x00\x00\x02\x00\x00\x00\x05\x07\x06\x00\x00\x04\x06\x05\x09\x01\x00"))
	f.Add([]byte("\x07\x03\xf0\x03\x03\xff\x07\x03\x80\x06\x07\x00\x04\x00\x00\x04\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) { check(t, script(t, b), tarscan.Limits{}) })
}
