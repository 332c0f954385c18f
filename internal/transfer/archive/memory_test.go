package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/image/imagetest"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

// What a load keeps of an entry costs as much memory as its length, not as much as the header that it came in.
func TestKeptNamesAreNotPartsOfHeaders(t *testing.T) {
	const entries = 100
	s := newSide(t, archive.Options{})
	s.Image(imagetest.Spec{Name: "ubuntu:14.04"})
	benign := s.save(t, "docker", "ubuntu:14.04")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	long := map[string]string{"PLY.comment": strings.Repeat("x", 1<<20-500)}
	put := func(h tar.Header, body string) {
		t.Helper()
		h.Format, h.PAXRecords, h.Size = tar.FormatPAX, long, int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	// A name with a byte that ustar cannot store is a part of the PAX header.
	for i := range entries {
		put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("é%d", i)}, "x")
		put(tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("l%d", i), Linkname: "é0"}, "")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	b.Write(benign)
	d := newSide(t, archive.Options{})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, after := heap(), uint64(0)
	r := io.MultiReader(bytes.NewReader(b.Bytes()), atEnd(func() { after = heap() }))
	if err := d.Load(t.Context(), r, transfer.LoadOptions{}, transfer.Discard); err != nil {
		t.Fatal(err)
	}
	if grown := int64(after) - int64(before); grown > 24<<20 {
		t.Errorf("%d names take %d MiB", 2*entries, grown>>20)
	}
	runtime.KeepAlive(b)
}

// atEnd is an empty reader that calls a function when it is read.
type atEnd func()

func (f atEnd) Read([]byte) (int, error) { f(); return 0, io.EOF }

// Empty files and links count as memory too.
func TestEveryEntryCounts(t *testing.T) {
	for n, refuse := range map[int]bool{3000: false, 5000: true} {
		s := newSide(t, archive.Options{Limits: archive.Limits{Metadata: 1 << 20}})
		s.Image(imagetest.Spec{Name: "ubuntu:14.04"})
		names, items := list(t, s.save(t, "docker", "ubuntu:14.04"))
		for i := range n {
			name := fmt.Sprint(i)
			names = append(names, name)
			items[name] = item{typ: tar.TypeReg}
		}
		_, err := s.tryLoad(t, rebuild(t, names, items), transfer.LoadOptions{})
		if errors.Is(err, errs.Invalid) != refuse || !refuse && err != nil {
			t.Errorf("%d empty files with 1 MiB for metadata: %v", n, err)
		}
	}
}
