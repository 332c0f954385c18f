package runner

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ply/internal/build/ops"
	"ply/internal/durable"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/record/recordtest"
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
	if _, _, err := c.acquire(t.Context(), "a", "about", ops.SharingShared, func(dir string) error { return errors.Join(write(dir, "half"), no) }); !errors.Is(err, no) {
		t.Errorf("error %v", err)
	}
	began, finish := make(chan struct{}), make(chan struct{})
	type result struct {
		text string
		err  error
	}
	results := make(chan result, 2)
	get := func(fill func(dir string) error) {
		dir, release, err := c.acquire(t.Context(), "a", "about", ops.SharingShared, fill)
		if err != nil {
			results <- result{err: err}
			return
		}
		text := read(dir)
		release()
		results <- result{text: text}
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
	if dir, release, err := c.acquire(t.Context(), "a", "about", ops.SharingLocked, func(string) error { return no }); err != nil || read(dir) != "whole" {
		t.Error(err)
	} else {
		release()
	}
}

// listed returns the directories of cache mounts, by what they are.
func listed(t *testing.T, c *caches) map[string]CacheMount {
	t.Helper()
	list, err := c.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]CacheMount{}
	for _, m := range list {
		out[m.Description] = m
	}
	return out
}

// The directories of cache mounts are listed with their size and their last use, also by the next engine, and those that no step uses can be removed.
func TestCacheMountsAreListedAndRemoved(t *testing.T) {
	c := &caches{dir: t.TempDir(), fs: durable.OS}
	use := func(c *caches, id string, n int) (release func()) {
		t.Helper()
		dir, release, err := c.acquire(t.Context(), id, "mount "+id, ops.SharingShared, func(string) error { return nil })
		if err == nil && n > 0 {
			err = os.WriteFile(filepath.Join(dir, "f"), make([]byte, n), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	use(c, "a", 1000)()
	use(c, "a", 0)()
	held := use(c, "b", 10)
	list := listed(t, c)
	if a := list["mount a"]; a.Size != 1000 || a.Uses != 2 || a.InUse || a.Used.IsZero() || a.Created.After(a.Used) || a.ID.Hex() != cacheName("a") {
		t.Errorf("%+v", a)
	}
	if b := list["mount b"]; b.Size != 10 || b.Uses != 1 || !b.InUse {
		t.Errorf("%+v", b)
	}
	use(c, "a", 2000)()
	if a := listed(t, c)["mount a"]; a.Size != 2000 {
		t.Errorf("after it grew: %+v", a)
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}

	both := []oci.Digest{list["mount a"].ID, list["mount b"].ID}
	next := &caches{dir: c.dir, fs: durable.OS}
	if err := next.clean(); err != nil {
		t.Fatal(err)
	}
	if a, was := listed(t, next)["mount a"], listed(t, c)["mount a"]; !cmp.Equal(a, was) || a.Uses != 3 {
		t.Errorf("the next engine: %+v, %+v", a, was)
	}
	gone, err := c.remove(both)
	if err != nil || len(gone) != 1 || gone[0] != both[0] {
		t.Errorf("%v, %v", gone, err)
	}
	if _, err := os.Stat(filepath.Join(c.dir, cacheName("b"), "f")); err != nil {
		t.Errorf("the directory of a running step: %v", err)
	}
	held()
	if gone, err := c.remove(both); err != nil || len(gone) != 1 || gone[0] != both[1] {
		t.Errorf("afterwards: %v, %v", gone, err)
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(c.dir); err != nil || len(left) > 0 || len(c.notes) > 0 {
		t.Errorf("left: %v, %v, notes %v", left, err, c.notes)
	}
	// A directory without a note, and a note without a directory.
	if err := errors.Join(os.Mkdir(filepath.Join(c.dir, cacheName("old")), 0o755), os.WriteFile(filepath.Join(c.dir, cacheName("x")+noteSuffix), nil, 0o600), next.clean()); err != nil {
		t.Fatal(err)
	}
	if list := listed(t, c); len(list) != 1 || list[""].ID.Hex() != cacheName("old") || list[""].Used.IsZero() {
		t.Errorf("%+v", list)
	}
	if left, err := os.ReadDir(c.dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// While directories are removed, steps that want them get whole ones.
func TestCacheMountsAreRemovedBetweenSteps(t *testing.T) {
	c := &caches{dir: t.TempDir(), fs: durable.OS}
	id, err := oci.ParseDigest("sha256:" + cacheName("a"))
	if err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			_, err := c.remove([]oci.Digest{id})
			select {
			case <-stop:
				stopped <- err
				return
			default:
				if err != nil {
					t.Error(err)
				}
			}
		}
	}()
	for i := range 300 {
		sharing := []ops.Sharing{ops.SharingShared, ops.SharingLocked, ops.SharingPrivate}[i%3]
		dir, release, err := c.acquire(t.Context(), "a", "about", sharing, func(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), nil, 0o644) })
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Remove(filepath.Join(dir, "f")), os.WriteFile(filepath.Join(dir, "f"), nil, 0o644)); err != nil {
			t.Errorf("the directory of a step: %v", err)
		}
		if i%10 == 0 {
			if _, err := c.list(t.Context()); err != nil {
				t.Error(err)
			}
			if err := c.flush(); err != nil {
				t.Error(err)
			}
		}
		release()
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestCacheRecordGolden(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	r := cacheRecord{Description: "cached mount /root/.cache", Created: at, Used: at.Add(time.Hour), Uses: 7}
	recordtest.Filled(t, r)
	data, err := record.Marshal(cacheVersion, r)
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "cache.v1.json", data)
	recordtest.Decodes(t, "cache.v1.json", cacheVersion, r)
}

// racingFS calls race once, before it says what a directory is.
type racingFS struct {
	durable.FS
	race func()
}

func (r *racingFS) Lstat(name string) (fs.FileInfo, error) {
	if race := r.race; race != nil {
		r.race = nil
		race()
	}
	return r.FS.Lstat(name)
}

// What is known of a directory that was removed while directories were listed is forgotten: the next one of its name begins anew.
func TestCacheMountIsRemovedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	use := func(c *caches, id string) {
		t.Helper()
		_, release, err := c.acquire(t.Context(), id, "mount "+id, ops.SharingShared, func(string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
	before := &caches{dir: dir, fs: durable.OS}
	use(before, "a")
	if err := before.flush(); err != nil {
		t.Fatal(err)
	}
	racing := &racingFS{FS: durable.OS}
	c := &caches{dir: dir, fs: racing}
	id := listed(t, before)["mount a"].ID
	if err := os.Remove(filepath.Join(dir, cacheName("a")) + noteSuffix); err != nil { // so that the directory is looked at
		t.Fatal(err)
	}
	racing.race = func() {
		if gone, err := c.remove([]oci.Digest{id}); err != nil || len(gone) != 1 {
			t.Errorf("%v, %v", gone, err)
		}
	}
	if _, err := c.list(t.Context()); err != nil {
		t.Fatal(err)
	}
	if racing.race != nil || len(c.notes) != 0 {
		t.Errorf("notes %v, of no directory", c.notes)
	}
	use(c, "a")
	if a := listed(t, c)["mount a"]; a.Uses != 1 || a.Created.IsZero() {
		t.Errorf("the next directory: %+v", a)
	}
}
