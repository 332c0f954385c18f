package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer/overlay2"
)

func newService(t *testing.T) *Service {
	t.Helper()
	dir := t.TempDir()
	drv, err := overlay2.Open(durable.OS, dir, overlay2.Options{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(dir, drv, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := New(Options{Store: st, Root: filepath.Join(dir, "volumes"), MountRoot: filepath.Join(dir, "run"), Events: &events.Bus{}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantErr(t *testing.T, err, class error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || !errors.Is(err, class) {
		t.Errorf("error %v, want %q", err, text)
	}
}

var ctx = context.Background()

const c1, c2 = oci.ContainerID("c1"), oci.ContainerID("c2")

func names(vs []*Volume) []string {
	var out []string
	for _, v := range vs {
		out = append(out, v.Name)
	}
	return out
}

func TestLifeOfVolumes(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "named", "", map[string]string{"a": "b"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(v.Mountpoint); err != nil || !fi.IsDir() || filepath.Base(v.Mountpoint) != "_data" {
		t.Errorf("%s %v", v.Mountpoint, err)
	}
	again, err := s.Create(ctx, "named", "local", nil, nil)
	if err != nil || again.Created != v.Created || again.Labels["a"] != "b" {
		t.Errorf("second create %+v %v", again, err)
	}
	anon, err := s.Create(ctx, "", "", nil, nil)
	if err != nil || !oci.IsHex64(anon.Name) || !anon.Anonymous {
		t.Errorf("anonymous %+v %v", anon, err)
	}
	s.AddReferences(c1, "named")
	wantErr(t, s.Remove(ctx, "named", true), errs.Conflict, "remove named: volume is in use - [c1]")
	for _, c := range []struct {
		f    map[string][]string
		want []string
	}{
		{nil, []string{anon.Name, "named"}},
		{map[string][]string{"dangling": {"true"}}, []string{anon.Name}},
		{map[string][]string{"dangling": {"0"}}, []string{"named"}},
		{map[string][]string{"name": {"nam"}}, []string{"named"}},
		{map[string][]string{"label": {"a=b"}}, []string{"named"}},
		{map[string][]string{"label": {"a=c"}}, nil},
		{map[string][]string{"driver": {"other"}}, nil},
	} {
		got, err := s.List(ctx, c.f)
		slices.Sort(c.want)
		if err != nil || !slices.Equal(names(got), c.want) {
			t.Errorf("%v: %v %v", c.f, names(got), err)
		}
	}
	_, err = s.List(ctx, map[string][]string{"colour": {"red"}})
	wantErr(t, err, errs.Invalid, "invalid filter 'colour'")
	if err := os.WriteFile(filepath.Join(anon.Mountpoint, "f"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	s.DropReferences(c1)
	got, freed, err := s.Prune(ctx, nil)
	if err != nil || !slices.Equal(got, []string{anon.Name}) || freed != 1000 {
		t.Errorf("prune %v %d %v", got, freed, err)
	}
	if got, _, _ = s.Prune(ctx, map[string][]string{"all": {"1"}, "label!": {"a"}}); len(got) != 0 {
		t.Errorf("prune removed %v", got)
	}
	if got, _, _ = s.Prune(ctx, map[string][]string{"all": {"true"}}); !slices.Equal(got, []string{"named"}) {
		t.Errorf("prune all removed %v", got)
	}
	wantErr(t, s.Remove(ctx, "named", false), errs.NotFound, "get named: no such volume")
	if err := s.Remove(ctx, "named", true); err != nil {
		t.Errorf("forced removal of nothing: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.opts.Root, "[^.]*")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestCreateRefusals(t *testing.T) {
	s := newService(t)
	for _, n := range []string{"a", "-a", "a/b", "..", "a b", "ä1", strings.Repeat("a", 300)} {
		_, err := s.Create(ctx, n, "", nil, nil)
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", n, err)
		}
	}
	_, err := s.Create(ctx, "vol", "rexray", nil, nil)
	wantErr(t, err, errs.NotFound, `error looking up volume plugin rexray: plugin "rexray" not found`)
	for _, o := range []map[string]string{
		{"colour": "red"}, {"type": "tmpfs"}, {"type": "tmpfs", "device": "x", "size": "1"}, {"device": "/x"}, {"o": "bind", "device": "rel"},
	} {
		if _, err := s.Create(ctx, "vol", "", nil, o); err == nil {
			t.Errorf("options %v were accepted", o)
		}
	}
	if vs, _ := s.List(ctx, nil); len(vs) != 0 {
		t.Errorf("refused volumes exist: %v", names(vs))
	}
}

// A volume with a device is mounted while containers run with it, once for all of them.
func TestDevice(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "mem", "", nil, map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid"})
	if err != nil {
		t.Fatal(err)
	}
	m := []Mount{{Type: "volume", Name: "mem", Source: v.Mountpoint}}
	s.AddReferences(c1, "mem")
	for _, id := range []oci.ContainerID{c1, c2} {
		if _, err := s.Prepare(ctx, id, m); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(v.Mountpoint, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != 1<<20 {
		t.Errorf("mounted %+v %v", st, err)
	}
	s.Release(c1)
	s.Release(c1)
	if !mounted(v.Mountpoint) {
		t.Error("unmounted under a container")
	}
	s.Release(c2)
	if mounted(v.Mountpoint) {
		t.Error("stays mounted")
	}
	host := t.TempDir()
	b, err := s.Create(ctx, "bound", "", nil, map[string]string{"device": host, "o": "bind,ro"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(ctx, c1, []Mount{{Type: "volume", Name: "bound"}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.Mountpoint, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only device: %v", err)
	}
	s.Release(c1)
	n, err := s.Create(ctx, "broken", "", nil, map[string]string{"type": "ext4", "device": "/no/such"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Prepare(ctx, c1, []Mount{{Type: "volume", Name: "broken"}})
	wantErr(t, err, errs.Internal, "error while mounting volume '"+n.Mountpoint+"': failed to mount local volume")
}

// A volume on which something is mounted is not removed, even when no container refers to it.
func TestRemoveOfMountedVolume(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", v.Mountpoint, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Remove(ctx, "vol", true), errs.Conflict, "volume is still mounted")
	if err := unix.Unmount(v.Mountpoint, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "vol", false); err != nil {
		t.Error(err)
	}
}

// The directory of a volume is not replaced once another container refers to the volume: it may have it mounted.
func TestReplaceLeavesASharedVolume(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(v.Mountpoint)
	if err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(s.opts.Root, "vol", "new")
	if err := os.Mkdir(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	s.AddReferences(c1, "vol")
	s.AddReferences(c2, "vol")
	if replaced, err := s.replace(c1, "vol", tmp, s.path("vol")); replaced || err != nil {
		t.Errorf("replace of a shared volume = %v, %v", replaced, err)
	}
	if after, err := os.Stat(v.Mountpoint); err != nil || !os.SameFile(before, after) {
		t.Errorf("the directory was replaced: %v", err)
	}
	s.DropReferences(c2)
	if replaced, err := s.replace(c1, "vol", tmp, s.path("vol")); !replaced || err != nil {
		t.Errorf("replace = %v, %v", replaced, err)
	}
}

// A file of the image that is replaced by a link while it is copied is not followed.
func TestPopulateFollowsNoLink(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(from, "f"), []byte("x"), 0o600), os.Symlink("f", filepath.Join(from, "link")),
		os.Mkdir(filepath.Join(from, "d"), 0o700), os.Symlink("d", filepath.Join(from, "dirlink"))); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	c := copier{ctx: ctx, links: map[[2]uint64]string{}, root: dst}
	if err := c.file(src, dst, "link", &unix.Stat_t{Size: 1}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("copy of a link as a file: %v, want ELOOP", err)
	}
	if err := c.subdir(src, dst, "dirlink", "dirlink"); !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		t.Errorf("copy of a link as a directory: %v, want ENOTDIR or ELOOP", err)
	}
}

// While a shared volume is filled, a container can put links to files of the host in the place of what was just copied. Neither the
// permissions of a file of the host nor its number of names changes.
func TestPopulateLeavesFilesOfTheHost(t *testing.T) {
	host, to := t.TempDir(), t.TempDir()
	secret := filepath.Join(host, "secret")
	if err := errors.Join(os.WriteFile(secret, []byte("x"), 0o600), os.Symlink(secret, filepath.Join(to, "node")), os.Symlink(host, filepath.Join(to, "dir")),
		unix.Mknod(filepath.Join(to, "fifo"), unix.S_IFIFO|0o600, 0), os.Mkdir(filepath.Join(to, "real"), 0o700),
		os.WriteFile(filepath.Join(to, "real", "first"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	dst, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	c := copier{ctx: ctx, links: map[[2]uint64]string{}, root: dst}
	if err := c.link("dir/secret", dst, "stolen"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("link through a link to the host: %v, want ENOENT", err)
	}
	if err := chmodNode(dst, "node", unix.S_IFIFO|0o777); !errors.Is(err, errs.Conflict) {
		t.Errorf("chmod of a link: %v, want a conflict", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(secret, &st); err != nil || st.Nlink != 1 || st.Mode&0o7777 != 0o600 {
		t.Errorf("the host's file has %d names and mode %o, %v", st.Nlink, st.Mode&0o7777, err)
	}
	if err := errors.Join(c.link("real/first", dst, "second"), chmodNode(dst, "fifo", unix.S_IFIFO|0o640)); err != nil {
		t.Error(err)
	}
	if err := unix.Stat(filepath.Join(to, "second"), &st); err != nil || st.Nlink != 2 {
		t.Errorf("second name: %d names, %v", st.Nlink, err)
	}
	if err := unix.Stat(filepath.Join(to, "fifo"), &st); err != nil || st.Mode&0o7777 != 0o640 {
		t.Errorf("fifo: mode %o, %v", st.Mode&0o7777, err)
	}
}

func TestResolve(t *testing.T) {
	s := newService(t)
	host := t.TempDir()
	r, err := s.Resolve(ctx, Request{
		Container: c1,
		Binds:     []string{host + ":/a/b:ro", "named:/a"},
		Mounts:    []MountSpec{{Type: "volume", Target: "/m"}, {Type: "tmpfs", Target: "/t", TmpfsSize: 4096, TmpfsMode: 0o700}, {Type: "bind", Source: host, Target: "/h", Propagation: "rslave"}},
		Inherited: []Mount{{Type: "bind", Source: "/inherited", Target: "/a"}, {Type: "bind", Source: "/inherited", Target: "/i"}},
		Anonymous: []string{"/a", "/v", "/i/"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, m := range r.Mounts {
		targets = append(targets, m.Type+" "+m.Target)
	}
	want := []string{"volume /a", "bind /h", "bind /i", "volume /m", "tmpfs /t", "volume /v", "bind /a/b"}
	if !slices.Equal(targets, want) {
		t.Errorf("mounts %v, want %v", targets, want)
	}
	if vs, _ := s.List(ctx, nil); len(vs) != 3 {
		t.Errorf("volumes %v", names(vs))
	}
	s.Undo(ctx, c1, r.Made)
	if vs, _ := s.List(ctx, nil); len(vs) != 0 {
		t.Errorf("volumes after undo %v", names(vs))
	}
	for _, m := range []MountSpec{
		{Type: "bind", Target: "/x"}, {Type: "bind", Source: "rel", Target: "/x"}, {Type: "bind", Source: host, Target: "x"},
		{Type: "bind", Source: host + "/missing", Target: "/x"}, {Type: "bind", Source: host, Target: "/x", NoCopy: true}, {Type: "bind", Source: host, Target: "/x", Propagation: "wild"},
		{Type: "volume", Target: "/"}, {Type: "volume", Target: "/x", Source: "v1", Subpath: "../x"}, {Type: "volume", Target: "/x", TmpfsSize: 1},
		{Type: "tmpfs", Target: "/x", Source: "y"}, {Type: "", Target: "/x"}, {Type: "npipe", Target: "/x", Source: "y"},
	} {
		if _, err := s.Resolve(ctx, Request{Container: c1, Mounts: []MountSpec{m}}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "invalid mount config for type") {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

func TestSubpath(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(v.Mountpoint, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(v.Mountpoint, "link")); err != nil {
		t.Fatal(err)
	}
	got, err := s.Prepare(ctx, c1, []Mount{{Type: "volume", Name: "vol", Subpath: "a/b"}})
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(filepath.Join(v.Mountpoint, "a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(got[0].Source); err != nil || !os.SameFile(fi, want) {
		t.Errorf("%+v %v", got, err)
	}
	s.Release(c1)
	if err := os.Symlink("a", filepath.Join(v.Mountpoint, "inside")); err != nil {
		t.Fatal(err)
	}
	// Links are resolved as if the volume were a file system of its own.
	if got, err = s.Prepare(ctx, c1, []Mount{{Type: "volume", Name: "vol", Subpath: "inside/b"}}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(got[0].Source); err != nil || !os.SameFile(fi, want) {
		t.Errorf("through a link: %+v %v", got, err)
	}
	s.Release(c1)
	for _, p := range []string{"link", "absent"} {
		if _, err := s.Prepare(ctx, c1, []Mount{{Type: "volume", Name: "vol", Subpath: p}}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// A volume that another container refers to keeps its directory when it is filled, so a container that has it mounted sees
// the files.
func TestPopulateShared(t *testing.T) {
	s := newService(t)
	v, err := s.Create(ctx, "vol", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.AddReferences(c1, "vol")
	s.AddReferences(c2, "vol")
	before, err := os.Stat(v.Mountpoint)
	if err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	if err := errors.Join(os.Chmod(src, 0o751), os.WriteFile(filepath.Join(src, "f"), []byte("x"), 0o640), unix.Setxattr(filepath.Join(src, "f"), "user.k", []byte("v"), 0),
		os.MkdirAll(filepath.Join(src, "d/e"), 0o700), unix.Mkfifo(filepath.Join(src, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(filepath.Join(src, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sparse.WriteAt([]byte("end"), 8<<20); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := s.Populate(ctx, c1, Mount{Name: "vol"}, d); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(v.Mountpoint)
	if err != nil || !os.SameFile(before, after) || after.Mode().Perm() != 0o751 {
		t.Errorf("directory was replaced or has mode %v: %v", after.Mode(), err)
	}
	var x [8]byte
	if n, err := unix.Getxattr(filepath.Join(v.Mountpoint, "f"), "user.k", x[:]); err != nil || string(x[:n]) != "v" {
		t.Errorf("xattr %q %v", x[:max(n, 0)], err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(v.Mountpoint, "sparse"), &st); err != nil || st.Size != 8<<20+3 || st.Blocks > 64 {
		t.Errorf("sparse file has %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	if fi, err := os.Lstat(filepath.Join(v.Mountpoint, "pipe")); err != nil || fi.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("pipe %v", err)
	}
}
