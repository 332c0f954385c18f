package compress

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	"ply/internal/errs"
)

// smallPool gives all readers of a test together the memory of one window of 128 MiB.
func smallPool(t *testing.T) *windowPool {
	t.Helper()
	was := windows
	p := &windowPool{semaphore.NewWeighted(maxWindow), maxWindow}
	windows = func() *windowPool { return p }
	t.Cleanup(func() {
		windows = was
		if !p.TryAcquire(p.size) {
			t.Error("the memory of a window was not returned")
		}
	})
	return p
}

// large returns streams with a large window that content fills slowly: the first bytes can be read before the others are there.
func large(t *testing.T, mib int) map[Codec][]byte {
	t.Helper()
	dict := map[int]byte{128: dict128M, 64: dict128M - 2, 16: dict128M - 6}[mib]
	x := xzStreamOf(2, xzBlockOf(dict, plainChunk("ab")))
	log := map[int]byte{128: 27, 64: 26, 16: 24}[mib]
	z := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 2 << 3, 0, 0, 'a', 'b', 1, 0, 0}
	return map[Codec][]byte{Xz: x, Zstd: z}
}

// held returns a reader that has read the first byte of a stream and the reservation for it.
func held(t *testing.T, ctx context.Context, data []byte) *Reader {
	t.Helper()
	r, _, err := NewReader(ctx, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return r
}

// Readers with large windows wait for each other, until the first is closed or has ended, or the context of the second ends.
func TestLargeWindowsWait(t *testing.T) {
	for codec, data := range large(t, 128) {
		for _, how := range []string{"close", "read to the end", "cancel"} {
			t.Run(string(codec)+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					smallPool(t)
					first := held(t, t.Context(), data)
					defer first.Close()
					ctx, cancel := context.WithCancelCause(t.Context())
					defer cancel(nil)
					var err error
					done := false
					go func() {
						var got []byte
						r, _, openErr := NewReader(ctx, bytes.NewReader(data))
						if err = openErr; err == nil {
							got, err = io.ReadAll(r)
							r.Close()
						}
						if err == nil && string(got) != "ab" {
							t.Errorf("the second reader got %q", got)
						}
						done = true
					}()
					synctest.Wait()
					if done {
						t.Fatalf("the second reader did not wait: %v", err)
					}
					// A small window needs no reservation.
					if got, _, err := decode(xzStreamOf(2, xzBlockOf(0, plainChunk("cd")))); err != nil || string(got) != "cd" {
						t.Errorf("a small window: %q, %v", got, err)
					}
					mine := errors.New("mine")
					switch how {
					case "close":
						first.Close()
					case "read to the end":
						if _, err := io.ReadAll(first); err != nil {
							t.Error(err)
						}
					case "cancel":
						cancel(mine)
					}
					synctest.Wait()
					if !done || how == "cancel" && !errors.Is(err, mine) || how != "cancel" && err != nil {
						t.Errorf("afterwards: done %v, %v", done, err)
					}
				})
			})
		}
	}
}

// Readers inside another reader do not wait while the outer one holds memory: two such pairs would wait for each other.
func TestInnerWindowsDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		smallPool(t)
		outer := held(t, t.Context(), large(t, 64)[Xz])
		defer outer.Close()
		read := func(data []byte) error {
			r, _, err := outer.Inner(t.Context(), bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err == nil && string(got) != "ab" {
				t.Errorf("got %q", got)
			}
			return err
		}
		for codec := range large(t, 64) {
			if err := read(large(t, 64)[codec]); err != nil {
				t.Errorf("%s: 64 MiB inside 64 MiB: %v", codec, err)
			}
			if err := read(large(t, 128)[codec]); !errors.Is(err, errs.Exhausted) {
				t.Errorf("%s: 128 MiB inside 64 MiB: %v, want class Exhausted", codec, err)
			}
		}
		outer.Close()
		if err := read(large(t, 128)[Xz]); err != nil {
			t.Errorf("128 MiB after the outer reader has ended: %v", err)
		}
	})
}

// The reservation follows the frames and blocks of a stream.
func TestWindowGrows(t *testing.T) {
	pool := smallPool(t)
	for codec, second := range large(t, 128) {
		first := large(t, 16)[codec]
		src := &steps{parts: [][]byte{first, second}}
		r, _, err := NewReader(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		if pool.TryAcquire(maxWindow - 16<<20 + 1) {
			t.Errorf("%s: the first window is not reserved", codec)
			pool.Release(maxWindow - 16<<20 + 1)
		}
		if codec == Xz { // zstd reads ahead
			if !pool.TryAcquire(maxWindow - 16<<20) {
				t.Errorf("%s: more than the first window is reserved", codec)
			}
			pool.Release(maxWindow - 16<<20)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != "ab" {
			t.Errorf("%s: second part %q, %v", codec, got, err)
		}
		if !pool.TryAcquire(maxWindow) {
			t.Fatalf("%s: a reader that has ended holds memory", codec)
		}
		pool.Release(maxWindow)
		r.Close()
	}
}

// steps returns one part per Read.
type steps struct{ parts [][]byte }

func (s *steps) Read(p []byte) (int, error) {
	if len(s.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.parts[0])
	if s.parts[0] = s.parts[0][n:]; len(s.parts[0]) == 0 {
		s.parts = s.parts[1:]
	}
	return n, nil
}

// The frames of a stream are found where they are.
func TestZstdFrames(t *testing.T) {
	var all []byte
	for i, opts := range [][]zstd.EOption{
		{}, {zstd.WithEncoderCRC(false)}, {zstd.WithWindowSize(1 << 20)}, {zstd.WithSingleSegment(true)}, {zstd.WithZeroFrames(true)},
		{zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(16 << 20)},
	} {
		e, err := zstd.NewWriter(nil, opts...)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 1, 300, 70_000, 400_000} {
			packed := e.EncodeAll(text(size), nil)
			all = append(all, packed...)
		}
		all = binary.LittleEndian.AppendUint32(append(all, 0x50+byte(i), 0x2a, 0x4d, 0x18), uint32(i*1000))
		all = append(all, make([]byte, i*1000)...)
		e.Close()
	}
	z := &zstdFrames{br: bufio.NewReader(bytes.NewReader(all)), window: newWindow(t.Context(), &readerStack{})}
	got, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(got, all) || z.part != zstdFrame || z.left != 0 {
		t.Errorf("%d bytes of %d, %v; ended in part %d with %d left", len(got), len(all), err, z.part, z.left)
	}
	z.window.close()
	for n := range all[:200] { // the decoder finds what is missing
		z := &zstdFrames{br: bufio.NewReader(bytes.NewReader(all[:n])), window: newWindow(t.Context(), &readerStack{})}
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, all[:n]) {
			t.Errorf("cut at %d: %d bytes, %v", n, len(got), err)
		}
		z.window.close()
	}
}
