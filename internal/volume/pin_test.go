package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/safepath/racetest"
)

// A container that exchanges a directory of its volume and a link to a directory of the host cannot make a subpath lead to the
// host's directory. The runtime's part, which mounts the source that Prepare returns, is done here by mount.Bind.
func TestSubpathNeverLeavesTheVolume(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	host, target := t.TempDir(), t.TempDir()
	for name, data := range map[string]string{filepath.Join(host, "sub", "f"): "host", filepath.Join(v.Mountpoint, "a", "sub", "f"): "volume"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(host, filepath.Join(v.Mountpoint, "link")); err != nil {
		t.Fatal(err)
	}
	stop := racetest.Exchange(t, [2]string{filepath.Join(v.Mountpoint, "a"), filepath.Join(v.Mountpoint, "link")})
	defer stop()
	mounted, refused := 0, 0
	for begun := time.Now(); time.Since(begun) < 2*time.Second || (mounted == 0 || refused == 0) && time.Since(begun) < time.Minute; {
		got, err := s.Prepare(ctx, c1, []Mount{{Type: "volume", Name: "vol", Subpath: "a/sub"}})
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			refused++
			continue
		}
		err = mount.Bind(got[0].Source, target, false)
		if err == nil {
			mounted++
			b, err := os.ReadFile(filepath.Join(target, "f"))
			if err := mount.Unmount(target, true); err != nil {
				t.Fatal(err)
			}
			if err != nil || string(b) != "volume" {
				t.Fatalf("after %d mounts the subpath shows %q, %v", mounted, b, err)
			}
		}
		s.Release(c1)
	}
	if mounted == 0 || refused == 0 {
		t.Errorf("%d mounts, %d refusals: the race was not tried", mounted, refused)
	}
}

// What a subpath names, a directory or a file, is mounted until Release, and a new service removes what a crash left.
func TestSubpathMountsAndReleases(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(v.Mountpoint, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "dir", "file"), []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	mounts := []Mount{{Type: "volume", Name: "vol", Subpath: "dir"}, {Type: "volume", Name: "vol", Subpath: "dir/file"}}
	gone := func() {
		t.Helper()
		if left, err := os.ReadDir(s.opts.MountRoot); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		if b, err := os.ReadFile(filepath.Join(v.Mountpoint, "dir", "file")); err != nil || string(b) != "data" {
			t.Errorf("the volume's data: %q, %v", b, err)
		}
	}
	for range 2 {
		got, err := s.Prepare(ctx, c1, mounts)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{filepath.Join(got[0].Source, "file"), got[1].Source} {
			if b, err := os.ReadFile(name); err != nil || string(b) != "data" {
				t.Errorf("%s = %q, %v", name, b, err)
			}
		}
		s.Release(c1)
		gone()
	}
	if _, err := s.Prepare(ctx, c1, append(mounts, Mount{Type: "volume", Name: "vol", Subpath: "absent"})); !errors.Is(err, errs.Invalid) {
		t.Errorf("absent subpath: %v", err)
	}
	gone()
	if _, err := s.Prepare(ctx, c1, mounts); err != nil {
		t.Fatal(err)
	}
	if _, err := New(s.opts); err != nil {
		t.Fatal(err)
	}
	gone()
}
