package bolt

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/errs"
	"ply/internal/record"
	"ply/internal/record/recordtest"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/metadata/metadatatest"
)

func TestSuite(t *testing.T) {
	metadatatest.Run(t, func(t *testing.T) metadata.Store {
		s, err := Open(filepath.Join(t.TempDir(), "metadata.db"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a second process: %v", err)
	}
	if err := s.PutLink(t.Context(), metadata.Link{Repository: "a", Digest: content.SHA256.Of(nil)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.PutLink(t.Context(), metadata.Link{Repository: "a", Digest: content.SHA256.Of(nil)}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a write after the end: %v", err)
	}
	if _, err := s.Link(t.Context(), "a", content.SHA256.Of(nil)); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a read after the end: %v", err)
	}
	s, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Link(t.Context(), "a", content.SHA256.Of(nil)); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	err = s.db.Update(func(t *bbolt.Tx) error {
		return t.Bucket(bucketMeta).Put(keyVersion, []byte(`{"version":99,"writer":"9.9"}`))
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, errs.Precondition) {
		t.Errorf("a database of a newer release: %v", err)
	}
	damaged := filepath.Join(t.TempDir(), "metadata.db")
	if err := os.WriteFile(damaged, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(damaged); !errors.Is(err, errs.DataLoss) {
		t.Errorf("a damaged database: %v", err)
	}
}

func TestRecords(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := content.SHA256.Of(nil)
	for name, r := range map[string]any{
		"repository.v1.json": repositoryRecord{Created: now},
		"manifest.v1.json": manifestRecord{MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 7, ArtifactType: "application/x", Subject: d,
			Annotations: map[string]string{"k": "v"}, Pushed: now},
		"tag.v1.json":    tagRecord{Digest: d, Updated: now},
		"link.v1.json":   linkRecord{Size: 7, Linked: now},
		"upload.v1.json": uploadRecord{State: []byte("state"), Used: now},
	} {
		b, err := record.Marshal(1, r)
		if err != nil {
			t.Fatal(err)
		}
		recordtest.Golden(t, name, b)
	}
}

// Uploads are bounded without counting them each time, also after a restart.
func TestUploadsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var holds []metadata.Hold
	for _, id := range []string{"a", "b", "c"} {
		h, err := s.CreateUpload(t.Context(), id, nil)
		if err != nil {
			t.Fatal(err)
		}
		holds = append(holds, h)
	}
	for range 2 {
		if err := holds[0].Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if n := s.uploads.Load(); n != 2 {
			t.Errorf("%d uploads, want 2", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(path); err != nil {
			t.Fatal(err)
		}
	}
	defer s.Close()
	s.uploads.Store(metadata.MaxUploads)
	if _, err := s.CreateUpload(t.Context(), "d", nil); !errors.Is(err, errs.Exhausted) {
		t.Errorf("one more than allowed: %v", err)
	}
}

// Who touches an object that is being collected waits until it is gone, and one of its kind is collected at a time.
func TestTouchDuringCollection(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := content.SHA256.Of(nil)
	if err := s.PutLink(t.Context(), metadata.Link{Repository: "a", Digest: d}); err != nil {
		t.Fatal(err)
	}
	end, err := s.collecting.begin(t.Context(), s.slot("a", d))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan string, 2)
	go func() {
		if err := s.Touch(t.Context(), "a", d); err != nil {
			t.Error(err)
		}
		ended <- "Touch"
	}()
	go func() {
		if _, err := s.CollectLink(t.Context(), "a", d, time.Now().Add(-time.Hour)); err != nil {
			t.Error(err)
		}
		ended <- "CollectLink"
	}()
	select {
	case who := <-ended:
		t.Errorf("%s did not wait", who)
		ended <- who
	case <-time.After(100 * time.Millisecond):
	}
	if err := s.Touch(t.Context(), "a", content.SHA256.Of([]byte("other"))); err != nil {
		t.Errorf("another object: %v", err)
	}
	end()
	<-ended
	<-ended
}
