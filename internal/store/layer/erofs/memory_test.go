package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"ply/internal/errs"
	"ply/internal/memory"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// manyNames is the tar of a layer of n files.
func manyNames(tb testing.TB, dir string, n int) []byte {
	tb.Helper()
	entries := make([]entry, n)
	for i := range entries {
		entries[i] = entry{name: fmt.Sprintf("%s/%03d/%d", dir, i/1000, i)}
	}
	return pack(tb, entries...)
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Layers that wait for those below have a share of the memory together, however many there are. What did not fit is indexed at the
// commit, and the layers are the same.
func TestWaitingLayersShareMemory(t *testing.T) {
	const layers = 40
	pool := memory.NewPool(4<<20, 16<<20)
	d := open(t, t.TempDir(), Options{Memory: pool})
	var writers []layer.Writer
	var chain oci.Chain
	first := int64(0)
	for i := range layers {
		data := manyNames(t, fmt.Sprint("d", i), 5000)
		w, err := d.Create(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		w.End()
		writers, chain = append(writers, w), append(chain, oci.DiffID(oci.DigestOf(data)))
		if i == 0 {
			first = heap()
		}
	}
	if grown := heap() - first; grown > 8<<20 {
		t.Errorf("%d layers that wait hold %d MiB", layers, grown>>20)
	}
	for i, w := range writers {
		if _, err := w.Commit(t.Context(), chain[:i], chain[i]); err != nil {
			t.Fatal(err)
		}
	}
	root := view(t, d, chain)
	for i := range layers {
		if _, err := os.Lstat(filepath.Join(root, fmt.Sprint("d", i), "004", "4999")); err != nil {
			t.Error(err)
		}
	}
	if all := pool.Share(); !all.Fit(4 << 20) {
		t.Error("committed layers hold memory")
	}
}

// A layer whose index needs more memory than one layer may have is refused, and one that needs less is not.
func TestIndexThatIsTooLarge(t *testing.T) {
	d := open(t, t.TempDir(), Options{Memory: memory.NewPool(1<<20, 4<<20)})
	put(t, d, nil, manyNames(t, "d", 10_000))
	if _, err := commit(d, nil, manyNames(t, "d", 60_000)); !errors.Is(err, errs.Exhausted) {
		t.Errorf("60,000 names in 4 MiB: %v, want class Exhausted", err)
	}
	put(t, d, nil, manyNames(t, "e", 10_000))
	if left, err := filepath.Glob(filepath.Join(d.layers, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
