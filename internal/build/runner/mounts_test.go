package runner

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ply/internal/build/ops"
	"ply/internal/durable"
)

// A directory of a cache mount is never seen half filled: not by a step that wants it at the same time, and not after a failure or the end of the engine.
func TestCacheMountIsWholeOrAbsent(t *testing.T) {
	c := caches{dir: t.TempDir(), fs: durable.OS}
	write := func(dir, text string) error { return os.WriteFile(filepath.Join(dir, "f"), []byte(text), 0o644) }
	read := func(dir string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, "f"))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	no := errors.New("no")
	if _, _, err := c.acquire(t.Context(), "a", ops.SharingShared, func(dir string) error { return errors.Join(write(dir, "half"), no) }); !errors.Is(err, no) {
		t.Errorf("error %v", err)
	}
	began, finish := make(chan struct{}), make(chan struct{})
	type result struct {
		text string
		err  error
	}
	results := make(chan result, 2)
	get := func(fill func(dir string) error) {
		dir, release, err := c.acquire(t.Context(), "a", ops.SharingShared, fill)
		if err != nil {
			results <- result{err: err}
			return
		}
		defer release()
		results <- result{text: read(dir)}
	}
	go get(func(dir string) error {
		err := write(dir, "half")
		close(began)
		<-finish
		return errors.Join(err, write(dir, "whole"))
	})
	<-began
	go get(func(string) error { return errors.New("filled twice") })
	select {
	case r := <-results:
		t.Errorf("a step had %+v while the directory was filled", r)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	for range 2 {
		if r := <-results; r.err != nil || r.text != "whole" {
			t.Errorf("%+v", r)
		}
	}
	// What an engine left that was killed goes, and what is complete stays.
	if err := os.Mkdir(durable.TempName(c.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := c.clean(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != cacheName("a") || len(c.users) != 0 {
		t.Errorf("%v, %v, users %v", entries, err, c.users)
	}
	if dir, release, err := c.acquire(t.Context(), "a", ops.SharingLocked, func(string) error { return no }); err != nil || read(dir) != "whole" {
		t.Error(err)
	} else {
		release()
	}
}
