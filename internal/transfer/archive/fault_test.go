package archive_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/image"
	"ply/internal/store"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

// In each round another disk operation of a load fails, once or from then on. After a restart, a load that returned no error is
// complete, and one that returned an error has left no names and no images.
func TestLoadFaults(t *testing.T) {
	s := newSide(t, archive.Options{})
	pulled(t, s, "h:5000/app:1", true)
	data := s.save(t, "", "h:5000/app:1")
	n := 1
	for loadWithFault(t, data, n, false) {
		n++
	}
	if n < 10 {
		t.Errorf("only %d operations", n)
	}
	t.Logf("%d operations", n-1)
	for n = 1; loadWithFault(t, data, n, true); n += 5 {
	}
}

// loadWithFault reports whether the fault occurred.
func loadWithFault(t *testing.T, data []byte, n int, forever bool) bool {
	t.Helper()
	root, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	faulty := &faultfs.FS{Under: durable.OS, Forever: forever, Err: syscall.ENOSPC, Short: n%2 == 0}
	st, images := openErofs(t, root, faulty)
	faulty.FailAt = faulty.Count() + n
	loadErr := archive.New(st, images, archive.Options{}).Load(t.Context(), bytes.NewReader(data), transfer.LoadOptions{}, transfer.Discard)
	hit := faulty.Hit()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}

	st, images = openErofs(t, root, durable.OS)
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	count := 0
	if err := st.Meta.View(func(tx *meta.Tx) error {
		count = tx.Names.Len() + tx.Images.Len()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if loadErr != nil {
		if count != 0 {
			t.Errorf("operation %d: failed (%v), yet left %d records", n, loadErr, count)
		}
		if !strings.Contains(loadErr.Error(), "injected") {
			t.Errorf("operation %d: %v", n, loadErr)
		}
	} else {
		var b bytes.Buffer
		if err := archive.New(st, images, archive.Options{}).Save(t.Context(), []string{"h:5000/app:1"}, transfer.SaveOptions{}, &b); err != nil || !bytes.Equal(b.Bytes(), data) {
			t.Errorf("operation %d: acknowledged, then: %v, %d bytes", n, err, b.Len())
		}
	}
	if n%3 != 0 { // the following takes long
		return hit
	}
	// The next load succeeds.
	if err := archive.New(st, images, archive.Options{}).Load(t.Context(), bytes.NewReader(data), transfer.LoadOptions{}, transfer.Discard); err != nil {
		t.Errorf("operation %d: again: %v", n, err)
	}
	_ = filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && durable.IsTemp(e.Name()) {
			t.Errorf("operation %d: temporary %s", n, p)
		}
		return nil
	})
	return hit
}

func openErofs(t *testing.T, root string, fsys durable.FS) (*store.Store, *image.Service) {
	t.Helper()
	d, err := erofs.Open(fsys, root, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(root, d, store.Options{FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return st, image.New(st, image.Options{})
}
