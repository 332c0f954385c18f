package tree

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkDigest computes the digest of 3,000 files whose content is known.
func BenchmarkDigest(b *testing.B) { benchmarkDigest(b, NewDigests()) }

// BenchmarkDigestUnknown computes the digest of 3,000 files, each of which is read.
func BenchmarkDigestUnknown(b *testing.B) { benchmarkDigest(b, nil) }

func benchmarkDigest(b *testing.B, digests *Digests) {
	dir := b.TempDir()
	for i := range 3000 {
		sub := filepath.Join(dir, fmt.Sprint(i/100))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		name := filepath.Join(sub, fmt.Sprint(i))
		if err := os.WriteFile(name, fmt.Appendf(nil, "%d", i), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Chtimes(name, time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
			b.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	tr, err := New(root, Options{RootOwned: true, Digests: digests, Exclude: []string{".git", "**/*.log"}})
	if err != nil {
		b.Fatal(err)
	}
	time.Sleep(racy) // the times of the attributes are new
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tr.Digest(context.Background(), []Selection{{Src: "/"}}); err != nil {
			b.Fatal(err)
		}
	}
}
