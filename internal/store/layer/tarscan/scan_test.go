package tarscan

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
)

// raw makes tars that archive/tar cannot write.
type raw struct{ bytes.Buffer }

// header writes a ustar header; zero fields have their usual values.
func (r *raw) header(name string, kind byte, size int64, change func(b []byte)) *raw {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", 0o644, 0, 0, size, 0))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	if change != nil {
		change(b)
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	r.Write(b)
	return r
}

func (r *raw) body(s string) *raw {
	r.WriteString(s)
	r.Write(make([]byte, -len(s)&511))
	return r
}

// pax writes a header with records for the next entry.
func (r *raw) pax(records ...string) *raw {
	var b strings.Builder
	for i := 0; i < len(records); i += 2 {
		rest := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(rest)
		for len(fmt.Sprint(n))+len(rest) != n {
			n = len(fmt.Sprint(n)) + len(rest)
		}
		fmt.Fprintf(&b, "%d%s", n, rest)
	}
	return r.header("pax", 'x', int64(b.Len()), nil).body(b.String())
}

func (r *raw) end() []byte { r.Write(make([]byte, 1024)); return r.Bytes() }

func link(target string) func([]byte) { return func(b []byte) { copy(b[157:], target) } }

func dev(major, minor string) func([]byte) {
	return func(b []byte) { copy(b[329:], major+"\x00"); copy(b[337:], minor+"\x00") }
}

func scan(data []byte, lim Limits) ([]string, error) {
	var got []string
	err := Scan(bytes.NewReader(data), lim, func(e *Entry, r io.Reader) error {
		got = append(got, e.summary())
		return nil
	})
	return got, err
}

func (e *Entry) summary() string {
	s := fmt.Sprintf("%s %s", map[Kind]string{Regular: "file", Dir: "dir", Symlink: "sym", Hardlink: "link", CharDev: "chr", BlockDev: "blk",
		Fifo: "fifo", Whiteout: "white", Opaque: "opaque"}[e.Kind], e.Path)
	if e.Link != "" {
		s += " -> " + e.Link
	}
	for _, x := range e.Xattrs {
		s += " " + x.Name + "=" + x.Value
	}
	if e.Sparse {
		s += " sparse"
	}
	return s
}

const (
	aclFrame = "\x02\x00\x00\x00"
	long255  = "ccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc" +
		"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
)

// Each hostile input has a harmless counterpart that must be accepted.
func TestEntries(t *testing.T) {
	one := func(name string) []byte { return new(raw).header(name, '0', 0, nil).end() }
	pax := func(records ...string) []byte { return new(raw).pax(records...).header("f", '0', 0, nil).end() }
	kind := func(k byte, change func([]byte)) []byte { return new(raw).header("f", k, 0, change).end() }
	cases := []struct {
		id   string
		data []byte
		want string // entries, or "!" and a part of the error
	}{
		{"name: climb", one("../x"), `!entry "../x": name climbs with ..`},
		{"name: climb in the middle", one("a/../b"), "!climbs"},
		{"name: climb at the end", one("a/.."), "!climbs"},
		{"name: twin dots", one("a/..b"), "file a/..b"},
		{"name: absolute", one("/etc/x"), "file etc/x"},
		{"name: many slashes", one("//a///b"), "file a/b"},
		{"name: dots", one("./././a/./b/"), "file a/b"},
		{"name: root is a file", one("."), "!root of a layer must be a directory"},
		{"name: root without a name", one(""), "!root of a layer must be a directory"},
		{"name: root is a directory", new(raw).header("./", '5', 0, nil).end(), "dir ."},
		{"name: NUL", pax("path", "a\x00b"), "!header at byte"},
		{"name: long component", pax("path", long255+"c"), "!component is longer than 255"},
		{"name: longest component", pax("path", long255), "file " + long255},
		{"name: long path", pax("path", strings.Repeat("d/", 2048)+"f"), "!longer than 4096"},
		{"name: deep path", pax("path", strings.Repeat("d/", 2000)+"f"), "file " + strings.Repeat("d/", 2000) + "f"},
		{"name: odd bytes", one("\xff\n\\ CON"), "file \xff\n\\ CON"},
		{"link climbs", kind('1', link("../../etc/shadow")), "!climbs"},
		{"link to root", kind('1', link("./")), "!hard link to a directory"},
		{"link", kind('1', link("/./a/b")), "link f -> a/b"},
		{"symlink anywhere", kind('2', link("../../../../etc")), "sym f -> ../../../../etc"},
		{"symlink to nothing", kind('2', nil), "!target of a symbolic link"},
		{"symlink too long", new(raw).pax("linkpath", strings.Repeat("x", 4096)).header("f", '2', 0, nil).end(), "!target of a symbolic link"},
		{"whiteout of nothing", one("d/.wh."), "!whiteout of no name"},
		{"whiteout of self", one("d/.wh.."), "!whiteout of no name"},
		{"whiteout of parent", one("d/.wh..."), "!whiteout of no name"},
		{"whiteout of dots", one("d/.wh...."), "white d/..."},
		{"whiteout", one("./d/.wh.x"), "white d/x"},
		{"opaque", one("d/.wh..wh..opq"), "opaque d"},
		{"opaque root", one(".wh..wh..opq"), "opaque ."},
		{"aufs", one(".wh..wh.aufs"), ""},
		{"aufs links", one(".wh..wh.plnk/1.2"), ""},
		{"whiteout as directory", one("a/.wh.b/c"), "!cannot be a directory"},
		{"looks like one", one("x.wh.y"), "file x.wh.y"},
		{"overlay attributes", pax("SCHILY.xattr.trusted.overlay.opaque", "y", "SCHILY.xattr.user.overlay.redirect", "/x",
			"SCHILY.xattr.trusted.overlay", "z", "SCHILY.xattr.user.overlayx", "k"), "file f user.overlayx=k"},
		{"other attributes", pax("SCHILY.xattr.security.capability", "c", "SCHILY.xattr.trusted.t", "", "SCHILY.xattr.user.u", "1",
			"SCHILY.xattr.system.nfs4_acl", "x", "SCHILY.xattr.os2.x", "x", "SCHILY.xattr.user.", "x", "SCHILY.xattr.", "x"),
			"file f security.capability=c trusted.t= user.u=1"},
		{"user attribute on a link", new(raw).pax("SCHILY.xattr.user.u", "1", "SCHILY.xattr.security.s", "2").header("f", '2', 0, link("x")).end(), "sym f -> x security.s=2"},
		{"ACL", pax("SCHILY.xattr.system.posix_acl_access", aclFrame), "file f system.posix_acl_access=" + aclFrame},
		{"broken ACL", pax("SCHILY.xattr.system.posix_acl_access", "junk!"), "!malformed"},
		{"default ACL on a file", pax("SCHILY.xattr.system.posix_acl_default", aclFrame), "file f"},
		{"too many attributes", pax("SCHILY.xattr.user.a", strings.Repeat("x", 65531)), "!64 KiB"},
		{"long attribute name", pax("SCHILY.xattr.user."+long255, ""), "!name of an extended attribute"},
		{"whiteout device", kind('3', dev("0000000", "0000000")), ""},
		{"null device", kind('3', dev("0000001", "0000003")), "chr f"},
		{"block device 0:0", kind('4', dev("0000000", "0000000")), "blk f"},
		{"device out of range", kind('3', dev("7777777", "0000000")), "!device number"},
		{"fifo", kind('6', nil), "fifo f"},
		{"contiguous", kind('7', nil), "file f"},
		{"old type", kind(0, nil), "file f"},
		{"unknown type", kind('Z', nil), "!type"},
		{"global header", new(raw).header("g", 'g', 0, nil).header("f", '0', 0, nil).end(), "file f"},
		{"owner out of range", pax("uid", "4294967295"), "!owner"},
		{"largest owner", pax("uid", "4294967294", "gid", "2147483647"), "file f"},
		{"negative size", pax("size", "-1"), "!header"},
		{"garbage after the end", append(one("f"), "garbage"...), "file f"},
		{"no end", new(raw).header("f", '0', 0, nil).Bytes(), "file f"},
		{"nothing", nil, ""},
		{"not a tar", []byte(strings.Repeat("x", 1024)), "!header at byte 512"},
		{"cut in a header", one("f")[:100], "!cut short"},
		{"cut in content", new(raw).header("f", '0', 600, nil).body("x").Bytes(), `!cut short at byte 1024 after entry "f"`},
	}
	for _, c := range cases {
		t.Run(c.id, func(t *testing.T) {
			got, err := scan(c.data, Limits{})
			if refusal, ok := strings.CutPrefix(c.want, "!"); ok {
				if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), refusal) {
					t.Errorf("error is %v, want class invalid argument and %q", err, refusal)
				}
				return
			}
			if err != nil || strings.Join(got, "|") != c.want {
				t.Errorf("got %q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestOffsets(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	bodies := map[string]string{"a": "one", "b": "", strings.Repeat("long/", 60) + "c": strings.Repeat("x", 5000), "d": strings.Repeat("y", 512)}
	for name, body := range bodies {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(body)), ModTime: time.Unix(-3, 77), Format: tar.FormatPAX}
		if err := errors.Join(w.WriteHeader(h), func() error { _, err := io.WriteString(w, body); return err }()); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	data := buf.Bytes()
	err := Scan(bytes.NewReader(data), Limits{}, func(e *Entry, r io.Reader) error {
		want := bodies[e.Path]
		if want == "" {
			if e.Offset != -1 {
				t.Errorf("%s: empty, at %d", e.Path, e.Offset)
			}
			return nil
		}
		if e.Offset%512 != 0 || string(data[e.Offset:e.Offset+e.Size]) != want {
			t.Errorf("%s: content is not at %d", e.Path, e.Offset)
		}
		if !e.Mtime.Equal(time.Unix(-3, 77)) {
			t.Errorf("%s: mtime %v", e.Path, e.Mtime)
		}
		return nil // without reading
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTimesAreClamped(t *testing.T) {
	for in, want := range map[string]int64{"-9223372036854775808": minTime, "9223372036854775807": maxTime, "5": 5} {
		err := Scan(bytes.NewReader(new(raw).pax("mtime", in).header("f", '0', 0, nil).end()), Limits{}, func(e *Entry, _ io.Reader) error {
			if e.Mtime.Unix() != want {
				t.Errorf("mtime %s became %d, want %d", in, e.Mtime.Unix(), want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// Sparse files in the formats of GNU tar.
func TestSparse(t *testing.T) {
	want := strings.Repeat("\x00", 1024) + "data" + strings.Repeat("\x00", 1020)
	old := new(raw).header("s", 'S', 512, func(b []byte) {
		copy(b[257:], "ustar  \x00")
		copy(b[386:], "00000002000\x0000000001000\x00") // at 1024, 512 bytes long
		copy(b[410:], "00000004000\x0000000000000\x00") // ends at 2048
		copy(b[483:], "00000004000\x00")                // real size
	}).body("data" + strings.Repeat("\x00", 508)).end()
	pax10 := new(raw).pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "s", "GNU.sparse.realsize", "2048").
		header("GNUSparseFile.0/s", '0', 1024, nil).body("1\n1024\n512\n").body("data" + strings.Repeat("\x00", 508)).end()
	pax01 := new(raw).pax("GNU.sparse.size", "2048", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "1024,512").
		header("s", '0', 512, nil).body("data" + strings.Repeat("\x00", 508)).end()
	for name, data := range map[string][]byte{"old": old, "pax 1.0": pax10, "pax 0.1": pax01} {
		t.Run(name, func(t *testing.T) {
			err := Scan(bytes.NewReader(data), Limits{}, func(e *Entry, r io.Reader) error {
				got, err := io.ReadAll(r)
				if err != nil || string(got) != want || !e.Sparse || e.Offset != -1 || e.Path != "s" || e.Size != 2048 {
					t.Errorf("%s: %q, %v, entry %+v", e.Path, got, err, e)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	var many raw
	for i := range 11 {
		many.header(fmt.Sprint(i), '0', 0, nil)
	}
	data := many.end()
	if _, err := scan(data, Limits{Entries: 11}); err != nil {
		t.Errorf("11 entries of 11: %v", err)
	}
	if _, err := scan(data, Limits{Entries: 10}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "more than 10 entries") {
		t.Errorf("11 entries of 10: %v", err)
	}
	text := new(raw).pax("SCHILY.xattr.user.a", "12345").header("abc", '0', 0, nil).header("l", '2', 0, link("to")).end()
	const size = 3 + 6 + 5 + XattrCost + 1 + 2 // "abc", "user.a" and its value, "l" and its target
	if _, err := scan(text, Limits{Text: size}); err != nil {
		t.Errorf("%d bytes of text of %d: %v", size, size, err)
	}
	if _, err := scan(text, Limits{Text: size - 1}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "names and attributes") {
		t.Errorf("%d bytes of text of %d: %v", size, size-1, err)
	}
	if _, err := scan(data, Limits{Bytes: int64(len(data))}); err != nil {
		t.Errorf("as many bytes as allowed: %v", err)
	}
	if _, err := scan(data, Limits{Bytes: 2048}); !errors.Is(err, errs.Invalid) {
		t.Errorf("too many bytes: %v", err)
	}
	big := new(raw).pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "99999999999999").
		header("s", '0', 512, nil).body("0\n").end()
	if _, err := scan(big, Limits{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("sparse file of 100 TB: %v", err)
	}
}

// endless returns a header and then zeros without end.
type endless struct{ head *bytes.Reader }

func (e endless) Read(p []byte) (int, error) {
	if e.head.Len() > 0 {
		return e.head.Read(p)
	}
	for i := range p {
		p[i] = '1'
	}
	return len(p), nil
}

// The sizes that a header claims cost no memory.
func TestHugeRecordsCostNoMemory(t *testing.T) {
	heads := map[string]*raw{
		"PAX record of 1 GiB": new(raw).header("pax", 'x', 1<<30, nil),
		"long name of 1 GiB":  new(raw).header("././@LongLink", 'L', 1<<30, nil),
		"sparse map":          new(raw).pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "1000000").header("s", '0', 1<<32, nil).body("10000000\n"),
	}
	for name, head := range heads {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := scan2(endless{bytes.NewReader(head.Bytes())})
			runtime.ReadMemStats(&after)
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("error is %v, want class invalid argument", err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
				t.Errorf("allocated %d MiB", grown>>20)
			}
		})
	}
}

// What a driver keeps of an entry costs as much memory as its length, not as much as the header that it came in.
func TestKeptTextsAreNotPartsOfHeaders(t *testing.T) {
	const entries = 200
	var b raw
	for i := range entries {
		b.pax("comment", strings.Repeat("x", 1<<20-200), "path", fmt.Sprintf("file-%d", i), "linkpath", "target",
			"SCHILY.xattr.security.capability", "c", "SCHILY.xattr.trusted.t", "v").header("f", '2', 0, nil)
	}
	data := b.end()
	var kept []Entry
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	err := Scan(bytes.NewReader(data), Limits{}, func(e *Entry, _ io.Reader) error {
		kept = append(kept, *e)
		return nil
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if err != nil || len(kept) != entries || kept[7].summary() != "sym file-7 -> target security.capability=c trusted.t=v" {
		t.Fatalf("%d entries, %v", len(kept), err)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d kept entries take %d MiB", entries, grown>>20)
	}
	runtime.KeepAlive(data)
	runtime.KeepAlive(kept)
}

func scan2(r io.Reader) (n int, err error) {
	err = Scan(r, Limits{}, func(*Entry, io.Reader) error { n++; return nil })
	return n, err
}

// Errors that the tar did not cause are returned as they are.
func TestErrorsOfOthers(t *testing.T) {
	mine := errors.New("mine")
	data := new(raw).header("f", '0', 0, nil).end()
	if err := Scan(bytes.NewReader(data), Limits{}, func(*Entry, io.Reader) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("of visit: %v", err)
	}
	broken := io.MultiReader(bytes.NewReader(data[:512]), failing{mine})
	if _, err := scan2(broken); !errors.Is(err, mine) || errors.Is(err, errs.Invalid) {
		t.Errorf("of the stream: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzScan(f *testing.F) {
	f.Add(new(raw).pax("SCHILY.xattr.user.u", "1", "path", "a/b").header("f", '0', 3, nil).body("abc").header("d/.wh.x", '0', 0, nil).end())
	f.Add(new(raw).pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "2048").header("s", '0', 1024, nil).body("1\n1024\n512\n").body("data").end())
	f.Add(new(raw).header("l", '1', 0, link("./x")).header("s", '2', 0, link("y")).end())
	f.Fuzz(func(t *testing.T, data []byte) {
		err := Scan(bytes.NewReader(data), Limits{Entries: 1000, Bytes: 1 << 20}, func(e *Entry, r io.Reader) error {
			for part := range strings.SplitSeq(e.Path, "/") {
				if part == "" || part == ".." || len(part) > 255 || (part == "." && e.Path != ".") || strings.ContainsRune(part, 0) {
					t.Errorf("path %q", e.Path)
				}
			}
			if e.Offset >= 0 && (e.Offset%512 != 0 || e.Offset > int64(len(data))) {
				t.Errorf("%s: offset %d of %d", e.Path, e.Offset, len(data))
			}
			n, err := io.Copy(io.Discard, r)
			if err == nil && n != e.Size {
				t.Errorf("%s: %d bytes, want %d", e.Path, n, e.Size)
			}
			return err
		})
		if err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("error of another class: %v", err)
		}
	})
}

// BenchmarkScanHeaders scans 100,000 entries without content, with and without PAX headers.
func BenchmarkScanHeaders(b *testing.B) {
	for name, h := range map[string]tar.Header{
		"ustar": {},
		"pax":   {Format: tar.FormatPAX, ModTime: time.Unix(1e9, 5), PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "0123456789abcdef"}},
	} {
		b.Run(name, func(b *testing.B) {
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			for i := range 100_000 {
				h.Name, h.Typeflag = fmt.Sprintf("usr/lib/%d/file-%d", i%50, i), tar.TypeReg
				if err := w.WriteHeader(&h); err != nil {
					b.Fatal(err)
				}
			}
			w.Close()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := scan2(bytes.NewReader(buf.Bytes())); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkScan(b *testing.B) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := make([]byte, 16<<10)
	for i := range 4096 {
		_ = w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/%d/file-%d", i%50, i), Typeflag: tar.TypeReg, Size: int64(len(body))})
		_, _ = w.Write(body)
	}
	w.Close()
	b.SetBytes(int64(buf.Len()))
	for b.Loop() {
		if _, err := scan2(bytes.NewReader(buf.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}
