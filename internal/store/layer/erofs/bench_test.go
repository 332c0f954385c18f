package erofs

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"ply/internal/oci"
	"ply/internal/store/layer"
)

// BenchmarkCreate measures writing and committing a layer, fsync included.
func BenchmarkCreate(b *testing.B) {
	entries := make([]entry, 2000)
	for i := range entries {
		entries[i] = entry{name: fmt.Sprintf("usr/lib/d%d/file%d", i%40, i), body: strings.Repeat(fmt.Sprint(i), 8000)}
	}
	data := pack(b, entries...)
	d := open(b, b.TempDir(), Options{})
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		c, err := commit(d, nil, data)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := d.Remove(context.Background(), d.Keys(c)[0]); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkMount measures mounting the root of a container when its layers are mounted already.
func BenchmarkMount(b *testing.B) {
	for _, n := range []int{1, 10, 60} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := open(b, b.TempDir(), Options{})
			var chain oci.Chain
			for i := range n {
				chain = put(b, d, chain, pack(b, entry{name: fmt.Sprint(i)}))
			}
			dir, target := b.TempDir(), b.TempDir()
			if err := d.CreateWritable(context.Background(), dir, chain); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := d.Mount(context.Background(), dir, chain, target, layer.MountOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := d.Unmount(context.Background(), target); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkCreateSmall measures a layer with one small file, as of a build step: the fixed cost of a layer.
func BenchmarkCreateSmall(b *testing.B) {
	d := open(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		if _, err := commit(d, nil, pack(b, entry{name: "f", body: fmt.Sprint(i)})); err != nil {
			b.Fatal(err)
		}
	}
}
