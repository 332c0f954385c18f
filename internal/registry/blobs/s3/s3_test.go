package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/blobstest"
	"ply/internal/registry/blobs/s3"
	"ply/internal/registry/blobs/s3/s3test"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/bolt"
)

var server *s3test.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = s3test.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func uploads(t *testing.T) metadata.Uploads {
	t.Helper()
	m, err := bolt.Open(filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func open(t *testing.T, o s3.Options) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func fresh(t *testing.T) (s3.Options, *s3.Store) {
	o := server.Bucket(t)
	o.Uploads = uploads(t)
	return o, open(t, o)
}

func TestSuite(t *testing.T) {
	var o s3.Options
	blobstest.Run(t, blobstest.Options{
		Open: func(t *testing.T) blobs.Store {
			o = server.Bucket(t)
			o.Uploads = uploads(t)
			o.Prefix = "/a/b/"
			return open(t, o)
		},
		Reopen: func(t *testing.T) blobs.Store { return open(t, o) },
	})
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func begin(t *testing.T, s *s3.Store) blobs.Upload {
	t.Helper()
	u, err := s.Begin(t.Context(), blobs.Session{ID: blobs.NewID(), Repository: "a", Algorithm: content.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func read(s *s3.Store, d content.Digest) ([]byte, error) {
	r, n, err := s.Open(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != n {
		err = fmt.Errorf("%d bytes of %d", len(b), n)
	}
	return b, err
}

const part = 5 << 20

// Blobs of several parts arrive in chunks of any size, by several replicas, under the digest of any algorithm, and leave nothing else.
func TestParts(t *testing.T) {
	o, s := fresh(t)
	other := open(t, o)
	for name, sizes := range map[string][]int{
		"one part": {part}, "parts": {2*part + 7}, "chunks": {100, part, 5, part - 1}, "tail only": {part - 1, 3}, "exactly": {part, part}, "small": {1, 2, 3},
	} {
		for _, a := range content.Algorithms {
			var all []byte
			u := begin(t, s)
			id := u.Session().ID
			for i, n := range sizes {
				chunk := random(n)
				all = append(all, chunk...)
				if err := errors.Join(u.Append(t.Context(), bytes.NewReader(chunk), int64(n)), u.Close()); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				var next blobs.Upload
				var err error
				if next, err = []*s3.Store{s, other}[i%2].Resume(t.Context(), id); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				u = next
			}
			d := a.Of(all)
			n, err := u.Store(t.Context(), d)
			if err := errors.Join(err, u.Close()); err != nil || n != int64(len(all)) {
				t.Fatalf("%s: stored %d, %v", name, n, err)
			}
			if b, err := read(s, d); err != nil || !bytes.Equal(b, all) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(b), len(all), err)
			}
		}
	}
	for _, f := range server.Files(t, o.Bucket) {
		if !strings.HasPrefix(f, "blobs/") {
			t.Errorf("left: %s", f)
		}
	}
}

func TestSeek(t *testing.T) {
	_, s := fresh(t)
	data := random(300_000)
	u := begin(t, s)
	d := content.SHA256.Of(data)
	_, err := u.Store(t.Context(), d)
	if !errors.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	u = begin(t, s)
	if err := u.Append(t.Context(), bytes.NewReader(data), -1); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Store(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	r, _, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 20 {
		from := rand.IntN(len(data) + 1)
		n := rand.IntN(len(data) - from + 1)
		if _, err := r.Seek(int64(from), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil || !bytes.Equal(b, data[from:from+n]) {
			t.Errorf("%d bytes from %d: %v", n, from, err)
		}
	}
	link, err := s.Redirect(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(link) //nolint:noctx,gosec // of this test
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || !bytes.Equal(b, data) {
		t.Errorf("by the address: %s, %d bytes, %v", resp.Status, len(b), err)
	}
}

// push uploads as a client of two requests does.
func push(s *s3.Store, data []byte) (content.Digest, error) {
	ctx, d := context.Background(), content.SHA256.Of(data)
	u, err := s.Begin(ctx, blobs.Session{ID: blobs.NewID(), Repository: "a", Algorithm: content.SHA256})
	if err != nil {
		return d, err
	}
	err = u.Append(ctx, bytes.NewReader(data), int64(len(data)))
	if err := errors.Join(err, u.Close()); err != nil {
		return d, err
	}
	if u, err = s.Resume(ctx, u.Session().ID); err != nil {
		return d, err
	}
	_, err = u.Store(ctx, d)
	return d, errors.Join(err, u.Close())
}

// A server that is busy, breaks connections, loses answers and is slow costs time, and no request fails.
func TestFaults(t *testing.T) {
	o, s := fresh(t)
	var n, faulty atomic.Int64
	var mu sync.Mutex
	row := map[string]int{} // faults of a request since it was answered last: seven tries do not all fail
	faults := []s3test.Fault{s3test.Busy, s3test.Reset, s3test.Lost, s3test.Cut, s3test.Slow, s3test.Missing}
	server.Inject(func(r *http.Request) s3test.Fault {
		if !strings.Contains(r.URL.Path, o.Bucket) {
			return s3test.None
		}
		n.Add(1)
		key := r.Method + r.URL.String()
		mu.Lock()
		defer mu.Unlock()
		if row[key]++; row[key] > 4 || rand.IntN(6) != 0 {
			delete(row, key)
			return s3test.None
		}
		return faults[faulty.Add(1)%int64(len(faults))]
	})
	defer server.Inject(nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, size := range []int{10, 100_000, part + 5} {
				data := random(size)
				d, err := push(s, data)
				if err != nil {
					t.Errorf("push of %d bytes: %v", size, err)
					return
				}
				if b, err := read(s, d); err != nil || !bytes.Equal(b, data) {
					t.Errorf("read of %d bytes: %d, %v", size, len(b), err)
				}
				if err := s.Remove(t.Context(), d); err != nil {
					t.Errorf("removal: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if faulty.Load() < 3 {
		t.Errorf("%d faults in %d requests: the test shows nothing", faulty.Load(), n.Load())
	}
}

// A server that does not recover is reported as unavailable, what was received stays, and nothing wrong becomes a blob.
func TestUnavailable(t *testing.T) {
	_, s := fresh(t)
	defer server.Inject(nil)
	data := random(part + 100)
	u := begin(t, s)
	if err := errors.Join(u.Append(t.Context(), bytes.NewReader(data[:part]), part), u.Close()); err != nil {
		t.Fatal(err)
	}
	u, err := s.Resume(t.Context(), u.Session().ID)
	if err != nil {
		t.Fatal(err)
	}
	server.Inject(func(*http.Request) s3test.Fault { return s3test.Busy })
	d := content.SHA256.Of(data)
	if err := u.Append(t.Context(), bytes.NewReader(data[part:]), 100); err != nil {
		t.Errorf("a part that is not full needs no server: %v", err)
	}
	if _, err := u.Store(t.Context(), d); !errors.Is(err, errs.Unavailable) {
		t.Errorf("Store: %v", err)
	}
	if err := u.Close(); err == nil {
		t.Error("what cannot be kept was not reported")
	}
	server.Inject(nil)
	if _, err := s.Stat(t.Context(), d); !errors.Is(err, errs.NotFound) {
		t.Errorf("Stat: %v", err)
	}
	if u, err = s.Resume(t.Context(), u.Session().ID); err != nil || u.Offset() != part {
		t.Fatalf("resumed at %d, %v", u.Offset(), err)
	}
	if err := u.Append(t.Context(), bytes.NewReader(data[part:]), 100); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Store(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if b, err := read(s, d); err != nil || !bytes.Equal(b, data) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// What a replica leaves that dies in the middle of an upload is removed with the upload, or when no upload knows it.
func TestLeftovers(t *testing.T) {
	o, s := fresh(t)
	held := begin(t, s) // of a replica that dies: another process has another place for its holds
	if err := held.Append(t.Context(), bytes.NewReader(random(2*part)), 2*part); err != nil {
		t.Fatal(err)
	}
	closed := begin(t, s)
	if err := errors.Join(closed.Append(t.Context(), strings.NewReader("tail"), 4), closed.Close()); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if n, err := s.Expire(t.Context(), later); n != 1 || err != nil {
		t.Errorf("expired %d, %v", n, err)
	}
	if _, err := held.Store(t.Context(), content.SHA256.Of(nil)); !errors.Is(err, errs.Invalid) {
		t.Errorf("an upload that is held was not kept: %v", err)
	}
	// Objects and parts of an upload that the database does not know.
	orphan := begin(t, s)
	if err := errors.Join(orphan.Append(t.Context(), bytes.NewReader(random(part+1)), -1), orphan.Close()); err != nil {
		t.Fatal(err)
	}
	o.Uploads = uploads(t)
	if n, err := open(t, o).Expire(t.Context(), later); n != 0 || err != nil {
		t.Errorf("expired %d, %v", n, err)
	}
	for _, f := range server.Files(t, o.Bucket) {
		t.Errorf("left: %s", f)
	}
}

func TestOpen(t *testing.T) {
	good := server.Bucket(t)
	for name, change := range map[string]func(*s3.Options){
		"no bucket":      func(o *s3.Options) { o.Bucket = "" },
		"another bucket": func(o *s3.Options) { o.Bucket = "nothing-here" },
		"no address":     func(o *s3.Options) { o.Endpoint = "s3.example.com" },
		"a path":         func(o *s3.Options) { o.Endpoint += "/path" },
		"wrong key":      func(o *s3.Options) { o.SecretKey = "other" },
	} {
		o := good
		change(&o)
		if _, err := s3.Open(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	s := open(t, good)
	for range 2 {
		if err := s.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
