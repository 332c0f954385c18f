package layertest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ply/internal/oci"
)

// entry is one entry of a test's tar.
type entry struct {
	name   string
	kind   byte // tar.Type…; 0 is a regular file, or a directory when the name ends in a slash
	body   string
	mode   int64 // 0 is 0644, or 0755 for a directory
	uid    int
	gid    int
	mtime  time.Time // zero is testTime
	link   string
	major  int64
	minor  int64
	xattrs map[string]string
}

var testTime = time.Unix(1_600_000_000, 123_456_789)

func dir(name string) entry            { return entry{name: name + "/", kind: tar.TypeDir} }
func file(name, body string) entry     { return entry{name: name, body: body} }
func symlink(name, to string) entry    { return entry{name: name, kind: tar.TypeSymlink, link: to} }
func hardlink(name, to string) entry   { return entry{name: name, kind: tar.TypeLink, link: to} }
func (e entry) chmod(mode int64) entry { e.mode = mode; return e }
func (e entry) chown(uid, gid int) entry {
	e.uid, e.gid = uid, gid
	return e
}
func (e entry) at(t time.Time) entry { e.mtime = t; return e }
func (e entry) xattr(name, value string) entry {
	x := map[string]string{name: value}
	for k, v := range e.xattrs {
		x[k] = v
	}
	e.xattrs = x
	return e
}

// header converts e for archive/tar.
func (e entry) header() *tar.Header {
	h := &tar.Header{
		Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid,
		ModTime: e.mtime, Size: int64(len(e.body)), Devmajor: e.major, Devminor: e.minor, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if h.Mode < 0 { // a mode of 0
		h.Mode = 0
	}
	if h.ModTime.IsZero() {
		h.ModTime = testTime
	}
	for k, v := range e.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	return h
}

// makeTar writes entries in this order.
func makeTar(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(e.header()); err != nil {
			tb.Fatalf("make tar: %s: %v", e.name, err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			tb.Fatalf("make tar: %s: %v", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatalf("make tar: %v", err)
	}
	return buf.Bytes()
}

func diffID(data []byte) oci.DiffID { return oci.DiffID(oci.DigestOf(data)) }

// noise returns deterministic content that cannot be compressed.
func noise(seed uint64, n int) string {
	src := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(src.Uint32())
	}
	return string(b)
}

// rewrite is makeTar with another header format.
func rewrite(tb testing.TB, format tar.Format, entries ...entry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.header()
		h.Format, h.PAXRecords, h.ModTime = format, nil, h.ModTime.Truncate(time.Second)
		if err := w.WriteHeader(h); err != nil {
			tb.Fatalf("make tar: %s: %v", e.name, err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			tb.Fatalf("make tar: %s: %v", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

// rawTar writes entries block by block, for tars that archive/tar refuses to write.
type rawTar struct{ bytes.Buffer }

// header adds one block; change may change its bytes before the checksum is computed.
func (r *rawTar) header(name string, kind byte, size int64, change func(block []byte)) {
	var b [512]byte
	copy(b[:100], name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], fmt.Sprintf("%011o\x00", testTime.Unix()))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	if change != nil {
		change(b[:])
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	r.Write(b[:])
}

// body adds content, padded to whole blocks.
func (r *rawTar) body(s string) {
	r.WriteString(s)
	r.Write(make([]byte, (512-len(s)%512)%512))
}

// pax adds an extended header for the next entry.
func (r *rawTar) pax(kind byte, records ...string) {
	var all string
	for i := 0; i < len(records); i += 2 {
		rest := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(rest) + 1
		for len(fmt.Sprint(n))+len(rest) != n {
			n++
		}
		all += fmt.Sprint(n) + rest
	}
	r.header("pax", kind, int64(len(all)), nil)
	r.body(all)
}

func (r *rawTar) end() []byte {
	r.Write(make([]byte, 1024))
	return r.Bytes()
}

type namedTar struct {
	name string
	data []byte
}

// sparseTars returns, in each sparse format, a file of 10,000 bytes with "AAAA…" at 0 and "BBBB…" at 8192.
func sparseTars(tb testing.TB) []namedTar {
	tb.Helper()
	data := strings.Repeat("A", 512) + strings.Repeat("B", 1024)
	gnu := &rawTar{}
	gnu.header("sparse", 'S', int64(len(data)), func(b []byte) {
		copy(b[257:], "ustar  \x00")
		for i, v := range []int64{0, 512, 8192, 1024, 10_000, 0} {
			copy(b[386+12*i:], fmt.Sprintf("%011o\x00", v))
		}
		copy(b[483:], fmt.Sprintf("%011o\x00", 10_000))
	})
	gnu.body(data)
	gnu.header("after", '0', 1, nil)
	gnu.body("x")

	pax0 := &rawTar{}
	pax0.pax('x', "GNU.sparse.size", "10000", "GNU.sparse.numblocks", "2",
		"GNU.sparse.offset", "0", "GNU.sparse.numbytes", "512", "GNU.sparse.offset", "8192", "GNU.sparse.numbytes", "1024")
	pax0.header("sparse", '0', int64(len(data)), nil)
	pax0.body(data)

	pax01 := &rawTar{}
	pax01.pax('x', "GNU.sparse.size", "10000", "GNU.sparse.numblocks", "2", "GNU.sparse.map", "0,512,8192,1024", "GNU.sparse.name", "sparse")
	pax01.header("GNUSparseFile.1/sparse", '0', int64(len(data)), nil)
	pax01.body(data)

	pax1 := &rawTar{}
	pax1.pax('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "d/sparse", "GNU.sparse.realsize", "10000")
	table := "2\n0\n512\n8192\n1024\n"
	table += strings.Repeat("\x00", 512-len(table))
	pax1.header("d/GNUSparseFile.1/sparse", '0', int64(len(table)+len(data)), nil)
	pax1.body(table + data)

	global := &rawTar{}
	global.pax('g', "comment", "made by hand")
	global.header("after", '0', 1, nil)
	global.body("x")
	return []namedTar{{"gnu", gnu.end()}, {"pax0.0", pax0.end()}, {"pax0.1", pax01.end()}, {"pax1.0", pax1.end()}, {"global", global.end()}}
}
