package image_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"ply/internal/store/layer/erofs/image"
	"ply/internal/store/layer/tarscan"
)

// BenchmarkIndex measures turning a tar in memory into an image: 20,000 files as in a distribution's /usr, or almost empty
// ones.
func BenchmarkIndex(b *testing.B) {
	for _, size := range []int{16 << 10, 100} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			var buf bytes.Buffer
			w := tar.NewWriter(&buf)
			body := make([]byte, size)
			const files = 20_000
			for i := range files {
				h := &tar.Header{Name: fmt.Sprintf("usr/share/doc/package-%d/a-file-name-%d", i/20, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)}
				if err := w.WriteHeader(h); err != nil {
					b.Fatal(err)
				}
				if _, err := w.Write(body); err != nil {
					b.Fatal(err)
				}
			}
			w.Close()
			data := buf.Bytes()
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			var length int64
			for b.Loop() {
				t := image.NewTree()
				err := tarscan.Scan(bytes.NewReader(data), tarscan.Limits{}, func(e *tarscan.Entry, _ io.Reader) error {
					return t.Add(e, image.Extent{Device: 1, Offset: e.Offset})
				})
				if err != nil {
					b.Fatal(err)
				}
				if length, err = t.Write(io.Discard, [16]byte{}, []image.Device{{Tag: "layer.tar", Size: int64(len(data))}}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(length)/files, "index-B/file")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/file")
		})
	}
}
