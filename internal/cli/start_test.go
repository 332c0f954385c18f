package cli

import (
	"context"
	"io"
	"strings"
	"testing"
)

// What every invocation pays before it asks the engine anything: the whole tree of commands with all flags, and help.
func BenchmarkStart(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		inv := invocation(strings.NewReader(""), io.Discard, io.Discard)
		if code := Run(context.Background(), inv, []string{"run", "--help"}); code != 0 {
			b.Fatal(code)
		}
	}
}
