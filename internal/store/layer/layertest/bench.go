package layertest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"ply/internal/oci"
	"ply/internal/store/layer"
)

// RunBenchmarks measures one driver. The root that open receives may have been used before.
func RunBenchmarks(b *testing.B, open func(b *testing.B, root string) layer.Driver) {
	const files = 5_000
	data := manyFiles(b, files, 8<<10)
	b.Run("commit", func(b *testing.B) {
		d := openBench(b, open)
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			mustCommit(b, d, nil, data)
			b.StopTimer() // committing the same layer again would only verify it
			for _, k := range d.Keys(oci.Chain{diffID(data)}) {
				mustB(b, d.Remove(b.Context(), k))
			}
			b.StartTimer()
		}
	})
	b.Run("tar", func(b *testing.B) {
		d := openBench(b, open)
		chain := mustCommit(b, d, nil, data)
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			r, err := d.Tar(b.Context(), chain)
			mustB(b, err)
			_, err = io.Copy(io.Discard, r)
			mustB(b, err)
			mustB(b, r.Close())
		}
	})
	b.Run("remove", func(b *testing.B) {
		d := openBench(b, open)
		for b.Loop() {
			b.StopTimer()
			chain := mustCommit(b, d, nil, data)
			b.StartTimer()
			for _, k := range d.Keys(chain) {
				mustB(b, d.Remove(b.Context(), k))
			}
		}
	})
	for _, depth := range []int{1, 10, 60} {
		b.Run(fmt.Sprintf("mount-%d", depth), func(b *testing.B) { benchMount(b, open, depth) })
	}
	b.Run("changes", func(b *testing.B) { benchDiff(b, open, data, true) })
	b.Run("diff", func(b *testing.B) { benchDiff(b, open, data, false) })
}

func mustB(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func openBench(b *testing.B, open func(b *testing.B, root string) layer.Driver) layer.Driver {
	b.Helper()
	d := open(b, b.TempDir())
	b.Cleanup(func() { mustB(b, d.Close()) })
	return d
}

func manyFiles(b *testing.B, files, size int) []byte {
	b.Helper()
	var entries []entry
	for i := range files {
		if i%50 == 0 {
			entries = append(entries, dir(fmt.Sprintf("d%d", i/50)))
		}
		entries = append(entries, file(fmt.Sprintf("d%d/f%d", i/50, i), noise(uint64(i), size)))
	}
	return makeTar(b, entries...)
}

func mustCommit(b *testing.B, d layer.Driver, parents oci.Chain, data []byte) oci.Chain {
	b.Helper()
	w, err := d.Create(b.Context())
	mustB(b, err)
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 256<<10)
		_, err := w.Write(rest[:n])
		mustB(b, err)
		rest = rest[n:]
	}
	info, err := w.Commit(b.Context(), parents, "")
	mustB(b, err)
	return append(parents[:len(parents):len(parents)], info.DiffID)
}

// benchMount measures the operations of a container: create, mount, unmount, remove.
func benchMount(b *testing.B, open func(b *testing.B, root string) layer.Driver, depth int) {
	d := openBench(b, open)
	var chain oci.Chain
	for i := range depth {
		chain = mustCommit(b, d, chain, makeTar(b, dir("d"), file(fmt.Sprintf("d/f%d", i), "x")))
	}
	dir, target := b.TempDir(), b.TempDir()
	for b.Loop() {
		mustB(b, d.CreateWritable(b.Context(), dir, chain))
		mustB(b, d.Mount(b.Context(), dir, chain, target, layer.MountOptions{}))
		b.StopTimer()
		mustB(b, d.Unmount(b.Context(), target))
		mustB(b, d.RemoveWritable(b.Context(), dir))
		b.StartTimer()
	}
}

func benchDiff(b *testing.B, open func(b *testing.B, root string) layer.Driver, data []byte, changes bool) {
	d := openBench(b, open)
	chain := mustCommit(b, d, nil, data)
	dir, target := b.TempDir(), b.TempDir()
	mustB(b, d.CreateWritable(b.Context(), dir, chain))
	mustB(b, d.Mount(b.Context(), dir, chain, target, layer.MountOptions{}))
	defer func() { mustB(b, d.Unmount(b.Context(), target)) }()
	for i := range 500 {
		mustB(b, os.WriteFile(filepath.Join(target, fmt.Sprintf("d%d/new%d", i%100, i)), make([]byte, 64<<10), 0o600))
	}
	for b.Loop() {
		if changes {
			_, err := d.Changes(b.Context(), dir, chain)
			mustB(b, err)
			continue
		}
		mustB(b, d.Diff(b.Context(), dir, chain, io.Discard))
	}
}
