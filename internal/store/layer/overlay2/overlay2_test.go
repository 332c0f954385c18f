package overlay2_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/layertest"
	"ply/internal/store/layer/overlay2"
)

func open(t *testing.T, root string) layer.Driver {
	t.Helper()
	d, err := overlay2.Open(durable.OS, root, overlay2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) { layertest.Run(t, open) }

func BenchmarkDriver(b *testing.B) {
	layertest.RunBenchmarks(b, func(b *testing.B, root string) layer.Driver {
		d, err := overlay2.Open(durable.OS, root, overlay2.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return d
	})
}

func TestFaults(t *testing.T) {
	layertest.RunFaults(t, func(fsys durable.FS, root string) (layer.Driver, error) {
		return overlay2.Open(fsys, root, overlay2.Options{})
	})
}

func TestVersions(t *testing.T) {
	layertest.RunVersions(t, func(fsys durable.FS, root string) (layer.Driver, error) {
		return overlay2.Open(fsys, root, overlay2.Options{})
	})
}

// A data root on a tmpfs, as of a nested engine.
func TestTmpfs(t *testing.T) {
	layertest.Run(t, func(t *testing.T, root string) layer.Driver {
		mounted, err := mount.IsMounted(root)
		if err != nil {
			t.Fatal(err)
		}
		if !mounted {
			if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
		}
		if ok, why := overlay2.Probe(root); !ok {
			t.Fatalf("Probe = false, %q", why)
		}
		if err := unix.Setxattr(root, "user.ply", nil, 0); errors.Is(err, unix.ENOTSUP) {
			t.Skip("user's extended attributes on a tmpfs need Linux 6.6")
		}
		return open(t, root)
	})
}

// What an earlier process has mounted is not removed.
func TestRemoveAfterRestart(t *testing.T) {
	base, err := os.MkdirTemp("", "o2") // a short path: a long one is mounted by descriptor and has no name in mountinfo
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	root, target := filepath.Join(base, "a b,c"), filepath.Join(base, "mnt")
	for _, d := range []string{root, target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first := open(t, root)
	w, err := first.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	info, err := w.Commit(t.Context(), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	chain := oci.Chain{info.DiffID}
	if err := first.View(t.Context(), chain, target); err != nil {
		t.Fatal(err)
	}
	defer first.Unmount(context.WithoutCancel(t.Context()), target)
	second := open(t, root)
	if err := second.Remove(t.Context(), second.Keys(chain)[0]); !errors.Is(err, errs.Conflict) {
		t.Errorf("remove of what an earlier process mounted: %v, want class conflict", err)
	}
	if err := second.Unmount(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if err := second.Remove(t.Context(), second.Keys(chain)[0]); err != nil {
		t.Errorf("remove: %v", err)
	}
}

func TestProbeSaysWhy(t *testing.T) {
	if ok, why := overlay2.Probe(filepath.Join(t.TempDir(), "missing")); ok || why == "" {
		t.Errorf("Probe of nothing = %v, %q", ok, why)
	}
	// The upper directory of an overlay cannot be on another overlay.
	base := t.TempDir()
	dirs := map[string]string{}
	for _, n := range []string{"a", "b", "upper", "work", "mnt"} {
		dirs[n] = filepath.Join(base, n)
		if err := os.Mkdir(dirs[n], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := mount.Overlay{Lower: []mount.Layer{mount.At(dirs["a"]), mount.At(dirs["b"])}, Upper: dirs["upper"], Work: dirs["work"]}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	err = tr.Attach(dirs["mnt"])
	tr.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer mount.Unmount(dirs["mnt"], true)
	if ok, why := overlay2.Probe(dirs["mnt"]); ok || !strings.Contains(why, "overlayfs") {
		t.Errorf("Probe on overlayfs = %v, %q", ok, why)
	}
}

func TestDurability(t *testing.T) {
	layertest.RunDurability(t, func(fsys durable.FS, root string) (layer.Driver, error) {
		return overlay2.Open(fsys, root, overlay2.Options{})
	})
}
