package cli

import (
	"context"
	"io"
	"strings"
	"testing"
)

// BenchmarkStart measures what every invocation does before it contacts the engine: it makes the command with all its flags.
func BenchmarkStart(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		inv := invocation(strings.NewReader(""), io.Discard, io.Discard)
		if code := Run(context.Background(), inv, []string{"run", "--nosuch"}); code != 125 {
			b.Fatal(code)
		}
	}
}
