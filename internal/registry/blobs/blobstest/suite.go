// Package blobstest is the conformance suite of package blobs. Every implementation runs it.
package blobstest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
)

// Options say how to test an implementation.
type Options struct {
	// Open returns a new, empty store, which the suite closes.
	Open func(t *testing.T) blobs.Store
	// Reopen opens the same store in what stands for another process, after the first one died.
	Reopen func(t *testing.T) blobs.Store
}

// Run tests an implementation.
func Run(t *testing.T, o Options) {
	for name, test := range map[string]func(*fixture){
		"store":      testStore,
		"wrong":      testWrong,
		"chunks":     testChunks,
		"algorithms": testAlgorithms,
		"cut":        testCut,
		"held":       testHeld,
		"expire":     testExpire,
		"reopen":     testReopen,
		"walk":       testWalk,
		"concurrent": testConcurrent,
		"follow":     testFollow,
	} {
		t.Run(name, func(t *testing.T) {
			s := o.Open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
			test(&fixture{t, s, t.Context(), o})
		})
	}
}

type fixture struct {
	*testing.T
	blobs.Store
	ctx context.Context
	o   Options
}

func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) begin(a content.Algorithm) blobs.Upload {
	f.Helper()
	u, err := f.Begin(f.ctx, blobs.Session{ID: blobs.NewID(), Repository: "a", Owner: "someone", Algorithm: a, Started: time.Now().UTC()})
	f.ok(err)
	return u
}

func (f *fixture) put(data string) content.Digest {
	f.Helper()
	d := content.SHA256.Of([]byte(data))
	u := f.begin(content.SHA256)
	f.ok(u.Append(f.ctx, strings.NewReader(data), int64(len(data))))
	n, err := u.Store(f.ctx, d)
	f.ok(errors.Join(err, u.Close()))
	if n != int64(len(data)) {
		f.Errorf("stored %d bytes of %d", n, len(data))
	}
	return d
}

func (f *fixture) want(d content.Digest, data string) {
	f.Helper()
	r, n, err := f.Open(f.ctx, d)
	if err != nil {
		f.Errorf("%s: %v", d, err)
		return
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil || string(b) != data || n != int64(len(data)) {
		f.Errorf("%s has %d bytes, want %d (%v)", d, len(b), len(data), err)
	}
	if size, err := f.Stat(f.ctx, d); err != nil || size != n {
		f.Errorf("Stat = %d, %v", size, err)
	}
}

func (f *fixture) absent(d content.Digest) {
	f.Helper()
	if _, err := f.Stat(f.ctx, d); !errors.Is(err, errs.NotFound) {
		f.Errorf("Stat(%s): %v", d, err)
	}
	if _, _, err := f.Open(f.ctx, d); !errors.Is(err, errs.NotFound) {
		f.Errorf("Open(%s): %v", d, err)
	}
}

func testStore(f *fixture) {
	f.ok(f.Ping(f.ctx))
	f.absent(content.SHA256.Of([]byte("data")))
	d := f.put("data")
	f.want(d, "data")
	f.put("data")
	f.want(d, "data")
	f.want(f.put(""), "")
	f.ok(f.Remove(f.ctx, d))
	f.absent(d)
	f.ok(f.Remove(f.ctx, d))
	f.want(f.put("data"), "data")
	r, _, err := f.Open(f.ctx, d)
	f.ok(err)
	defer r.Close()
	if _, err := r.Seek(2, io.SeekStart); err != nil {
		f.Error(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "ta" {
		f.Errorf("from 2: %q, %v", b, err)
	}
}

func testWrong(f *fixture) {
	u := f.begin(content.SHA256)
	f.ok(u.Append(f.ctx, strings.NewReader("data"), -1))
	wrong := content.SHA256.Of([]byte("other"))
	if _, err := u.Store(f.ctx, wrong); !errors.Is(err, errs.Invalid) {
		f.Errorf("another digest: %v", err)
	}
	f.ok(u.Close())
	f.absent(wrong)
	f.absent(content.SHA256.Of([]byte("data")))
	if _, err := f.Resume(f.ctx, u.Session().ID); !errors.Is(err, errs.NotFound) {
		f.Errorf("after its end: %v", err)
	}
}

func testChunks(f *fixture) {
	var data []byte
	u := f.begin(content.SHA256)
	id, session := u.Session().ID, u.Session()
	for i := range 5 {
		chunk := bytes.Repeat([]byte{byte(i)}, 100_000*i)
		data = append(data, chunk...)
		f.ok(u.Append(f.ctx, iotest.HalfReader(bytes.NewReader(chunk)), int64(len(chunk))))
		if u.Offset() != int64(len(data)) {
			f.Errorf("offset %d, want %d", u.Offset(), len(data))
		}
		f.ok(u.Close())
		var err error
		u, err = f.Resume(f.ctx, id)
		f.ok(err)
		if got := u.Session(); got != session {
			f.Errorf("session %+v, want %+v", got, session)
		}
	}
	d := content.SHA256.Of(data)
	f.absent(d)
	_, err := u.Store(f.ctx, d)
	f.ok(errors.Join(err, u.Close()))
	f.want(d, string(data))
}

func testAlgorithms(f *fixture) {
	for _, begun := range content.Algorithms {
		for _, stored := range content.Algorithms {
			data := string(begun) + " " + string(stored)
			u := f.begin(begun)
			f.ok(u.Append(f.ctx, strings.NewReader(data), -1))
			_, err := u.Store(f.ctx, stored.Of([]byte(data)))
			f.ok(errors.Join(err, u.Close()))
			f.want(stored.Of([]byte(data)), data)
		}
	}
}

// A source that breaks off leaves what it sent, and the upload goes on from there.
func testCut(f *fixture) {
	u := f.begin(content.SHA256)
	broken := errors.New("broken")
	err := u.Append(f.ctx, io.MultiReader(strings.NewReader("first "), iotest.ErrReader(broken)), 100)
	var source *blobs.SourceError
	if !errors.As(err, &source) || !errors.Is(err, broken) || u.Offset() != 6 {
		f.Errorf("a broken source: %v, offset %d", err, u.Offset())
	}
	f.ok(u.Close())
	u, err = f.Resume(f.ctx, u.Session().ID)
	f.ok(err)
	f.ok(u.Append(f.ctx, strings.NewReader("second"), 6))
	d := content.SHA256.Of([]byte("first second"))
	_, err = u.Store(f.ctx, d)
	f.ok(errors.Join(err, u.Close()))
	f.want(d, "first second")
}

func testHeld(f *fixture) {
	u := f.begin(content.SHA256)
	if _, err := f.Resume(f.ctx, u.Session().ID); !errors.Is(err, errs.Conflict) {
		f.Errorf("while it is held: %v", err)
	}
	f.ok(u.Close())
	again, err := f.Resume(f.ctx, u.Session().ID)
	f.ok(err)
	f.ok(again.Cancel(f.ctx))
	f.ok(again.Close())
	for _, id := range []string{u.Session().ID, blobs.NewID(), "../../etc/passwd", ""} {
		if _, err := f.Resume(f.ctx, id); !errors.Is(err, errs.NotFound) {
			f.Errorf("Resume(%q): %v", id, err)
		}
	}
}

func testExpire(f *fixture) {
	held, closed := f.begin(content.SHA256), f.begin(content.SHA256)
	f.ok(closed.Append(f.ctx, strings.NewReader("x"), 1))
	f.ok(closed.Close())
	if n, err := f.Expire(f.ctx, time.Now().Add(-time.Hour)); n != 0 || err != nil {
		f.Errorf("young uploads: %d, %v", n, err)
	}
	if n, err := f.Expire(f.ctx, time.Now().Add(time.Hour)); n != 1 || err != nil {
		f.Errorf("expired %d, %v", n, err)
	}
	if _, err := f.Resume(f.ctx, closed.Session().ID); !errors.Is(err, errs.NotFound) {
		f.Errorf("an expired upload: %v", err)
	}
	f.ok(held.Append(f.ctx, strings.NewReader("y"), 1))
	d := content.SHA256.Of([]byte("y"))
	_, err := held.Store(f.ctx, d)
	f.ok(errors.Join(err, held.Close()))
	f.want(d, "y")
}

// Another process takes up the uploads of one that died, and has its blobs.
func testReopen(f *fixture) {
	d := f.put("kept")
	u := f.begin(content.SHA256)
	f.ok(u.Append(f.ctx, strings.NewReader("first "), -1))
	f.ok(u.Close())
	unclosed := f.begin(content.SHA256)
	f.ok(unclosed.Append(f.ctx, strings.NewReader("lost"), -1))
	second := f.o.Reopen(f.T)
	f.Cleanup(func() { f.ok(second.Close()) })
	g := &fixture{f.T, second, f.ctx, f.o}
	g.want(d, "kept")
	again, err := g.Resume(g.ctx, u.Session().ID)
	g.ok(err)
	if again.Offset() != 6 || again.Session() != u.Session() {
		g.Errorf("resumed at %d: %+v, want %+v", again.Offset(), again.Session(), u.Session())
	}
	g.ok(again.Append(g.ctx, strings.NewReader("second"), -1))
	whole := content.SHA256.Of([]byte("first second"))
	_, err = again.Store(g.ctx, whole)
	g.ok(errors.Join(err, again.Close()))
	g.want(whole, "first second")
	g.absent(content.SHA256.Of([]byte("lost")))
}

func testWalk(f *fixture) {
	want := map[content.Digest]int64{}
	for _, data := range []string{"", "a", "bb", "ccc"} {
		want[f.put(data)] = int64(len(data))
	}
	u := f.begin(content.SHA512)
	f.ok(u.Append(f.ctx, strings.NewReader("dddd"), 4))
	d := content.SHA512.Of([]byte("dddd"))
	_, err := u.Store(f.ctx, d)
	f.ok(errors.Join(err, u.Close()))
	want[d] = 4
	open := f.begin(content.SHA256)
	f.ok(open.Append(f.ctx, strings.NewReader("open"), 4))
	f.ok(open.Close())
	f.ok(f.Walk(f.ctx, func(d content.Digest, size int64, stored time.Time) error {
		if n, ok := want[d]; !ok || n != size || time.Since(stored).Abs() > time.Hour {
			f.Errorf("visited %s of %d bytes, stored %v", d, size, stored)
		}
		delete(want, d)
		return nil
	}))
	if len(want) != 0 {
		f.Errorf("not visited: %v", want)
	}
	stop := errors.New("stop")
	if err := f.Walk(f.ctx, func(content.Digest, int64, time.Time) error { return stop }); !errors.Is(err, stop) {
		f.Errorf("an error of the visitor: %v", err)
	}
}

// Clients that upload the same bytes at once all succeed, while others read and remove.
func testConcurrent(f *fixture) {
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(rand.IntN(256))
	}
	d := content.SHA256.Of(data)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				u, err := f.Begin(f.ctx, blobs.Session{ID: blobs.NewID(), Repository: "a", Algorithm: content.SHA256})
				if err != nil {
					f.Error(err)
					return
				}
				err = u.Append(f.ctx, bytes.NewReader(data), int64(len(data)))
				if err == nil {
					_, err = u.Store(f.ctx, d)
				}
				if err := errors.Join(err, u.Close()); err != nil {
					f.Error(err)
				}
				r, _, err := f.Open(f.ctx, d)
				if err != nil {
					f.Error(err)
					continue
				}
				if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, data) {
					f.Errorf("read %d bytes, %v", len(b), err)
				}
				r.Close()
			}
		})
	}
	wg.Wait()
}

// A store whose uploads can be followed shows each byte when Append has returned, also after the upload ended.
func testFollow(f *fixture) {
	for _, end := range []string{"store", "cancel"} {
		u := f.begin(content.SHA256)
		follower, ok := u.(blobs.Follower)
		if !ok {
			f.ok(errors.Join(u.Cancel(f.ctx), u.Close()))
			f.Skip("uploads of this store cannot be followed")
		}
		src, err := follower.Follow()
		f.ok(err)
		seen := func(want string) {
			f.Helper()
			b := make([]byte, 20)
			n, err := src.ReadAt(b, 0)
			if string(b[:n]) != want || err != nil && !errors.Is(err, io.EOF) {
				f.Errorf("%s: followed %q (%v), want %q", end, b[:n], err, want)
			}
		}
		seen("")
		f.ok(u.Append(f.ctx, strings.NewReader("first "+end), -1))
		seen("first " + end)
		f.ok(u.Append(f.ctx, strings.NewReader(", second"), 8))
		seen("first " + end + ", second")
		if end == "store" {
			_, err = u.Store(f.ctx, content.SHA256.Of([]byte("first store, second")))
		} else {
			err = u.Cancel(f.ctx)
		}
		f.ok(errors.Join(err, u.Close()))
		seen("first " + end + ", second")
		f.ok(src.Close())
	}
}
