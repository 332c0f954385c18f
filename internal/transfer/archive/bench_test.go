package archive_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"ply/internal/durable"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/store/layer/erofs"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

// noise returns text that compresses to about half of its size.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefghijklmnop"[r.IntN(16)]
	}
	return string(b)
}

func benchSide(b *testing.B) side {
	root := b.TempDir()
	d, err := erofs.Open(durable.OS, root, erofs.Options{})
	if err != nil {
		b.Fatal(err)
	}
	f := imagetest.On(b, root, d)
	return side{f, archive.New(f.Store, f.Images, archive.Options{})}
}

// BenchmarkLoad loads an archive with an image of 128 MiB in two layers, uncompressed and compressed with gzip, with the erofs
// driver.
func BenchmarkLoad(b *testing.B) {
	s := benchSide(b)
	half := noise(64 << 20)
	s.Image(imagetest.Spec{Name: "big", Layers: [][]byte{imagetest.Tar(b, "a", half), imagetest.Tar(b, "b", half)}})
	plain := s.save(b, "", "big")
	for name, data := range map[string][]byte{"plain": plain, "gzip": gzipped(b, plain)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(128 << 20)
			d := benchSide(b)
			for b.Loop() {
				if err := d.Load(b.Context(), bytes.NewReader(data), transfer.LoadOptions{}, transfer.Discard); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if _, err := d.Images.Remove(b.Context(), "big", image.RemoveOptions{}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkSave saves the same image.
func BenchmarkSave(b *testing.B) {
	s := benchSide(b)
	s.Image(imagetest.Spec{Name: "big", Layers: [][]byte{imagetest.Tar(b, "a", noise(128<<20))}})
	b.SetBytes(128 << 20)
	for b.Loop() {
		if err := s.Save(b.Context(), []string{"big"}, transfer.SaveOptions{}, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
