package layertest

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

var noOptions layer.MountOptions

// testCommit checks Writer: digests, aborts, parallel writers.
func testCommit(t *testing.T, newBox func(t *testing.T) *box) {
	b := newBox(t)
	data := makeTar(t, dir("d"), file("d/f", noise(5, 70_000)), file("g", "12345"))
	t.Run("wrong_digest", func(t *testing.T) {
		_, err := tryIn(t.Context(), b.Driver, nil, data, diffID([]byte("other")))
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("commit with a wrong digest: %v, want class invalid argument", err)
		}
		b.checkAbsent(t, oci.Chain{diffID(data)})
		b.checkAbsent(t, oci.Chain{diffID([]byte("other"))})
	})
	t.Run("abort", func(t *testing.T) {
		w, err := b.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data[:2000]); err != nil {
			t.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			t.Errorf("abort: %v", err)
		}
		if err := w.Abort(); err != nil {
			t.Errorf("second abort: %v", err)
		}
		if left := leftovers(t, b.root); len(left) > 0 {
			t.Errorf("abort left %q", left)
		}
	})
	t.Run("digest_unknown", func(t *testing.T) {
		info, err := tryIn(t.Context(), b.Driver, nil, data, "")
		if err != nil {
			t.Fatal(err)
		}
		want := layer.Info{DiffID: diffID(data), Size: 70_005, TarSize: int64(len(data)), Entries: 3}
		if info != want {
			t.Errorf("Info = %+v, want %+v", info, want)
		}
		got, err := b.Stat(t.Context(), oci.Chain{info.DiffID})
		if err != nil || got != want {
			t.Errorf("Stat = %+v, %v, want %+v", got, err, want)
		}
	})
	t.Run("again", func(t *testing.T) {
		chain := b.put(t, nil, data)
		b.put(t, nil, data)
		b.checkTars(t, chain)
	})
	b.runMounted(t, "again while mounted", func(t *testing.T) {
		chain := b.put(t, nil, data)
		target := b.view(t, chain)
		b.put(t, nil, data)
		b.checkTars(t, chain)
		want, err := flatten(data)
		if err != nil {
			t.Fatal(err)
		}
		checkTree(t, "view that was mounted meanwhile", target, want)
	})
	t.Run("many_at_once", func(t *testing.T) {
		same := makeTar(t, file("same", noise(6, 200_000)))
		var wg sync.WaitGroup
		errors := make([]error, 8)
		for i := range errors {
			wg.Go(func() {
				d := same
				if i%4 == 3 {
					d = makeTar(t, file("other", noise(uint64(i), 100_000)))
				}
				_, errors[i] = tryIn(t.Context(), b.Driver, nil, d, diffID(d))
			})
		}
		wg.Wait()
		for i, err := range errors {
			if err != nil {
				t.Errorf("commit %d: %v", i, err)
			}
		}
		b.tars[diffID(same)] = same
		b.checkTars(t, oci.Chain{diffID(same)})
		if left := leftovers(t, b.root); len(left) > 0 {
			t.Errorf("commits left %q", left)
		}
	})
	t.Run("same_layer_committed_at_once", func(t *testing.T) {
		for round := range 8 {
			data := makeTar(t, file("same", noise(uint64(20+round), 5000)))
			start := make(chan struct{})
			errors := make([]error, 4)
			var wg sync.WaitGroup
			for i := range errors {
				w, err := b.Create(t.Context())
				must(t, err)
				defer w.Abort()
				_, err = w.Write(data)
				must(t, err)
				wg.Go(func() {
					<-start
					_, errors[i] = w.Commit(t.Context(), nil, diffID(data))
				})
			}
			close(start)
			wg.Wait()
			for i, err := range errors {
				if err != nil {
					t.Errorf("round %d, commit %d: %v", round, i, err)
				}
			}
			b.tars[diffID(data)] = data
			b.checkTars(t, oci.Chain{diffID(data)})
		}
	})
	t.Run("parallel_in_one_image", func(t *testing.T) {
		tars := [][]byte{
			makeTar(t, dir("a").chmod(0o700), file("a/1", "x")), makeTar(t, file("a/2", "y")), makeTar(t, hardlink("b", "a/2"), file("a/.wh.1", "")),
		}
		var writers []layer.Writer
		for _, d := range tars {
			w, err := b.Create(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			writers = append(writers, w)
			if _, err := w.Write(d[:700]); err != nil {
				t.Fatal(err)
			}
		}
		for i := len(tars) - 1; i >= 0; i-- {
			if _, err := writers[i].Write(tars[i][700:]); err != nil {
				t.Fatal(err)
			}
		}
		var chain oci.Chain
		for i, w := range writers {
			if _, err := w.Commit(t.Context(), chain, diffID(tars[i])); err != nil {
				t.Fatalf("commit %d: %v", i, err)
			}
			chain = append(chain, diffID(tars[i]))
			b.tars[diffID(tars[i])] = tars[i]
		}
		b.checkView(t, "view", chain, tars...)
		b.checkTars(t, chain)
	})
	t.Run("ended_writers_take_little_memory", b.testEnd)
	b.runMounted(t, "writers_that_stand_alone", b.testAlone)
	t.Run("one_layer_in_two_chains", func(t *testing.T) {
		low1, low2 := makeTar(t, dir("a").chmod(0o700).chown(1, 1), file("a/f", "one")), makeTar(t, dir("a").chmod(0o711).chown(2, 2), file("a/f", "two!"))
		top := makeTar(t, file("a/new", "x"), hardlink("link", "a/f"))
		for _, low := range [][]byte{low1, low2} {
			chain := b.stack(t, low, top)
			b.checkView(t, "view", chain, low, top)
			b.checkTars(t, chain)
		}
	})
	t.Run("same_layer_twice_in_a_chain", func(t *testing.T) { b.checkStack(t, [][]byte{data, makeTar(t, file(".wh.d", "")), data, data}) })
	b.runMounted(t, "empty_chain", func(t *testing.T) {
		w := b.writable(t, nil, noOptions)
		must(t, os.WriteFile(w.at("f"), []byte("x"), 0o600))
		if got := w.changes(t); !slices.Equal(got, []string{"A /f"}) {
			t.Errorf("changes on an empty chain = %q, want [A /f]", got)
		}
	})
}

// testAlone commits layers before those below them, where the driver says that it can.
func (b *box) testAlone(t *testing.T) {
	bottom := makeTar(t, dir("alone").chmod(0o700), file("alone/bottom", "b"))
	start := func(data []byte) (layer.Writer, bool) {
		w, err := b.Create(t.Context())
		must(t, err)
		t.Cleanup(func() { _ = w.Abort() })
		_, err = w.Write(data)
		must(t, err)
		alone := w.End()
		if again := w.End(); again != alone {
			t.Errorf("End says %t and then %t", alone, again)
		}
		return w, alone
	}
	for name, data := range map[string][]byte{
		"a hard link to a file below": makeTar(t, dir("alone"), hardlink("alone/link", "alone/bottom")),
		"a name in a directory below": makeTar(t, file("alone/name", "n")),
	} {
		w, alone := start(data)
		must(t, w.Abort())
		if name == "a hard link to a file below" && alone {
			t.Errorf("the writer of %s says that it needs no layer below", name)
		}
	}
	top := makeTar(t, dir("alone"), file("alone/top", "t"))
	w, alone := start(top)
	chain := oci.Chain{diffID(bottom), diffID(top)}
	if !alone {
		must(t, w.Abort())
		return
	}
	if _, err := w.Commit(t.Context(), chain[:1], chain[1]); err != nil {
		t.Fatalf("Commit before the layer below is there: %v", err)
	}
	b.put(t, nil, bottom)
	if _, err := b.Stat(t.Context(), chain); err != nil {
		t.Fatalf("Stat: %v", err)
	}
	root := b.view(t, chain)
	for name, want := range map[string]string{"alone/bottom": "b", "alone/top": "t"} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
}

// testEnd lets many writers wait as they do while the bottom layer of an image is still downloaded.
func (b *box) testEnd(t *testing.T) {
	const writers = 20
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var all []layer.Writer
	var ids []oci.DiffID
	for i := range writers {
		w, err := b.Create(t.Context())
		must(t, err)
		defer w.Abort()
		data := makeTar(t, file("f", noise(uint64(100+i), 7<<20)))
		_, err = w.Write(data)
		must(t, err)
		w.End()
		if id := w.DiffID(); id != diffID(data) {
			t.Errorf("DiffID = %s, want %s", id, diffID(data))
		}
		if _, err := w.Write(data[:1]); err == nil {
			t.Error("Write after End succeeded")
		}
		all, ids = append(all, w), append(ids, diffID(data))
	}
	if grown := heap() - before; grown > writers<<20 {
		t.Errorf("%d writers whose tar has ended take %d MiB", writers, grown>>20)
	}
	for i, w := range all[:2] {
		if _, err := w.Commit(t.Context(), nil, ids[i]); err != nil {
			t.Errorf("Commit after End: %v", err)
		}
		w.End()
	}
	if _, err := all[2].Commit(t.Context(), nil, ids[3]); !errors.Is(err, errs.Invalid) {
		t.Errorf("Commit of another layer after End: %v, want class invalid argument", err)
	}
	w, err := b.Create(t.Context())
	must(t, err)
	_, _ = w.Write(makeTar(t, file("../x", "evil")))
	w.End()
	if _, err := w.Commit(t.Context(), nil, ""); !errors.Is(err, errs.Invalid) {
		t.Errorf("Commit of a bad tar after End: %v, want class invalid argument", err)
	}
}

func (b *box) checkAbsent(t testing.TB, chain oci.Chain) {
	t.Helper()
	if _, err := b.Stat(t.Context(), chain); !errors.Is(err, errs.NotFound) {
		t.Errorf("Stat of an absent layer: %v, want class not found", err)
	}
	if _, err := b.tar(t, chain); !errors.Is(err, errs.NotFound) {
		t.Errorf("Tar of an absent layer: %v, want class not found", err)
	}
	if !b.mounts {
		return
	}
	if err := b.View(t.Context(), chain, b.path(t, "absent")); !errors.Is(err, errs.NotFound) {
		t.Errorf("View of an absent layer: %v, want class not found", err)
	}
}

func (b *box) keys(t testing.TB) map[layer.Key]time.Time {
	t.Helper()
	keys := map[layer.Key]time.Time{}
	err := b.Walk(t.Context(), func(k layer.Key, made time.Time) error {
		if _, ok := keys[k]; ok {
			t.Errorf("Walk visits %s twice", k)
		}
		keys[k] = made
		return nil
	})
	if err != nil {
		t.Fatalf("walk: %v", err)
	}
	return keys
}

// testObjects checks stored objects: keys, removal, damage.
func testObjects(t *testing.T, newBox func(t *testing.T) *box) {
	t.Run("keys_and_walk", func(t *testing.T) {
		b := newBox(t)
		low := b.stack(t, makeTar(t, dir("a").chmod(0o700), file("a/f", "x")))
		high := b.put(t, low, makeTar(t, file("a/g", "x"), hardlink("l", "a/f")))
		other := b.put(t, nil, makeTar(t, file("o", "x")))
		needed := map[layer.Key]bool{}
		for _, k := range append(b.Keys(high), b.Keys(other)...) {
			needed[k] = true
			if filepath.Base(string(k)) != string(k) {
				t.Errorf("key %q is no file name", k)
			}
		}
		for k, made := range b.keys(t) {
			if !needed[k] {
				t.Errorf("Walk visits %s, which no chain needs", k)
			}
			if age := time.Since(made); age < -time.Minute || age > time.Hour {
				t.Errorf("Walk says that %s was made %v ago", k, age)
			}
			delete(needed, k)
		}
		if keys := b.Keys(low); len(keys) == 0 || !slices.Equal(b.Keys(high)[:len(keys)], keys) {
			t.Errorf("Keys(%d layers) = %q does not start with those of its parent %q", len(high), b.Keys(high), keys)
		}
	})
	t.Run("remove", func(t *testing.T) {
		b := newBox(t)
		chain := b.stack(t, makeTar(t, dir("d"), file("d/f", noise(8, 50_000))), makeTar(t, file("d/g", "x"), hardlink("h", "d/f")))
		b.removeMounted(t, chain, "h")
		keys := b.Keys(chain)
		slices.Reverse(keys)
		for _, k := range append(keys, keys...) {
			if err := b.Remove(t.Context(), k); err != nil {
				t.Errorf("remove %s: %v", k, err)
			}
		}
		if left := b.keys(t); len(left) > 0 {
			t.Errorf("after removal Walk visits %v", left)
		}
		b.checkAbsent(t, chain)
		if n := bytesBelow(t, b.root); n > 64<<10 {
			t.Errorf("after removal the driver holds %d bytes", n)
		}
		if err := b.Remove(t.Context(), "../../../etc"); err == nil {
			t.Error("Remove accepted a key that is a path")
		}
	})
	mounting := newBox(t)
	mounting.runMounted(t, "remove_mounted", func(t *testing.T) {
		b := newBox(t)
		chain := b.stack(t, makeTar(t, file("f", "x")))
		w := b.writable(t, chain, noOptions)
		for _, k := range b.Keys(chain) {
			if err := b.Remove(t.Context(), k); err != nil && !errors.Is(err, errs.Conflict) {
				t.Errorf("remove: %v, want class conflict", err)
			}
		}
		if data, err := os.ReadFile(w.at("f")); string(data) != "x" {
			t.Errorf("a running container lost its image: %q, %v", data, err)
		}
	})
	t.Run("verify_finds_damage", func(t *testing.T) {
		b := newBox(t)
		content := noise(9, 3000)
		data := makeTar(t, dir("d"), file("d/f", content), file("g", "x"))
		chain := b.stack(t, data)
		if n := flip(t, b.root, []byte(content)); n == 0 {
			t.Fatal("found no stored file with the content")
		}
		if err := b.Verify(t.Context(), chain); !errors.Is(err, errs.DataLoss) {
			t.Errorf("verify of a damaged layer: %v, want class data loss", err)
		}
		if _, err := b.tar(t, chain); !errors.Is(err, errs.DataLoss) {
			t.Errorf("tar of a damaged layer: %v, want class data loss", err)
		}
		b.put(t, nil, data) // a pull repairs the layer
		b.checkTars(t, chain)
		b.checkView(t, "repaired layer", chain, data)
	})
	t.Run("tar_finds_damage", func(t *testing.T) {
		for what, damage := range map[string]func(root string, content []byte) int{
			"a changed bit": func(root string, content []byte) int { return flip(t, root, content) },
			"truncation":    func(root string, _ []byte) int { return truncate(t, root) },
		} {
			b := newBox(t)
			content := []byte(noise(10, 3000))
			data := makeTar(t, file("f", string(content)))
			chain := b.stack(t, data)
			if damage(b.root, content) == 0 {
				t.Fatal("found no stored file to damage")
			}
			if _, err := b.tar(t, chain); !errors.Is(err, errs.DataLoss) {
				t.Errorf("tar of a layer with %s: %v, want class data loss", what, err)
			}
			b.put(t, nil, data)
			b.checkTars(t, chain)
		}
	})
	t.Run("verify_finds_truncation", func(t *testing.T) {
		b := newBox(t)
		chain := b.stack(t, makeTar(t, file("f", noise(10, 3000))))
		truncate(t, b.root)
		if err := b.Verify(t.Context(), chain); !errors.Is(err, errs.DataLoss) {
			t.Errorf("verify of a truncated layer: %v, want class data loss", err)
		}
	})
	mounting.runMounted(t, "busy_target", func(t *testing.T) {
		b := mounting
		if err := b.Unmount(t.Context(), b.path(t, "never")); err != nil {
			t.Errorf("unmount of what is not mounted: %v", err)
		}
		if err := b.Unmount(t.Context(), filepath.Join(b.work, "does-not-exist")); err != nil {
			t.Errorf("unmount of what does not exist: %v", err)
		}
	})
}

// removeMounted checks that Remove does not damage a mounted view of chain, in which it reads file.
func (b *box) removeMounted(t *testing.T, chain oci.Chain, file string) {
	t.Helper()
	if !b.mounts {
		return
	}
	target := b.view(t, chain)
	for _, k := range b.Keys(chain) {
		if err := b.Remove(t.Context(), k); err != nil && !errors.Is(err, errs.Conflict) {
			t.Errorf("remove of a mounted object: %v, want class conflict", err)
		}
	}
	if _, err := os.ReadFile(filepath.Join(target, file)); err != nil {
		t.Errorf("Remove damaged a mounted view: %v", err)
	}
	b.unmount(t, target)
}

// truncate empties all stored files with at least 3000 bytes. It returns their number.
func truncate(t testing.TB, root string) (n int) {
	t.Helper()
	must(t, filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if i, _ := e.Info(); i.Size() >= 3000 {
				n++
				return os.Truncate(p, 0)
			}
		}
		return err
	}))
	return n
}

// flip changes one bit in every stored file that contains content, without changing times. It returns the number of files.
func flip(t testing.TB, root string, content []byte) int {
	t.Helper()
	n := 0
	must(t, filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		i := bytes.Index(data, content)
		if i < 0 {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		n++
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{data[i+100] ^ 4}, int64(i+100)); err != nil {
			return err
		}
		return os.Chtimes(p, info.ModTime(), info.ModTime())
	}))
	return n
}

func bytesBelow(t testing.TB, root string) (sum int64) {
	t.Helper()
	must(t, filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var st unix.Stat_t
			err = unix.Lstat(p, &st)
			sum += st.Blocks * 512
		}
		return err
	}))
	return sum
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testReopen opens a root again that a killed process has used.
func testReopen(t *testing.T, open Open) {
	b := newBox(t, open)
	tars := [][]byte{makeTar(t, dir("d").chmod(0o700), file("d/f", noise(11, 40_000))), makeTar(t, file("d/g", "x"), hardlink("h", "d/f"))}
	chain := b.stack(t, tars...)
	w := b.writable(t, chain, noOptions)
	must(t, os.WriteFile(w.at("d/own"), []byte("own"), 0o600))
	unfinished, err := b.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unfinished.Write(makeTar(t, file("x", noise(12, 100_000)))[:60_000]); err != nil {
		t.Fatal(err)
	}
	// The driver is neither closed nor the writer aborted, as after a kill.
	before := b.keys(t)
	again := &box{Driver: open(t, b.root), root: b.root, work: b.work, open: open, tars: b.tars, mounts: true}
	defer func() {
		if err := again.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}()
	if left := leftovers(t, b.root); len(left) > 0 {
		t.Errorf("opening again leaves %q", left)
	}
	if after := again.keys(t); len(after) != len(before) {
		t.Errorf("opening again finds %v, want %v", after, before)
	}
	again.checkTars(t, chain)
	want, err := flatten(tars...)
	if err != nil {
		t.Fatal(err)
	}
	func() {
		target := again.path(t, "view")
		must(t, again.View(t.Context(), chain, target))
		defer again.unmount(t, target)
		checkTree(t, "view after reopening", target, want)
	}()
	if data, err := os.ReadFile(w.at("d/own")); string(data) != "own" {
		t.Errorf("mounted writable after reopening: %q, %v", data, err)
	}
	w2 := &rw{box: again, dir: w.dir, target: w.target, chain: chain}
	if got := w2.changes(t); !slices.Equal(got, []string{"A /d/own", "C /d"}) && !slices.Equal(got, []string{"C /d", "A /d/own"}) {
		t.Errorf("changes after reopening = %q", got)
	}
	must(t, again.Unmount(t.Context(), w.target))
	w2.mount(t, noOptions)
	if data, err := os.ReadFile(w.at("d/own")); string(data) != "own" {
		t.Errorf("writable mounted again: %q, %v", data, err)
	}
	must(t, again.Unmount(t.Context(), w.target))
	_ = unfinished.Abort()
}
