package fileop

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime/metrics"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"ply/internal/build/ops"
	"ply/internal/errs"
)

// zeros reads as n zeros.
func zeros(n int64) io.Reader { return io.LimitReader(zero{}, n) }

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// bombTar writes a tar with one file of size zeros.
func bombTar(w io.Writer, size int64) error {
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: size, Mode: 0o644}); err != nil {
		return err
	}
	if _, err := io.Copy(tw, zeros(size)); err != nil {
		return err
	}
	return tw.Close()
}

func bombIn(t *testing.T, kind string, size int64) string {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "gz":
		w = gzip.NewWriter(&b)
	case "xz":
		c := exec.Command("xz", "-0")
		c.Stdout = &b
		in, err := c.StdinPipe()
		if err == nil {
			err = c.Start()
		}
		if err == nil {
			err = errors.Join(bombTar(in, size), in.Close(), c.Wait())
		}
		if err != nil {
			t.Fatal(err)
		}
		return b.String()
	case "zst":
		w, err = zstd.NewWriter(&b)
	case "zip":
		z := zip.NewWriter(&b)
		f, err := z.Create("zeros")
		if err == nil {
			_, err = io.Copy(f, zeros(size))
		}
		if err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if err == nil {
		err = bombTar(w, size)
	}
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return b.String()
}

// peak is a writer that notes how large the heap was.
type peak struct{ written, heap int64 }

func heap() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

func (p *peak) Write(b []byte) (int, error) {
	if p.written>>20 != (p.written+int64(len(b)))>>20 {
		p.heap = max(p.heap, heap())
	}
	p.written += int64(len(b))
	return len(b), nil
}

func unpackBomb(t *testing.T, data string, l Limits) (peak, error) {
	t.Helper()
	src := makeTree(t, true, "bomb = "+data)
	var out peak
	do := cp("/bomb", "/to/", func(c *ops.Copy) { c.Unpack = true })
	err := Write(context.Background(), &out, nil, []Step{{Do: do, From: src}}, Options{Now: now, Limits: l})
	return out, err
}

// An archive that unpacks to more than the limit ends with an error that names it, and one that just fits is unpacked. Neither takes memory for what it unpacks to.
func TestBombs(t *testing.T) {
	const limit = 32 << 20
	for _, kind := range []string{"gz", "xz", "zst", "zip"} {
		t.Run(kind, func(t *testing.T) {
			for _, over := range []int64{0, 1} {
				data := bombIn(t, kind, limit+over)
				if len(data) > 1<<20 {
					t.Fatalf("the archive has %d bytes: it is no bomb", len(data))
				}
				before := heap()
				out, err := unpackBomb(t, data, Limits{Bytes: limit})
				if over == 0 && (err != nil || out.written < limit) {
					t.Errorf("an archive that fits: %d bytes, %v", out.written, err)
				}
				if over > 0 && !(errors.Is(err, errs.Invalid) && strings.Contains(err.Error(), "bomb: the archive unpacks to more than 33554432 bytes") && out.written < 1<<18) {
					t.Errorf("a bomb: %d bytes, %v", out.written, err)
				}
				if grown := out.heap - before; grown > limit {
					t.Errorf("unpacking took %d bytes of memory", grown)
				}
			}
		})
	}
}

// The limits hold by default, for sizes that an archive only claims, and for many files together.
func TestBombsThatClaim(t *testing.T) {
	claims := func(sizes ...int64) string {
		var b bytes.Buffer
		for _, n := range sizes {
			if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: n, Mode: 0o644, Format: tar.FormatPAX}); err != nil {
				t.Fatal(err)
			}
			b.Write(make([]byte, min(n, 512)))
		}
		return b.String()
	}
	zipClaims := func(n uint64) string {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		h := &zip.FileHeader{Name: "f", Method: zip.Deflate, UncompressedSize64: n, CompressedSize64: 2}
		h.SetMode(0o644)
		f, err := w.CreateRaw(h)
		if err == nil {
			_, err = f.Write([]byte{3, 0})
		}
		if err != nil || w.Close() != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	names := func(n int) string {
		var entries []entry
		for i := range n {
			entries = append(entries, entry{name: fmt.Sprint("f", i), text: "x", mode: 0o644})
		}
		return tarOf(t, entries...)
	}
	zipNames := func(n int) string {
		var entries []entry
		for i := range n {
			entries = append(entries, entry{name: fmt.Sprint("f", i), text: "x", mode: 0o644})
		}
		return zipOf(t, entries...)
	}
	long := strings.Repeat(strings.Repeat("n", 200)+"/", 21)
	for _, c := range []struct {
		name, data string
		limits     Limits
		fails      string
	}{
		{"one byte too many", claims(64<<30 + 1), Limits{}, "bomb: the archive unpacks to more than 68719476736 bytes"},
		{"as much as a layer may have", claims(64 << 30), Limits{}, "damaged archive"},
		{"as many bytes as fit", claims(512, 512), Limits{Bytes: 1024}, ""},
		{"together", claims(512, 513), Limits{Bytes: 1024}, "unpacks to more than 1024 bytes"},
		{"zip", zipClaims(64<<30 + 1), Limits{}, "bomb: the archive unpacks to more than 68719476736 bytes"},
		{"zip of more than an int64", zipClaims(1<<63 + 1), Limits{}, "unpacks to more than"},
		{"zip with less than it says", zipClaims(64 << 30), Limits{}, "damaged archive"},
		{"entries", names(10), Limits{Entries: 10}, ""},
		{"an entry too many", names(11), Limits{Entries: 10}, "bomb: the archive has more than 10 entries"},
		{"entries of a zip", zipNames(10), Limits{Entries: 10}, ""},
		{"an entry of a zip too many", zipNames(11), Limits{Entries: 10}, "bomb: the archive has more than 10 entries"},
		{"long name", tarOf(t, entry{name: long, kind: tar.TypeDir}), Limits{}, "bomb: the archive has the name \"nnn"},
		{"name that is not too long", tarOf(t, entry{name: long[:3900], kind: tar.TypeDir, mode: 0o755}), Limits{}, ""},
		{"long name in a zip", zipOf(t, entry{name: long, mode: 0o755}), Limits{}, "bomb: the archive has the name \"nnn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := unpackBomb(t, c.data, c.limits)
			if c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("%v, want %q", err, c.fails)
			}
		})
	}
}

// The directory of a zip is read at once. One that would take much memory is refused before.
func TestDirectoryOfZipIsBounded(t *testing.T) {
	directory := func(bytes int) string {
		const extra = 60_000
		h := &zip.FileHeader{Name: "d/", Extra: make([]byte, extra)}
		copy(h.Extra, []byte{0xff, 0xff, (extra - 4) & 0xff, (extra - 4) >> 8}) // a field that nobody knows
		h.SetMode(0o755)
		var b strings.Builder
		w := zip.NewWriter(&b)
		for n := 0; n < bytes; n += extra {
			if _, err := w.CreateRaw(&zip.FileHeader{Name: h.Name, Extra: h.Extra, ExternalAttrs: h.ExternalAttrs, CreatorVersion: h.CreatorVersion}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if _, err := unpackBomb(t, directory(maxDirectory+1<<20), Limits{}); err == nil || !strings.Contains(err.Error(), "bomb: the archive has a directory of more than") {
		t.Errorf("a large directory: %v", err)
	}
	if _, err := unpackBomb(t, directory(1<<20), Limits{}); err != nil {
		t.Errorf("a small directory: %v", err)
	}
}

// A copy of a large file ends when the build does.
func TestCancelledCopyEnds(t *testing.T) {
	for name, data := range map[string]string{"archive": bombIn(t, "gz", 64<<20), "file": strings.Repeat("x", 4<<20)} {
		src := makeTree(t, true, "bomb = "+data)
		ctx, cancel := context.WithCancel(context.Background())
		w := &cancelling{cancel: cancel}
		do := cp("/bomb", "/to/", func(c *ops.Copy) { c.Unpack = true })
		if err := Write(ctx, w, nil, []Step{{Do: do, From: src}}, Options{Now: now}); err == nil || w.n > 1<<20 {
			t.Errorf("%s: %d bytes were written after the end, %v", name, w.n, err)
		}
	}
}

// cancelling ends the work that writes to it.
type cancelling struct {
	cancel func()
	n      int
}

func (c *cancelling) Write(p []byte) (int, error) {
	c.cancel()
	c.n += len(p)
	return len(p), nil
}
