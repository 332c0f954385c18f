package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/container/shim"
)

// Followers that share their work get every record once and in order: those that come later, those that are slow, and those that stay when another one leaves,
// also across rotations.
func TestFollowersGetEveryRecord(t *testing.T) {
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			l := newLog(t, driver)
			l.MaxSize, l.MaxFiles = 300_000, 50
			w, err := Create(l)
			if err != nil {
				t.Fatal(err)
			}
			s := w.Stream(shim.Stdout)
			var want strings.Builder
			emit := func(from, n int) {
				var b strings.Builder
				for i := range n {
					fmt.Fprintf(&b, "line %d of the log\n", from+i)
				}
				want.WriteString(b.String())
				_, _ = s.Write([]byte(b.String()))
			}
			var shared Followers
			ended := make(chan struct{})
			var wg sync.WaitGroup
			got, failed := make([]strings.Builder, 6), make([]error, 6)
			leaves := errors.New("leaves")
			follow := func(k int) {
				wg.Go(func() {
					o := ReadOptions{Stdout: true, Stderr: true, Tail: -1, Follow: true, Ended: ended, Followers: &shared}
					if k%2 == 1 {
						o.Since = time.Unix(1, 0) // records are selected one by one
					}
					failed[k] = Read(context.Background(), l, o, func(list []Message) error {
						for i := range list {
							got[k].Write(list[i].Line)
						}
						if k == 2 {
							time.Sleep(3 * time.Millisecond)
						}
						if k == 3 && got[k].Len() > 200_000 {
							return leaves
						}
						return nil
					})
				})
			}
			const lines = 40_000
			for k := range 4 {
				follow(k)
			}
			for i := 0; i < lines; i += 500 {
				if i == lines/2 {
					follow(4)
					follow(5)
				}
				emit(i, 500)
				if i%5000 == 0 {
					time.Sleep(time.Millisecond) // let the followers run
				}
			}
			if err := errors.Join(s.Close(), w.Close()); err != nil {
				t.Fatal(err)
			}
			close(ended)
			wg.Wait()
			for k := range got {
				if k == 3 {
					if !errors.Is(failed[k], leaves) || !strings.HasPrefix(want.String(), got[k].String()) {
						t.Errorf("the follower that left got %d lines, %v", strings.Count(got[k].String(), "\n"), failed[k])
					}
				} else if failed[k] != nil || got[k].String() != want.String() {
					t.Errorf("follower %d got %d lines of %d, %v", k, strings.Count(got[k].String(), "\n"), lines, failed[k])
				}
			}
			if shared.watcher != nil || len(shared.windows) != 0 || len(shared.changed) != 0 {
				t.Errorf("the last follower has left %+v", &shared)
			}
		})
	}
}

// openWindow returns the window of a log for two readers, and the file.
func openWindow(t *testing.T, l shim.Log) (w *window, one, other *reader, f *os.File) {
	t.Helper()
	f, err := os.Open(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var s Followers
	one, other = &reader{opts: l}, &reader{opts: l}
	w = s.join(one, st, 0)
	if s.join(other, st, 0) != w {
		t.Fatal("two readers of a file have two windows")
	}
	return w, one, other, f
}

// What one follower has read and decoded, another one gets, as long as it is near. Nothing is kept when all have it, and little for one that is far behind.
func TestFollowersShareBlocks(t *testing.T) {
	l := newLog(t, JSONFile)
	write(t, l, shim.Stdout, strings.Repeat("a line of the log\n", 50_000))
	w, one, other, f := openWindow(t, l)
	next := func(r *reader, off int64) *block {
		t.Helper()
		b, err := w.next(r, f, off)
		if err != nil || b.from != off {
			t.Fatalf("at %d: %+v, %v", off, b, err)
		}
		return b
	}
	// They go on together.
	off, blocks := int64(0), 0
	for ; ; blocks++ {
		a := next(one, off)
		if a.to == a.from {
			break
		}
		if len(w.blocks) > 2 { // the other one may still use the first
			t.Fatalf("at %d: %d blocks are kept", off, len(w.blocks))
		}
		if next(other, off) != a {
			t.Fatalf("at %d: not the same block", off)
		}
		off = a.to
	}
	if next(other, off); len(w.blocks) != 0 || blocks < maxBlocks {
		t.Fatalf("%d of %d blocks are kept", len(w.blocks), blocks)
	}
	// One goes ahead, the other one stays behind.
	w.readers[one], w.readers[other] = 0, 0
	for off = 0; ; {
		a := next(one, off)
		if a.to == a.from {
			break
		}
		if off = a.to; len(w.blocks) > maxBlocks {
			t.Fatalf("%d blocks are kept", len(w.blocks))
		}
	}
	shared := 0
	for off := int64(0); ; {
		kept := slices.Clone(w.blocks)
		a := next(other, off)
		if a.to == a.from {
			break
		}
		if slices.Contains(kept, a) {
			shared++
		}
		off = a.to
	}
	if shared == 0 || len(w.blocks) != 0 {
		t.Errorf("the one behind shared %d blocks, %d are kept", shared, len(w.blocks))
	}
}

// The blocks of a file that was truncated are forgotten.
func TestFollowersOfATruncatedLog(t *testing.T) {
	l := newLog(t, JSONFile)
	write(t, l, shim.Stdout, "old\n")
	w, one, other, f := openWindow(t, l)
	if b, err := w.next(one, f, 0); err != nil || len(b.list) != 1 || string(b.list[0].Line) != "old\n" {
		t.Fatalf("%+v, %v", b, err)
	}
	if err := os.Truncate(l.Path, 0); err != nil {
		t.Fatal(err)
	}
	write(t, l, shim.Stdout, "new\n")
	w.reset()
	if b, err := w.next(other, f, 0); err != nil || len(b.list) != 1 || string(b.list[0].Line) != "new\n" {
		t.Errorf("%+v, %v", b, err)
	}
}

// A record that is longer than a block is read whole.
func TestLongRecord(t *testing.T) {
	l := newLog(t, JSONFile)
	long := bytes.Repeat([]byte("x"), 2*blockSize)
	b := new(jsonFormat).encode(nil, Message{Time: time.Unix(1, 0), Stream: shim.Stdout, Line: append(long, '\n')})
	b = new(jsonFormat).encode(b, Message{Time: time.Unix(2, 0), Stream: shim.Stdout, Line: []byte("short\n")})
	if err := os.WriteFile(l.Path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got := read(t, l, ReadOptions{Tail: -1})
	if len(got) != 2 || len(got[0]) != len(long)+1 || got[1] != "short\n" {
		t.Errorf("%d records", len(got))
	}
}

// A block is not used again for another part of the file while a follower visits its records, however far the others are ahead.
func TestBlocksInUseStay(t *testing.T) {
	l := newLog(t, JSONFile)
	write(t, l, shim.Stdout, strings.Repeat("a line of the log\n", 60_000))
	w, one, other, f := openWindow(t, l)
	slow, err := w.next(other, f, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(slow.buf)
	for off := int64(0); ; {
		b, err := w.next(one, f, off)
		if err != nil {
			t.Fatal(err)
		}
		if b.to == b.from {
			break
		}
		if off > 0 && b == slow {
			t.Fatal("the block is used again")
		}
		off = b.to
	}
	if slow.from != 0 || !bytes.Equal(slow.buf, want) {
		t.Error("the block has changed")
	}
}
