package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/store"
	"ply/internal/store/layer/overlay2"
	"ply/internal/store/meta/metatest"

	"ply/internal/durable"
)

// A volume whose record has changed on disk is listed as damaged, is neither used nor pruned, keeps its data, and goes by force only.
func TestDamagedVolume(t *testing.T) {
	s := newService(t)
	for _, name := range []string{"bad", "good"} {
		v, err := s.Create(ctx, name, "", map[string]string{"a": "b"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(v.Mountpoint, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := s.opts.Store.Root
	if err := s.opts.Store.Close(); err != nil {
		t.Fatal(err)
	}
	metatest.Falsify(t, filepath.Join(root, "meta.db"), "volumes", "bad", `"a":"b"`, `"a":"c"`)
	drv, err := overlay2.Open(durable.OS, root, overlay2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(root, drv, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.opts.Store = st
	defer st.Close()
	list, err := s.List(ctx, nil)
	if err != nil || len(list) != 2 || list[0].Name != "bad" || list[0].Damaged == nil || list[1].Damaged != nil {
		t.Fatalf("List = %v, %v", list, err)
	}
	_, err = s.Get(ctx, "bad")
	wantErr(t, err, errs.DataLoss, "volume bad")
	wantErr(t, err, errs.DataLoss, "system check --repair")
	_, err = s.Create(ctx, "bad", "", nil, nil)
	wantErr(t, err, errs.DataLoss, "volume bad")
	wantErr(t, s.Remove(ctx, "bad", false), errs.DataLoss, "volume rm -f")
	if names, _, err := s.Prune(ctx, map[string][]string{"all": {"true"}}); err != nil || strings.Join(names, " ") != "good" {
		t.Errorf("Prune = %v, %v; want good only", names, err)
	}
	if _, err := os.Stat(filepath.Join(s.path("bad"), "f")); err != nil {
		t.Errorf("its data: %v", err)
	}
	s.AddReferences(c1, AnyVolume)
	wantErr(t, s.Remove(ctx, "bad", true), errs.Conflict, "may use the volume")
	s.DropReferences(c1)
	if err := s.Remove(ctx, "bad", true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.path("bad")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its data after the removal: %v", err)
	}
	if _, err := s.Create(ctx, "bad", "", nil, nil); err != nil {
		t.Errorf("Create after the removal = %v", err)
	}
}

// While a container has a damaged record no volume is removed, and afterwards they are.
func TestVolumesStayForADamagedContainer(t *testing.T) {
	s := newService(t)
	if _, err := s.Create(ctx, "v1", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	s.AddReferences(c1, AnyVolume)
	wantErr(t, s.Remove(ctx, "v1", true), errs.Conflict, c1.Short())
	if names, _, err := s.Prune(ctx, map[string][]string{"all": {"true"}}); err != nil || len(names) != 0 {
		t.Errorf("Prune = %v, %v", names, err)
	}
	s.DropReferences(c1)
	if err := s.Remove(ctx, "v1", false); err != nil {
		t.Error(err)
	}
}
