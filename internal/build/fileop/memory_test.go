package fileop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/spill"
)

// What a layer remembers of the files that it has is mostly in a file. Of the last copy it remembers directories only.
func TestManyFilesTakeLittleMemory(t *testing.T) {
	const n = 200_000
	fill := func(final bool) int64 {
		l := newLayer(nil, io.Discard, Options{Scratch: spill.InDir(t.TempDir())})
		defer l.space.Close()
		if err := l.mkdirAll("/a-directory", attrs{mode: 0o755}); err != nil {
			t.Fatal(err)
		}
		l.final = final
		for i := range n {
			if err := l.file(fmt.Sprint("/a-directory/with-long-names-", i), 0, strings.NewReader(""), attrs{mode: 0o644}); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range []int{0, 1, n / 2, n - 1} {
			got, _, err := l.lookup(fmt.Sprint("/a-directory/with-long-names-", i))
			if found := got != nil && got.mode == unix.S_IFREG|0o644; err != nil || found == final {
				t.Errorf("file %d is found: %v, %v", i, found, err)
			}
		}
		return l.space.Memory()
	}
	if got := fill(false); got > madeMemory+30*n {
		t.Errorf("%d files take %d bytes each", n, got/n)
	}
	if got := fill(true); got > 64<<10 {
		t.Errorf("%d files of the last copy take %d bytes", n, got)
	}
}

// BenchmarkWrite copies 5,000 small files in directories of a hundred.
func BenchmarkWrite(b *testing.B) {
	const n = 5000
	dir := b.TempDir()
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprint(i/100))
		if i%100 == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), bytes.Repeat([]byte("x"), 1000), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	src, err := tree.New(root, tree.Options{RootOwned: true})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := Write(context.Background(), io.Discard, nil, []Step{{Do: cp("/", "/x"), From: src}}, Options{Now: now}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/file")
}

// What the layer has made itself, and what has such things below it, cannot be removed; the rest can.
func TestRemoveOwn(t *testing.T) {
	l := newLayer(nil, io.Discard, Options{})
	defer l.space.Close()
	for _, p := range []string{"/a", "/a/b", "/a/b/c", "/a/d"} {
		if err := l.mkdir(p, attrs{mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	for p, refused := range map[string]bool{"/a": true, "/a/b": true, "/a/b/c": true, "/a/d": true, "/a/e": false, "/a/b/f": false, "/g": false} {
		err := l.remove(p)
		if refused != errors.Is(err, errs.Unimplemented) || !refused && err != nil {
			t.Errorf("remove %s: %v", p, err)
		}
	}
	if err := l.mkdir("/a/e", attrs{mode: 0o755}); err != nil { // where it has removed what was below
		t.Fatal(err)
	}
	for _, p := range []string{"/a/e", "/a"} {
		if err := l.remove(p); !errors.Is(err, errs.Unimplemented) {
			t.Errorf("remove %s, made again: %v", p, err)
		}
	}
}
