package logfile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/container/shim"
)

// A reader that is still at the first file when the log is removed gets all of it, whatever it has opened. It stalls once at
// every place: before it has read anything, in the first file, at the end of it, and in a later one.
func TestSlowReaderOfARemovedLog(t *testing.T) {
	for _, d := range drivers {
		for _, compress := range []bool{false, true} {
			for _, stallAt := range []int{0, 1, 25, 26, 27, 60, 599} {
				t.Run(fmt.Sprintf("%s compress=%v %d", d, compress, stallAt), func(t *testing.T) {
					l := newLog(t, d)
					l.Path = filepath.Join(t.TempDir(), "dir", "log")
					if err := os.Mkdir(filepath.Dir(l.Path), 0o700); err != nil {
						t.Fatal(err)
					}
					l.MaxSize, l.MaxFiles, l.Compress = 3000, 50, compress
					w, err := Create(l)
					if err != nil {
						t.Fatal(err)
					}
					s := w.Stream(shim.Stdout)
					var want strings.Builder
					emit := func(from, to int) {
						for i := from; i < to; i++ {
							fmt.Fprintf(&want, "line %d\n", i)
							_, _ = fmt.Fprintf(s, "line %d\n", i)
						}
					}
					emit(0, stallAt+1)
					held := &Held{}
					defer held.Close()
					stalled, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
					done := make(chan error, 1)
					var got strings.Builder
					n := 0
					go func() {
						done <- Read(context.Background(), l, ReadOptions{Stdout: true, Tail: -1, Follow: true, Ended: ended, Held: held}, one(func(m Message) error {
							if n == stallAt {
								close(stalled)
								<-goOn
							}
							n++
							got.Write(m.Line)
							return nil
						}))
					}()
					<-stalled
					emit(stallAt+1, 600)
					if err := errors.Join(s.Close(), w.Close()); err != nil {
						t.Fatal(err)
					}
					close(ended)
					if err := errors.Join(held.Take(l), os.RemoveAll(filepath.Dir(l.Path))); err != nil {
						t.Fatal(err)
					}
					close(goOn)
					if err := <-done; err != nil {
						t.Fatal(err)
					}
					if got.String() != want.String() {
						t.Errorf("read %d lines of 600", strings.Count(got.String(), "\n"))
					}
				})
			}
		}
	}
}

// Take after Close, when the reader has just left, keeps nothing open.
func TestHeldAfterClose(t *testing.T) {
	l := newLog(t, JSONFile)
	write(t, l, shim.Stdout, "x\n")
	var h Held
	h.Close()
	if err := h.Take(l); err != nil || h.taken() || len(h.all) > 0 {
		t.Errorf("Take after Close: %v, %v", err, h.all)
	}
}
