package container_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/container/rootfs"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
)

func anything(rootfs.Info) error { return nil }

func (w *world) copyFrom(id, path string) map[string]string {
	w.t.Helper()
	var b bytes.Buffer
	if err := w.files.CopyFrom(context.Background(), id, path, anything, &b); err != nil {
		w.t.Fatalf("copy from %s: %v", path, err)
	}
	return readTar(w.t, &b)
}

// readTar maps names to content, links to "-> target".
func readTar(t testing.TB, r io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(b)
		if h.Linkname != "" {
			out[h.Name] = "-> " + h.Linkname
		}
	}
}

func TestCopy(t *testing.T) { onDrivers(t, copy) }

func copy(t *testing.T, w *world) {
	ctx := context.Background()
	id := w.up(func(s *spec.Spec) {
		s.Binds = []string{"data:/data", "ro:/ro:ro"}
		s.Tmpfs = map[string]string{"/mem": ""}
	})
	st, err := w.files.PathStat(ctx, id, "/seeded/link")
	if err != nil || st.Name != "link" || st.LinkTarget != "/etc/passwd" || st.Mode&fs.ModeSymlink == 0 {
		t.Errorf("stat of a link %+v %v", st, err)
	}
	if st, err = w.files.PathStat(ctx, id, "/seeded/"); err != nil || !st.Mode.IsDir() {
		t.Errorf("stat of a directory %+v %v", st, err)
	}
	_, err = w.files.PathStat(ctx, id, "/nope")
	wantErr(t, err, errs.NotFound, "Could not find the file /nope in container "+id)
	_, err = w.files.PathStat(ctx, id, "/etc/passwd/")
	wantErr(t, err, errs.Invalid, "lstat /etc/passwd/: not a directory")
	if got := w.copyFrom(id, "/etc/group"); got["group"] == "" || len(got) != 1 {
		t.Errorf("one file: %v", got)
	}
	if got := w.copyFrom(id, "/seeded"); got["seeded/file"] != "from the image\n" || got["seeded/link"] != "-> /etc/passwd" || got["seeded/hard"] != "-> seeded/file" {
		t.Errorf("a directory: %v", got)
	}
	in := makeTar(t, []file{{name: "put", data: "in", mode: 0o600, uid: 1000, gid: 1000}, {name: "sub", kind: tar.TypeDir, mode: 0o700}, {name: "sub/x", data: "y", mode: 0o644}})
	for _, dir := range []string{"/data", "/tmp"} {
		if err := w.files.CopyTo(ctx, id, dir, bytes.NewReader(in), true, false); err != nil {
			t.Fatal(err)
		}
		if _, out := w.exec(id, "sh", "-c", "cat "+dir+"/put "+dir+"/sub/x; stat -c %u:%a "+dir+"/put"); out != "iny1000:600\n" {
			t.Errorf("%s: %q", dir, out)
		}
	}
	v, err := w.vols.Get(ctx, "data")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(v.Mountpoint, "put")); err != nil || string(b) != "in" {
		t.Errorf("not in the volume: %q %v", b, err)
	}
	if got := w.copyFrom(id, "/data/put"); got["put"] != "in" {
		t.Errorf("back from the volume: %v", got)
	}
	wantErr(t, w.files.CopyTo(ctx, id, "/ro", bytes.NewReader(in), true, false), errs.Forbidden, "mounted volume is marked read-only")
	wantErr(t, w.files.CopyTo(ctx, id, "/etc/passwd", bytes.NewReader(in), true, false), errs.Invalid, "extraction point is not a directory")
	wantErr(t, w.files.CopyTo(ctx, id, "/none", bytes.NewReader(in), true, false), errs.NotFound, "Could not find the file /none")
	clash := makeTar(t, []file{{name: "sub", data: "file", mode: 0o600}})
	wantErr(t, w.files.CopyTo(ctx, id, "/tmp", bytes.NewReader(clash), true, false), errs.Invalid, "cannot overwrite directory")
	if err := w.files.CopyTo(ctx, id, "/tmp", bytes.NewReader(clash), false, true); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	if _, err := zw.Write(in); err != nil || zw.Close() != nil {
		t.Fatal(err)
	}
	if err := w.s.Stop(ctx, id, "", nil); err != nil {
		t.Fatal(err)
	}
	if err := w.files.CopyTo(ctx, id, "/root", &z, true, true); err != nil { // into a stopped container, compressed, owned by the container's user
		t.Fatal(err)
	}
	if got := w.copyFrom(id, "/root/."); got["./put"] != "in" {
		t.Errorf("stopped: %v", got)
	}
}

func TestCopyHostile(t *testing.T) { onDrivers(t, copyHostile) }

func copyHostile(t *testing.T, w *world) {
	ctx := context.Background()
	secret := filepath.Join(w.dir, "secret")
	if err := os.WriteFile(secret, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := w.create(sh("true"))
	for _, f := range []file{
		{name: "../out", data: "x", mode: 0o644},
		{name: "a/../../out", data: "x", mode: 0o644},
		{name: "hard", kind: tar.TypeLink, data: "../../../../../.." + secret},
		{name: "hard", kind: tar.TypeLink, data: secret},
	} {
		if err := w.files.CopyTo(ctx, id, "/tmp", bytes.NewReader(makeTar(t, []file{f})), true, false); err == nil {
			t.Errorf("entry %s was taken", f.name)
		}
	}
	up := strings.Repeat("../", 30)
	files := []file{{name: "esc", kind: tar.TypeSymlink, data: up + w.dir}, {name: "esc/planted", data: "x", mode: 0o644}}
	if err := w.files.CopyTo(ctx, id, "/tmp", bytes.NewReader(makeTar(t, files)), true, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "planted")); err == nil {
		t.Fatal("a link led out of the root")
	}
	err := w.files.CopyTo(ctx, id, "/tmp", strings.NewReader("not a tar at all, but long enough to be looked at"), true, false)
	if err == nil {
		t.Error("garbage was taken")
	}
}

// Copies stay in the container while it keeps replacing a directory by a link to the host, and no decompressor of its
// image is run.
func TestCopyRace(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	canary := filepath.Join(w.dir, "canary")
	if err := os.Mkdir(canary, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(canary, "f"), []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 30)
	id := w.up(func(s *spec.Spec) {
		s.Binds = []string{"vol:/vol"}
		s.Cmd = []string{"sh", "-c", "mkdir -p /r/a /r/keep; echo in > /r/keep/f; ln -s " + up + canary + " /r/evil; echo ready; " +
			"while :; do mv /r/a /r/b; mv /r/evil /r/a; mv /r/a /r/evil; mv /r/b /r/a; done"}
	})
	in := makeTar(t, []file{{name: "planted", data: "x", mode: 0o644}})
	for range 300 {
		err := w.files.CopyTo(ctx, id, "/r/a", bytes.NewReader(in), false, false)
		if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) {
			t.Logf("copy in: %v", err)
		}
		var b bytes.Buffer
		if err := w.files.CopyFrom(ctx, id, "/r/a/.", anything, &b); err == nil {
			for n, c := range readTar(t, &b) {
				if c == "host" {
					t.Fatalf("%s of the host was read", n)
				}
			}
		}
	}
	entries, err := os.ReadDir(canary)
	if err != nil || len(entries) != 1 {
		t.Fatalf("the host's directory was written to: %v %v", entries, err)
	}
}

func TestExport(t *testing.T) { onDrivers(t, export) }

func export(t *testing.T, w *world) {
	id := w.up(func(s *spec.Spec) { s.Binds = []string{"vol:/vol"} })
	w.exec(id, "sh", "-c", "echo x > /vol/in-volume; echo y > /made; rm /seeded/hard")
	var b bytes.Buffer
	if err := w.files.Export(context.Background(), id, &b); err != nil {
		t.Fatal(err)
	}
	got := readTar(t, &b)
	if got["made"] != "y\n" || got["seeded/file"] != "from the image\n" || got["bin/sh"] != "-> busybox" {
		t.Errorf("export lacks files: %q", got["made"])
	}
	for _, n := range []string{"vol/in-volume", "seeded/hard", "proc/1"} {
		if _, ok := got[n]; ok {
			t.Errorf("export holds %s", n)
		}
	}
	if _, ok := got["vol/"]; !ok {
		t.Error("the mount point is not in the export")
	}
}

// Links of an image at paths where a runtime mounts or writes (dev, proc, etc/hosts, a volume, WORKDIR) lead nowhere.
func TestHostileImage(t *testing.T) { onDrivers(t, hostileImage) }

func hostileImage(t *testing.T, w *world) {
	canary := filepath.Join(w.dir, "canary")
	if err := os.Mkdir(canary, 0o755); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 30)
	w.makeImage("evil", func(c *oci.Config, files *[]file) {
		*files = slices.DeleteFunc(*files, func(f file) bool { return f.name == "seeded" || strings.HasPrefix(f.name, "seeded/") })
		*files = append(*files,
			file{name: "dev", kind: tar.TypeSymlink, data: up + canary},
			file{name: "etc/hosts", kind: tar.TypeSymlink, data: up + filepath.Join(canary, "hosts")},
			file{name: "etc/resolv.conf", kind: tar.TypeSymlink, data: filepath.Join(canary, "resolv")},
			file{name: "seeded", kind: tar.TypeSymlink, data: up + canary},
			file{name: "work", kind: tar.TypeSymlink, data: up + filepath.Join(w.dir, "canary2", "work")},
		)
		c.Config.Volumes = map[string]struct{}{"/seeded": {}}
		c.Config.WorkingDir = "/work/dir"
	})
	spec := sh("echo ran > /seeded/f; pwd; test -c /dev/null && test -s /etc/hosts && echo fine")
	spec.Image = "evil"
	if code, out, errOut := w.run(spec); code != 0 || !strings.HasSuffix(out, "fine\n") {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	if _, err := os.Lstat(filepath.Join(w.dir, "canary2")); err == nil {
		t.Error("WORKDIR was made on the host")
	}
	if entries, err := os.ReadDir(canary); err != nil || len(entries) != 0 {
		t.Errorf("the host was written to: %v %v", entries, err)
	}
}

// With copyUIDGID the files belong to the user that the container has; without it, or in a container without one, they
// keep the owners of the stream.
func TestCopyOwners(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	in := makeTar(t, []file{{name: "d", kind: tar.TypeDir, mode: 0o755, uid: 1234, gid: 5678}, {name: "d/f", mode: 0o644, uid: 1234, gid: 5678},
		{name: "d/l", kind: tar.TypeSymlink, data: "f", uid: 1234, gid: 5678}})
	for _, c := range []struct {
		user     string
		uid, gid int
	}{{"", 1234, 5678}, {"root", 0, 0}, {"2000", 2000, 0}, {"4000:5000", 4000, 5000}, {"user", 1000, 1000}, {"root:user", 0, 1000}} {
		sp := sh("true")
		sp.User = c.user
		id := w.create(sp)
		for dir, archive := range map[string]bool{"/tmp": true, "/root": false} {
			if err := w.files.CopyTo(ctx, id, dir, bytes.NewReader(in), true, archive); err != nil {
				t.Errorf("user %q: %v", c.user, err)
				continue
			}
			want := [2]int{1234, 5678}
			if archive {
				want = [2]int{c.uid, c.gid}
			}
			var b bytes.Buffer
			if err := w.files.CopyFrom(ctx, id, dir+"/d", anything, &b); err != nil {
				t.Fatal(err)
			}
			for tr := tar.NewReader(&b); ; {
				h, err := tr.Next()
				if err != nil {
					break
				}
				if got := [2]int{h.Uid, h.Gid}; got != want {
					t.Errorf("user %q, copyUIDGID %v: %s belongs to %v, want %v", c.user, archive, h.Name, got, want)
				}
			}
		}
	}
}
