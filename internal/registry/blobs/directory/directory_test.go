package directory

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/blobs"
	"ply/internal/registry/blobs/blobstest"
	"ply/internal/registry/content"
)

func TestSuite(t *testing.T) {
	var root string
	open := func(t *testing.T) blobs.Store {
		s, err := Open(durable.OS, root)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	blobstest.Run(t, blobstest.Options{
		Open: func(t *testing.T) blobs.Store {
			root = t.TempDir()
			return open(t)
		},
		Reopen: open,
	})
}

func TestRecord(t *testing.T) {
	b, err := record.Marshal(sessionVersion, sessionRecord{Repository: "a/b", Owner: "alice", Algorithm: content.SHA512, Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	recordtest.Golden(t, "session.v1.json", b)
}

func push(t *testing.T, s *Store, data string) (content.Digest, error) {
	d := content.SHA256.Of([]byte(data))
	u, err := s.Begin(t.Context(), blobs.Session{ID: blobs.NewID(), Repository: "a", Algorithm: content.SHA256})
	if err != nil {
		return d, err
	}
	defer u.Close()
	if err := u.Append(t.Context(), strings.NewReader(data), int64(len(data))); err != nil {
		return d, err
	}
	_, err = u.Store(t.Context(), d)
	return d, err
}

// A blob is synced before it has its name, and its name before the upload is acknowledged.
func TestOrder(t *testing.T) {
	root := t.TempDir()
	if _, err := Open(durable.OS, root); err != nil {
		t.Fatal(err)
	}
	var trace []string
	f := &faultfs.FS{Under: durable.OS, Trace: func(s string) {
		op, path, _ := strings.Cut(s, " ")
		path, _ = filepath.Rel(root, path)
		trace = append(trace, op+" "+strings.SplitN(path, "/", 2)[0])
	}}
	s, err := Open(f, root)
	if err != nil {
		t.Fatal(err)
	}
	trace = nil
	if _, err := push(t, s, "data"); err != nil {
		t.Fatal(err)
	}
	want := []string{"sync uploads", "mkdirall blobs", "syncdir blobs", "rename blobs", "syncdir blobs"}
	if len(trace) < 5 || !slices.Equal(trace[len(trace)-5:], want) {
		t.Errorf("operations = %v, want %v at the end", trace, want)
	}
}

// A fault at any operation is reported, and leaves a blob that is whole or absent.
func TestFaults(t *testing.T) {
	for n := 1; ; n++ {
		root := t.TempDir()
		if _, err := Open(durable.OS, root); err != nil {
			t.Fatal(err)
		}
		f := &faultfs.FS{Under: durable.OS, FailAt: n, Short: n%2 == 0}
		s, err := Open(f, root)
		if err == nil {
			_, err = push(t, s, "data")
		}
		if !f.Hit() {
			if err != nil || n < 5 {
				t.Fatalf("without a fault (n = %d): %v", n, err)
			}
			return
		}
		if err == nil {
			t.Errorf("fault at operation %d was not reported", n)
		}
		s, err = Open(durable.OS, root)
		if err != nil {
			t.Fatalf("after a fault at %d: %v", n, err)
		}
		d := content.SHA256.Of([]byte("data"))
		if r, _, err := s.Open(t.Context(), d); err == nil {
			b, _ := io.ReadAll(r)
			r.Close()
			if string(b) != "data" {
				t.Errorf("after a fault at %d: %q", n, b)
			}
		}
		if _, err := push(t, s, "data"); err != nil {
			t.Errorf("after a fault at %d: %v", n, err)
		}
	}
}

// A client that ends its upload again after a fault never makes a blob that is not whole.
func TestRetry(t *testing.T) {
	d := content.SHA256.Of([]byte("data"))
	for n := 1; ; n++ {
		root := t.TempDir()
		f := &faultfs.FS{Under: durable.OS}
		s, err := Open(f, root)
		if err != nil {
			t.Fatal(err)
		}
		u, err := s.Begin(t.Context(), blobs.Session{ID: blobs.NewID(), Repository: "a", Algorithm: content.SHA256})
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Append(t.Context(), strings.NewReader("data"), 4); err != nil {
			t.Fatal(err)
		}
		f.FailAt = f.Count() + n
		_, err = u.Store(t.Context(), d)
		if !f.Hit() {
			if err != nil || n < 4 {
				t.Fatalf("without a fault (n = %d): %v", n, err)
			}
			return
		}
		if err != nil {
			_, err = u.Store(t.Context(), d)
		}
		if b, rerr := os.ReadFile(s.path(d)); string(b) != "data" && (err == nil || rerr == nil) {
			t.Errorf("after a fault at %d: the blob is %q (%v), and the second try returned %v", n, b, rerr, err)
		}
	}
}

// An upload whose file is gone does not go on with a new one.
func TestLostFile(t *testing.T) {
	s, err := Open(durable.OS, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	id := blobs.NewID()
	u, err := s.Begin(t.Context(), blobs.Session{ID: id, Repository: "a", Algorithm: content.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), strings.NewReader("da"), 2); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.uploadPath(id)); err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), strings.NewReader("ta"), 2); !errors.Is(err, errs.NotFound) {
		t.Errorf("more bytes of an upload without a file: %v", err)
	}
}

// What does not fit is refused before it is sent.
func TestRoom(t *testing.T) {
	s, err := Open(durable.OS, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Begin(t.Context(), blobs.Session{ID: blobs.NewID(), Algorithm: content.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), strings.NewReader("x"), 1<<60); !errors.Is(err, errs.Exhausted) || u.Offset() != 0 {
		t.Errorf("an upload of an exabyte: %v, offset %d", err, u.Offset())
	}
}

// A start removes what cannot be resumed and keeps unknown files.
func TestLeftovers(t *testing.T) {
	root := t.TempDir()
	if _, err := Open(durable.OS, root); err != nil {
		t.Fatal(err)
	}
	id := blobs.NewID()
	for _, name := range []string{id, blobs.NewID() + ".json", "README"} {
		if err := os.WriteFile(filepath.Join(root, "uploads", name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(durable.OS, root); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(root, "uploads"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "README" {
		t.Errorf("left: %v, %v", entries, err)
	}
}
