package container_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/volume"
)

// A bind makes its source, is shared in both directions and outlives the container; --volumes-from takes the mounts over.
func TestBindAndVolumesFrom(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	host := filepath.Join(w.dir, "host", "made")
	u1 := w.up(func(s *spec.Spec) { s.Name = "u1"; s.Binds = []string{host + ":/shared"} })
	if code, out := w.exec(u1, "sh", "-c", "echo inside > /shared/a"); code != 0 {
		t.Fatal(out)
	}
	if b, err := os.ReadFile(filepath.Join(host, "a")); err != nil || string(b) != "inside\n" {
		t.Fatalf("%q %v", b, err)
	}
	m := w.get(u1).Mounts
	if len(m) != 1 || m[0].Type != "bind" || m[0].Source != host || m[0].Target != "/shared" || !m[0].RW || m[0].Propagation != "rprivate" {
		t.Errorf("mounts %+v", m)
	}
	if err := w.s.Stop(ctx, u1, "", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "b"), []byte("outside\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.start(u1)
	if _, out := w.exec(u1, "cat", "/shared/a", "/shared/b"); out != "inside\noutside\n" {
		t.Errorf("after a restart %q", out)
	}
	u2 := w.up(func(s *spec.Spec) { s.VolumesFrom = []string{"u1"} })
	u3 := w.up(func(s *spec.Spec) { s.VolumesFrom = []string{"u1:ro"} })
	if _, out := w.exec(u2, "sh", "-c", "echo two > /shared/c; cat /shared/a"); out != "inside\n" {
		t.Errorf("u2 sees %q", out)
	}
	if _, out := w.exec(u1, "cat", "/shared/c"); out != "two\n" {
		t.Errorf("u1 sees %q", out)
	}
	if code, out := w.exec(u3, "touch", "/shared/d"); code == 0 || !strings.Contains(out, "Read-only file system") {
		t.Errorf("read-only volumes-from: %d %q", code, out)
	}
	if err := w.s.Remove(ctx, u1, true, true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(host, "a")); err != nil {
		t.Error("the host's data went with the container")
	}
}

func TestVolumeCopyUp(t *testing.T) { onDrivers(t, volumeCopyUp) }

func volumeCopyUp(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.create(spec.Spec{Image: "box", NetworkMode: "none", Binds: []string{"named:/seeded"}, Cmd: []string{"true"}})
	v, err := w.vols.Get(ctx, "named")
	if err != nil {
		t.Fatal(err)
	}
	var dir, one, two unix.Stat_t
	for p, st := range map[string]*unix.Stat_t{"": &dir, "file": &one, "hard": &two} {
		if err := unix.Lstat(filepath.Join(v.Mountpoint, p), st); err != nil {
			t.Fatal(err)
		}
	}
	if dir.Mode&0o7777 != 0o750 || dir.Uid != 1000 || one.Mode&0o7777 != 0o640 || one.Gid != 1000 || one.Ino != two.Ino || one.Mtim.Sec != 1e9 {
		t.Errorf("copied %+v %+v %+v", dir, one, two)
	}
	if l, err := os.Readlink(filepath.Join(v.Mountpoint, "link")); err != nil || l != "/etc/passwd" {
		t.Errorf("link %q %v", l, err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "file"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, out, _ := w.run(spec.Spec{Image: "box", NetworkMode: "none", Binds: []string{"named:/seeded"}, Cmd: []string{"cat", "/seeded/file"}})
	if out != "changed" {
		t.Errorf("a volume with data was filled again: %q", out)
	}
	_, out, _ = w.run(spec.Spec{Image: "box", NetworkMode: "none", Binds: []string{"empty:/seeded:nocopy"}, Cmd: []string{"ls", "-A", "/seeded"}})
	if out != "" {
		t.Errorf("nocopy copied %q", out)
	}
	wantErr(t, w.vols.Remove(ctx, "named", false), errs.Conflict, "remove named: volume is in use - [")
	if err := w.s.Remove(ctx, id, false, true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.vols.Get(ctx, "named"); err != nil {
		t.Error("rm -v took a named volume")
	}
}

// A VOLUME of an image becomes an anonymous volume that is filled from the image and removed by rm -v.
func TestImageVolume(t *testing.T) { onDrivers(t, imageVolume) }

func imageVolume(t *testing.T, w *world) {
	ctx := context.Background()
	w.makeImage("withvolume", func(c *oci.Config, _ *[]file) { c.Config.Volumes = map[string]struct{}{"/seeded": {}} })
	spec := sh("cat /seeded/file; echo more > /seeded/new")
	spec.Image = "withvolume"
	id := w.create(spec)
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	recv(t, exit)
	if out, _ := w.logs(id); out != "from the image\n" {
		t.Errorf("volume holds %q", out)
	}
	m := w.get(id).Mounts
	if len(m) != 1 || !m[0].Anonymous || !oci.IsHex64(m[0].Name) {
		t.Fatalf("mounts %+v", m)
	}
	if ch, err := w.s.Changes(ctx, id); err != nil || hasChange(ch, "/seeded/new") {
		t.Errorf("a volume's file is in the diff: %v %v", ch, err)
	}
	if err := w.s.Remove(ctx, id, false, true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := w.vols.Get(ctx, m[0].Name); err == nil {
		t.Error("rm -v left the anonymous volume")
	}
}

// A subpath of a volume, a directory or a file, is what the container and docker cp see, and nothing of it stays mounted.
func TestVolumeSubpath(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	v, err := w.vols.Create(ctx, "parts", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(v.Mountpoint, "a", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "a", "sub", "f"), []byte("part"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := w.up(func(s *spec.Spec) {
		s.Mounts = []volume.MountSpec{
			{Type: "volume", Source: "parts", Target: "/dir", Subpath: "a/sub"},
			{Type: "volume", Source: "parts", Target: "/file", Subpath: "a/sub/f", ReadOnly: true},
		}
	})
	if code, out := w.exec(id, "sh", "-c", "exec 2>&1; cat /dir/f /file; echo new > /dir/new; echo x > /file"); code == 0 || !strings.HasPrefix(out, "partpart") || !strings.Contains(out, "Read-only") {
		t.Errorf("%d %q", code, out)
	}
	if b, err := os.ReadFile(filepath.Join(v.Mountpoint, "a", "sub", "new")); err != nil || string(b) != "new\n" {
		t.Errorf("%q %v", b, err)
	}
	if fi, err := w.s.Files().PathStat(ctx, id, "/dir/new"); err != nil || fi.Size != 4 {
		t.Errorf("cp sees %+v %v", fi, err)
	}
	if err := w.s.Stop(ctx, id, "", nil); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(ctx, id, true, true, false); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(w.dir, "run", "volumes")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if b, err := os.ReadFile(filepath.Join(v.Mountpoint, "a", "sub", "f")); err != nil || string(b) != "part" {
		t.Errorf("the volume's file: %q %v", b, err)
	}
}

// A directory in a volume gets what the image has at its place, if it is there and empty.
func TestSubpathCopyUp(t *testing.T) { onDrivers(t, subpathCopyUp) }

func subpathCopyUp(t *testing.T, w *world) {
	ctx := context.Background()
	v, err := w.vols.Create(ctx, "parts", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	in := func(p string) string { return filepath.Join(v.Mountpoint, p) }
	for _, d := range []string{"alone/sub", "linked", "full", "shared"} {
		if err := os.MkdirAll(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/linked", in("link")), os.WriteFile(in("full/own"), nil, 0o644), os.WriteFile(in("plain"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	make := func(sub string, nocopy bool) string {
		return w.create(spec.Spec{Image: "box", NetworkMode: "none", Cmd: []string{"true"},
			Mounts: []volume.MountSpec{{Type: "volume", Source: "parts", Target: "/seeded", Subpath: sub, NoCopy: nocopy}}})
	}
	list := func(dir string) (names []string) {
		entries, err := os.ReadDir(in(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for _, c := range []struct {
		sub, dir string
		nocopy   bool
		want     []string
	}{
		{"alone/sub", "alone", true, []string{"sub"}},
		{"alone/sub", "alone/sub", true, nil},
		{"alone/sub", "alone/sub", false, []string{"file", "hard", "link"}},
		{"link", "linked", false, []string{"file", "hard", "link"}},
		{"full", "full", false, []string{"own"}},
		{"absent", ".", false, []string{"alone", "full", "link", "linked", "plain", "shared"}},
		{"plain", ".", false, []string{"alone", "full", "link", "linked", "plain", "shared"}},
	} {
		id := make(c.sub, c.nocopy)
		if got := list(c.dir); !slices.Equal(got, c.want) {
			t.Errorf("subpath %s: %s has %v, want %v", c.sub, c.dir, got, c.want)
		}
		if err := w.s.Remove(ctx, id, false, true, false); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(in("alone/sub"), &st); err != nil || st.Mode&0o7777 != 0o750 || st.Uid != 1000 {
		t.Errorf("the directory: %+v %v", st, err)
	}
	make("shared", true) // whose directory must stay where it is
	before, err := os.Stat(in("shared"))
	if err != nil {
		t.Fatal(err)
	}
	make("shared", false)
	if after, err := os.Stat(in("shared")); err != nil || !os.SameFile(before, after) || len(list("shared")) != 3 {
		t.Errorf("a shared directory: %v %v", list("shared"), err)
	}
}

func hasChange(ch []container.Change, path string) bool {
	for _, c := range ch {
		if c.Path == path {
			return true
		}
	}
	return false
}

func TestMountErrors(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	try := func(edit func(*spec.Spec)) error {
		s := sh("true")
		edit(&s)
		_, _, err := w.s.Create(ctx, s)
		return err
	}
	for _, c := range []struct {
		edit func(*spec.Spec)
		text string
	}{
		{func(s *spec.Spec) { s.Binds = []string{"/a:/x", "/b:/x"} }, "Duplicate mount point: /x"},
		{func(s *spec.Spec) { s.Binds = []string{"/a:/x"}; s.Tmpfs = map[string]string{"/x": ""} }, "Duplicate mount point: /x"},
		{func(s *spec.Spec) { s.Binds = []string{"/a:/"} }, "destination can't be '/'"},
		{func(s *spec.Spec) { s.Binds = []string{"/a:b"} }, "mount path must be absolute"},
		{func(s *spec.Spec) { s.Binds = []string{"/a:/b:wo"} }, "invalid mode: wo"},
		{func(s *spec.Spec) { s.Binds = []string{"fresh:/ok", "a:/b:ro:x"} }, "invalid volume specification: 'a:/b:ro:x'"},
		{func(s *spec.Spec) { s.Binds = []string{"./rel:/b"} }, "includes invalid characters for a local volume name"},
		{func(s *spec.Spec) {
			s.Mounts = []volume.MountSpec{{Type: "bind", Source: "/no/such", Target: "/x"}}
		}, `invalid mount config for type "bind": bind source path does not exist: /no/such`},
		{func(s *spec.Spec) {
			s.Mounts = []volume.MountSpec{{Type: "image", Source: "no/such", Target: "/x"}}
		}, "No such image: no/such"},
		{func(s *spec.Spec) { s.VolumesFrom = []string{"nobody"} }, "No such container: nobody"},
		{func(s *spec.Spec) { s.Tmpfs = map[string]string{"/x": "bogus=1"} }, `invalid tmpfs option "bogus=1"`},
	} {
		wantErr(t, try(c.edit), nil, c.text)
	}
	if v, _ := w.vols.List(ctx, nil); len(v) != 0 {
		t.Errorf("volumes of failed creates stay: %v", v[0])
	}
}

func TestTmpfsAndShm(t *testing.T) {
	w := newWorld(t)
	sp := sh("mount | grep -c 'on /scratch type tmpfs'; touch /scratch/x && echo ok")
	sp.Cmd = []string{"sh", "-c", "while read d p t r; do test $p = /scratch && echo $t; done < /proc/mounts; touch /scratch/x && echo ok"}
	sp.Tmpfs = map[string]string{"/scratch": "size=1m,mode=1777"}
	if code, out, errOut := w.run(sp); code != 0 || out != "tmpfs\nok\n" {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	donor := w.up(func(s *spec.Spec) { s.IpcMode = "shareable" })
	if code, out := w.exec(donor, "sh", "-c", "echo shared > /dev/shm/x"); code != 0 {
		t.Fatal(out)
	}
	sp = sh("cat /dev/shm/x")
	sp.IpcMode = "container:" + donor
	if code, out, errOut := w.run(sp); code != 0 || out != "shared\n" {
		t.Errorf("ipc of a container: %d %q %q", code, out, errOut)
	}
	sp = sh("ls /proc | grep -c x")
	sp.Cmd = []string{"sh", "-c", "cat /proc/1/cmdline"}
	sp.PidMode = "container:" + donor
	if _, out, errOut := w.run(sp); !strings.Contains(out, "echo ready") {
		t.Errorf("pid of a container: %q %q", out, errOut)
	}
	sp = sh("ip link | head -1; hostname")
	sp.NetworkMode = "container:" + donor
	if code, _, errOut := w.run(sp); code != 0 {
		t.Errorf("network of a container: %q", errOut)
	}
}
