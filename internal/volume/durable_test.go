package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/store"
	"ply/internal/store/layer/overlay2"
	"ply/internal/store/meta"
)

// traced returns a service and a function that returns its disk operations since the last call: each with its path below
// the root, and with whether the database had a record of the volume "vol" at that moment.
func traced(t *testing.T, fsys *faultfs.FS) (s *Service, trace func() []string) {
	t.Helper()
	dir := t.TempDir()
	fsys.Under = durable.OS
	drv, err := overlay2.Open(durable.OS, dir, overlay2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(dir, drv, store.Options{FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	if s, err = New(Options{Store: st, Root: filepath.Join(dir, "volumes"), MountRoot: filepath.Join(dir, "run")}); err != nil {
		t.Fatal(err)
	}
	var ops []string
	temp := regexp.MustCompile(`\.tmp-\S+`)
	fsys.Trace = func(op string) {
		verb, path, _ := strings.Cut(op, " ")
		path = strings.TrimPrefix(strings.TrimPrefix(path, s.opts.Root), "/")
		record := "without record"
		_ = st.Meta.View(func(tx *meta.Tx) error {
			if tx.Volumes.Has("vol") {
				record = "with record"
			}
			return nil
		})
		ops = append(ops, temp.ReplaceAllString(verb+" "+path, "TEMP")+", "+record)
	}
	return s, func() []string {
		out := ops
		ops = nil
		return out
	}
}

func wantOps(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// A volume's directories are durable before its record, and a removed volume's directory has lost its name, durably,
// before its record and its data are deleted.
func TestOrderOfDiskOperations(t *testing.T) {
	s, trace := traced(t, &faultfs.FS{})
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantOps(t, "create", trace(),
		"mkdirall vol, without record", "mkdir vol/_data, without record", "syncdir vol, without record", "syncdir , without record")

	src, err := os.Open(filled(t))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	s.AddReferences(c1, "vol")
	if err := s.Populate(ctx, c1, Mount{Name: "vol"}, src); err != nil {
		t.Fatal(err)
	}
	wantOps(t, "populate", trace(),
		"mkdir TEMP, with record", "syncfs TEMP, with record", "rename vol/_data, with record",
		"syncdir vol, with record")
	if b, err := os.ReadFile(filepath.Join(v.Mountpoint, "f")); err != nil || string(b) != "content" {
		t.Errorf("file of the image = %q, %v", b, err)
	}

	s.DropReferences(c1)
	if err := s.Remove(ctx, "vol", false); err != nil {
		t.Fatal(err)
	}
	wantOps(t, "remove", trace(), "rename TEMP, with record", "rename .removing/vol, with record", "syncdir , with record", "syncdir .removing, with record",
		"rename TEMP, without record", "removeall TEMP, without record")
}

func filled(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An earlier attempt may have made the directories without making them durable.
func TestCreateSyncsDirectoriesThatAreThere(t *testing.T) {
	s, trace := traced(t, &faultfs.FS{})
	if err := os.MkdirAll(s.path("vol"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, "vol", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	wantOps(t, "create", trace(),
		"mkdirall vol, without record", "mkdir vol/_data, without record", "syncdir vol, without record", "syncdir , without record")
}

// A create that fails at any operation leaves no volume, and the next one succeeds.
func TestCreateFailsAtEveryOperation(t *testing.T) {
	for n := 1; ; n++ {
		f := &faultfs.FS{}
		s, _ := traced(t, f)
		f.FailAt = f.Count() + n
		_, err := s.Create(ctx, "vol", "", nil, nil)
		if !f.Hit() {
			if n != 5 {
				t.Errorf("creating a volume takes %d operations, want 4", n-1)
			}
			return
		}
		if err == nil {
			t.Errorf("operation %d failed, Create did not", n)
		}
		if _, err := s.Get(ctx, "vol"); !errors.Is(err, errs.NotFound) {
			t.Errorf("after a failure at operation %d: %v, want NotFound", n, err)
		}
		if _, err := s.Create(ctx, "vol", "", nil, nil); err != nil {
			t.Errorf("second attempt after a failure at operation %d: %v", n, err)
		}
	}
}

// A removal that fails or is interrupted at any operation leaves the volume with its data, or no volume and no data that a later
// volume of that name could show. This is so at once and after the next start.
func TestRemoveFailsAtEveryOperation(t *testing.T) {
	for _, forever := range []bool{false, true} {
		for n := 1; ; n++ {
			f := &faultfs.FS{Forever: forever}
			s, _ := traced(t, f)
			v, err := s.Create(ctx, "vol", "", nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(v.Mountpoint, "f"), []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			f.FailAt = f.Count() + n
			err = s.Remove(ctx, "vol", false)
			if !f.Hit() {
				if n != 7 {
					t.Errorf("removing a volume takes %d operations, want 6", n-1)
				}
				break
			}
			what := fmt.Sprintf("operation %d (and all later ones: %v) failed", n, forever)
			if err == nil {
				t.Errorf("%s, Remove did not", what)
			}
			f.FailAt = 0
			if !forever {
				keptOrGone(t, s, what)
			}
			again, err := New(s.opts)
			if err != nil {
				t.Fatal(err)
			}
			keptOrGone(t, again, what+", after a start")
			if left, err := os.ReadDir(filepath.Join(s.opts.Root, removingDir)); err != nil || len(left) != 0 {
				t.Errorf("%s: left %v, %v", what, left, err)
			}
			if err := again.Remove(ctx, "vol", true); err != nil {
				t.Errorf("%s: the next removal: %v", what, err)
			}
			if left, err := os.ReadDir(s.opts.Root); err != nil || len(left) != 1 {
				t.Errorf("%s: left %v, %v", what, left, err)
			}
		}
	}
}

// keptOrGone checks that the volume has its file if it exists. Otherwise it makes the volume anew, which must be empty.
func keptOrGone(t *testing.T, s *Service, what string) {
	t.Helper()
	v, err := s.Get(ctx, "vol")
	if err == nil {
		if b, err := os.ReadFile(filepath.Join(v.Mountpoint, "f")); err != nil || string(b) != "kept" {
			t.Errorf("%s: the volume is there with %q, %v", what, b, err)
		}
		return
	}
	if !errors.Is(err, errs.NotFound) {
		t.Errorf("%s: %v", what, err)
	}
	if v, err = s.Create(ctx, "vol", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(v.Mountpoint); err != nil || len(left) > 0 {
		t.Errorf("%s: a new volume of that name has %v, %v", what, left, err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "f"), []byte("kept"), 0o600); err != nil {
		t.Error(err)
	}
}

// When the engine ends after the directory was moved and before the record is deleted, the volume has its data after the next
// start. When it ends after that, the data is deleted.
func TestInterruptedRemoval(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		s, _ := traced(t, &faultfs.FS{})
		v, err := s.Create(ctx, "vol", "", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(v.Mountpoint, "f"), []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		if moved, err := (trash{s.opts.Store.FS, s.opts.Store.Meta, s.opts.Root}).move("vol"); err != nil || !moved {
			t.Fatalf("moved: %v, %v", moved, err)
		}
		if deleted {
			if err := s.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Volumes.Delete("vol") }); err != nil {
				t.Fatal(err)
			}
		}
		if s, err = New(s.opts); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(ctx, "vol"); errors.Is(err, errs.NotFound) != deleted {
			t.Errorf("record deleted: %v; after a start: %v", deleted, err)
		}
		keptOrGone(t, s, fmt.Sprintf("record deleted: %v", deleted))
	}
}

// A temporary that a crash left in the directory of a volume is removed by the next start; a file of the volume of such a name is not.
func TestStartRemovesTemporaries(t *testing.T) {
	s, _ := traced(t, &faultfs.FS{})
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	left, kept := durable.TempName(filepath.Dir(v.Mountpoint)), durable.TempName(v.Mountpoint)
	for _, name := range []string{left, kept} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(s.opts); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("the file of the volume: %v", err)
	}
}
