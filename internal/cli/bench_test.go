package cli

import (
	"context"
	"io"
	"strings"
	"testing"
)

// BenchmarkStart measures what every invocation does before it contacts the engine: it builds the tree of commands with all flags.
func BenchmarkStart(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		inv := invocation(strings.NewReader(""), io.Discard, io.Discard)
		if code := Run(context.Background(), inv, []string{"run", "--help"}); code != 0 {
			b.Fatal(code)
		}
	}
}
