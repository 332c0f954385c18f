//go:build isal && cgo

package compress

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"ply/internal/errs"
)

func packISAL(t testing.TB, plain []byte, chunk int, p Params) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, p)
	if err != nil {
		t.Fatal(err)
	}
	for rest := plain; len(rest) > 0; {
		n := min(chunk, len(rest))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The bytes depend on the input and the parameters only: not on the processors, the writes, what memory held before, or what else is compressed.
func TestISALIsDeterministic(t *testing.T) {
	plain := text(5<<20 + 77)
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for level := 1; level <= maxISAL; level++ {
		p := Params{Codec: Gzip, Level: level, Engine: EngineISAL}
		want := sha256.Sum256(packISAL(t, plain, len(plain), p))
		var work sync.WaitGroup
		for i, procs := range []int{1, 2, 3, 16} {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
			work.Go(func() { packISAL(t, noise, 1<<20, Params{Codec: Gzip, Level: 1 + i%maxISAL, Engine: EngineISAL}) })
			if got := sha256.Sum256(packISAL(t, plain, []int{7 << 20, 1 << 20, 33333, 1<<20 - 1}[i], p)); got != want {
				t.Errorf("level %d with %d processors: other bytes", level, procs)
			}
		}
		work.Wait()
		again, err := ParseParams(p.String())
		if err != nil || again != p {
			t.Errorf("ParseParams(%q) = %+v, %v", p.String(), again, err)
			continue
		}
		if got := sha256.Sum256(packISAL(t, plain, 1<<20, again)); got != want {
			t.Errorf("level %d: recorded parameters make other bytes", level)
		}
	}
}

// gzip(1) and this package read the output, for every size around that of a block and for what cannot be compressed.
func TestISALIsGzip(t *testing.T) {
	noise := make([]byte, 2*blockSize+1)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	inputs := [][]byte{noise, noise[:blockSize], make([]byte, 3*blockSize)}
	for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 3*blockSize + 5} {
		inputs = append(inputs, text(size))
	}
	for _, plain := range inputs {
		for level := 1; level <= maxISAL; level++ {
			packed := packISAL(t, plain, 1<<20, Params{Codec: Gzip, Level: level, Engine: EngineISAL})
			if len(packed) > len(plain)+len(plain)/100+100 {
				t.Errorf("%d bytes became %d", len(plain), len(packed))
			}
			cmd := exec.CommandContext(t.Context(), "gzip", "-dc")
			cmd.Stdin = bytes.NewReader(packed)
			if got, err := cmd.Output(); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("gzip -dc of %d bytes, level %d: %d bytes, %v", len(plain), level, len(got), err)
			}
			if got, codec, err := decode(packed); err != nil || codec != Gzip || !bytes.Equal(got, plain) {
				t.Errorf("decode of %d bytes, level %d: %d bytes, %s, %v", len(plain), level, len(got), codec, err)
			}
		}
	}
}

// Parameters that were recorded with another processor or another ISA-L are unknown, so nothing is promised about their bytes.
func TestISALOfAnotherMachine(t *testing.T) {
	mine := FastGzip().String()
	if FastGzip().Engine != EngineISAL || !strings.HasPrefix(mine, "gzip;level=2;v=isal-") || isalVersion() == noISAL {
		t.Fatalf("the fastest gzip is %s", mine)
	}
	for _, s := range []string{
		"gzip;level=2;v=isal-000000000000", "gzip;level=2;v=" + noISAL, "gzip;level=2;v=isal-",
		strings.Replace(mine, "level=2", "level=0", 1), strings.Replace(mine, "level=2", "level=4", 1), strings.Replace(mine, "gzip", "zstd", 1),
	} {
		if p, err := ParseParams(s); !errors.Is(err, errs.Invalid) {
			t.Errorf("ParseParams(%q) = %+v, %v, want class Invalid", s, p, err)
		}
	}
	for _, p := range []Params{{Codec: Zstd, Engine: EngineISAL}, {Codec: Gzip, Level: 9, Engine: EngineISAL}, {Codec: Gzip, Level: -1, Engine: EngineISAL}} {
		if _, err := NewWriter(io.Discard, p); !errors.Is(err, errs.Invalid) {
			t.Errorf("NewWriter(%+v) = %v, want class Invalid", p, err)
		}
	}
}

type brokenWriter struct{ left int }

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// An output that fails ends the writer with its error, and no goroutine is left.
func TestISALOutputFails(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, left := range []int{0, 5, 100 << 10, 1 << 20} {
		w, err := NewWriter(&brokenWriter{left}, FastGzip())
		if err != nil {
			t.Fatal(err)
		}
		data := text(12 << 20)
		_, writeErr := w.Write(data)
		if err := w.Close(); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("Close after %d bytes = %v (Write: %v)", left, err, writeErr)
		}
		if err := w.Close(); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("second Close = %v", err)
		}
	}
	for i := 0; runtime.NumGoroutine() > before && i < 1000; i++ {
		runtime.Gosched()
	}
	if got := runtime.NumGoroutine(); got > before {
		t.Errorf("%d goroutines, %d before", got, before)
	}
}

func BenchmarkGzipISAL(b *testing.B) { benchmarkGzip(b, FastGzip()) }

func BenchmarkGzipGo(b *testing.B) { benchmarkGzip(b, Params{Codec: Gzip}) }

func benchmarkGzip(b *testing.B, p Params) {
	data := text(32 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		w, err := NewWriter(io.Discard, p)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
