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
		a := &App{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}
		if code := a.Run(context.Background(), []string{"run", "--help"}); code != 0 {
			b.Fatal(code)
		}
	}
}
