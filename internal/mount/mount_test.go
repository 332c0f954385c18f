package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	d := filepath.Join(parts...)
	if err := os.MkdirAll(d, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func attach(t *testing.T, tree *Tree, target string) {
	t.Helper()
	if err := tree.Attach(target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(target, true); err != nil {
			t.Error(err)
		}
	})
}

// everyWay runs a test of overlays with the mount API, and as on kernels that do not take layers one by one.
func everyWay(t *testing.T, test func(t *testing.T)) {
	if appendsLowers() {
		t.Run("one by one", test)
	}
	t.Run("by page", func(t *testing.T) {
		saved := appendsLowers
		appendsLowers = func() bool { return false }
		defer func() { appendsLowers = saved }()
		test(t)
	})
}

func TestOverlayStacksAndSurvivesItsDescriptor(t *testing.T) { everyWay(t, testStack) }

func testStack(t *testing.T) {
	base := t.TempDir()
	top, bottom := mkdir(t, base, "top"), mkdir(t, base, "bottom")
	up, work, at := mkdir(t, base, "up"), mkdir(t, base, "work"), mkdir(t, base, "at")
	write(t, filepath.Join(bottom, "a"), "bottom")
	write(t, filepath.Join(top, "a"), "top")
	write(t, filepath.Join(bottom, "b"), "bottom")
	for _, volatile := range []bool{false, true} {
		tree, err := Overlay{Lower: []Layer{At(top), At(bottom)}, Upper: up, Work: work, Volatile: volatile}.Mount()
		if err != nil {
			t.Fatal(err)
		}
		if mounted, err := IsMounted(at); err != nil || mounted {
			t.Fatalf("IsMounted before = %v, %v", mounted, err)
		}
		attach(t, tree, at)
		if err := tree.Close(); err != nil {
			t.Fatal(err)
		}
		if mounted, err := IsMounted(at); err != nil || !mounted {
			t.Fatalf("IsMounted after = %v, %v", mounted, err)
		}
		for name, want := range map[string]string{"a": "top", "b": "bottom"} {
			if got, err := os.ReadFile(filepath.Join(at, name)); err != nil || string(got) != want {
				t.Errorf("%s = %q, %v; want %q", name, got, err, want)
			}
		}
		if err := Unmount(at, false); err != nil {
			t.Fatal(err)
		}
		if err := Unmount(at, false); err != nil {
			t.Errorf("second Unmount: %v", err)
		}
	}
}

// A layer cannot make a directory appear at another path by an overlayfs attribute of its own.
func TestOverlayDoesNotFollowRedirects(t *testing.T) { everyWay(t, testRedirect) }

func testRedirect(t *testing.T) {
	base := t.TempDir()
	top, bottom, at := mkdir(t, base, "top"), mkdir(t, base, "bottom"), mkdir(t, base, "at")
	mkdir(t, top, "x")
	write(t, filepath.Join(mkdir(t, bottom, "secret"), "key"), "k")
	if err := unix.Setxattr(filepath.Join(top, "x"), "trusted.overlay.redirect", []byte("/secret"), 0); err != nil {
		t.Fatal(err)
	}
	tree, err := Overlay{Lower: []Layer{At(top), At(bottom)}}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	attach(t, tree, at)
	if got, err := os.ReadFile(filepath.Join(at, "x", "key")); err == nil {
		t.Errorf("x/key = %q through a redirect", got)
	}
}

func TestErrorsOfLayers(t *testing.T) {
	everyWay(t, func(t *testing.T) {
		base := t.TempDir()
		_, err := Overlay{Lower: []Layer{At(filepath.Join(base, "absent"))}, Upper: base, Work: base}.Mount()
		if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "lower layer 0") {
			t.Errorf("missing layer: %v", err)
		}
		if _, err := (Overlay{Lower: make([]Layer, MaxLowers+1)}).Mount(); !errors.Is(err, errs.Exhausted) {
			t.Errorf("501 layers: %v", err)
		}
	})
}

// A layer may be named by a descriptor, as the callers do for long paths.
func TestLayersByDescriptor(t *testing.T) {
	everyWay(t, func(t *testing.T) {
		base := t.TempDir()
		a, b, at := mkdir(t, base, "a"), mkdir(t, base, "b"), mkdir(t, base, "at")
		write(t, filepath.Join(a, "f"), "x")
		f, err := os.Open(a)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		tree, err := Overlay{Lower: []Layer{At(fmt.Sprint("/proc/self/fd/", f.Fd())), At(b)}}.Mount()
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		attach(t, tree, at)
		if got, err := os.ReadFile(filepath.Join(at, "f")); err != nil || string(got) != "x" {
			t.Errorf("f = %q, %v", got, err)
		}
		if err := os.WriteFile(filepath.Join(at, "g"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write without an upper directory: %v", err)
		}
	})
}

func TestReadOnlyWithUpper(t *testing.T) {
	everyWay(t, func(t *testing.T) {
		base := t.TempDir()
		at := mkdir(t, base, "at")
		tree, err := Overlay{Lower: []Layer{At(mkdir(t, base, "a"))}, Upper: mkdir(t, base, "u"), Work: mkdir(t, base, "w"), ReadOnly: true}.Mount()
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		attach(t, tree, at)
		if err := os.WriteFile(filepath.Join(at, "g"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write through a read-only mount: %v", err)
		}
	})
}

// What mount(2) takes: many layers, seen in mountinfo by their short names, and not too many. Nothing of the mount's preparation is
// seen by others.
func TestManyLayersByPage(t *testing.T) {
	saved := appendsLowers
	appendsLowers = func() bool { return false }
	defer func() { appendsLowers = saved }()
	base := t.TempDir()
	var layers []Layer
	for i := range 400 {
		dir := mkdir(t, base, strings.Repeat("long", 10), strconv.Itoa(i)+":,\\ x")
		write(t, filepath.Join(dir, strconv.Itoa(i)), "")
		layers = append(layers, At(dir))
	}
	at := mkdir(t, base, "at")
	before := mountinfo(t)
	tree, err := Overlay{Lower: layers, Upper: mkdir(t, base, "u"), Work: mkdir(t, base, "w")}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	if now := mountinfo(t); now != before {
		t.Errorf("mounts before it is attached:\n%s\nwere\n%s", now, before)
	}
	attach(t, tree, at)
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(at); err != nil || len(entries) != len(layers) {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	for _, l := range layers {
		if !strings.Contains(mountinfo(t), ShortName(l.path)) {
			t.Fatalf("mountinfo does not have %s of %s", ShortName(l.path), l.path)
		}
	}
	if _, err := (Overlay{Lower: append(layers, layers...)[:MaxLowers]}).Mount(); !errors.Is(err, errs.Exhausted) {
		t.Errorf("more layers than fit: %v", err)
	}
}

// A short name is not all of a path's sum. Two layers that have the same one are not taken for one.
func TestShortNamesThatAreEqual(t *testing.T) {
	saved := appendsLowers
	appendsLowers = func() bool { return false }
	defer func() { appendsLowers = saved }()
	base := t.TempDir()
	t.Chdir(base)
	a, b := "layer950228", "layer20971576"
	mkdir(t, base, a)
	mkdir(t, base, b)
	if ShortName(a) != ShortName(b) {
		t.Fatal("the names differ")
	}
	_, err := Overlay{Lower: []Layer{At(a), At(b)}}.Mount()
	if err == nil || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) || !strings.Contains(err.Error(), ShortName(a)) {
		t.Errorf("two layers with one name: %v", err)
	}
}

func mountinfo(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestErrorsHaveTheKernelsMessage(t *testing.T) {
	base := t.TempDir()
	c, err := open("overlay")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.set("nonsense", "1"); appendsLowers() && (!errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "Unknown parameter 'nonsense'")) {
		t.Errorf("unknown option: %v", err)
	}
	junk := filepath.Join(base, "junk")
	write(t, junk, strings.Repeat("x", 8192))
	if _, err := (Erofs{Image: junk}).Mount(); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTBLK) { // ENOTBLK before 6.12
		t.Errorf("junk image: %v", err)
	}
}

func TestBind(t *testing.T) {
	base := t.TempDir()
	src, at := mkdir(t, base, "src"), mkdir(t, base, "at")
	write(t, filepath.Join(src, "f"), "x")
	if err := Bind(src, at, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Unmount(at, true) })
	if err := MakePrivate(at); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(at, "g"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through a read-only bind: %v", err)
	}
	if err := Unmount(filepath.Join(base, "nowhere"), false); err != nil {
		t.Errorf("unmount of nothing: %v", err)
	}
}

// An image from elsewhere may contain device nodes and set-user-ID programs.
func TestErofsTreeHasNoDevicesAndSetuid(t *testing.T) {
	base := t.TempDir()
	src, at, image := mkdir(t, base, "src"), mkdir(t, base, "at"), filepath.Join(base, "image")
	write(t, filepath.Join(src, "f"), "x")
	if out, err := exec.Command("mkfs.erofs", image, src).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	tree, err := Erofs{Image: image}.Mount()
	if errors.Is(err, unix.ENOTBLK) {
		t.Skip("EROFS on a file needs Linux 6.12")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	attach(t, tree, at)
	if b, err := os.ReadFile(filepath.Join(at, "f")); err != nil || string(b) != "x" {
		t.Errorf("file = %q, %v", b, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		t.Fatal(err)
	}
	const want = unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOSUID
	if st.Flags&want != want {
		t.Errorf("flags of the mount = %#x, want read-only, nodev and nosuid", st.Flags)
	}
}

// Unmount does not follow a link to another mount.
func TestUnmountFollowsNoLink(t *testing.T) {
	base := t.TempDir()
	src, at, link := mkdir(t, base, "src"), mkdir(t, base, "at"), filepath.Join(base, "link")
	if err := errors.Join(Bind(src, at, false), os.Symlink(at, link)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Unmount(at, true) })
	if err := Unmount(link, true); err != nil {
		t.Errorf("Unmount of a link: %v", err)
	}
	if mounted, err := IsMounted(at); err != nil || !mounted {
		t.Errorf("target of the link is mounted = %v, %v", mounted, err)
	}
}

// Private mounts the directory on itself once; mounts below it do not propagate.
func TestPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for _, want := range []bool{true, false} {
		made, err := Private(dir)
		if err != nil || made != want {
			t.Errorf("Private = %v, %v, want %v", made, err, want)
		}
	}
	t.Cleanup(func() { Unmount(dir, true) })
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); fields[4] == dir {
			found++
			if strings.Contains(line, "shared:") {
				t.Errorf("the mount propagates: %s", line)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d mounts on the directory, want 1", found)
	}
}

// fsconfig accepts strings of 255 bytes; longer paths are set by descriptors.
func TestLongPaths(t *testing.T) { everyWay(t, testLongPaths) }

func testLongPaths(t *testing.T) {
	base := t.TempDir()
	deep := mkdir(t, base, strings.Repeat("d", 200), strings.Repeat("e", 200))
	top, bottom := mkdir(t, deep, "top"), mkdir(t, deep, "bottom")
	up, work, at := mkdir(t, deep, "up"), mkdir(t, deep, "work"), mkdir(t, base, "at")
	write(t, filepath.Join(bottom, "f"), "x")
	tree, err := Overlay{Lower: []Layer{At(top), At(bottom)}, Upper: up, Work: work}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	attach(t, tree, at)
	write(t, filepath.Join(at, "g"), "y")
	if got, err := os.ReadFile(filepath.Join(up, "g")); err != nil || string(got) != "y" {
		t.Errorf("written to the upper directory: %q, %v", got, err)
	}
}

// A detached tree can be a layer, and the overlay keeps it when its descriptor is closed.
func TestTreeAsLayer(t *testing.T) {
	base := t.TempDir()
	a, b, at := mkdir(t, base, "a"), mkdir(t, base, "b"), mkdir(t, base, "at")
	write(t, filepath.Join(a, "f"), "x")
	below, err := Overlay{Lower: []Layer{At(a), At(b)}}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Overlay{Lower: []Layer{Of(below), At(b)}}.Mount()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EBADF) { // before 6.7, and from there on
		t.Skip("layers that are detached trees need Linux 6.15")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := below.Close(); err != nil {
		t.Fatal(err)
	}
	if err := below.Attach(at); !errors.Is(err, os.ErrClosed) {
		t.Errorf("attach after close: %v", err)
	}
	if _, err := (Overlay{Lower: []Layer{Of(below)}}).Mount(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a closed tree as layer: %v", err)
	}
	attach(t, tree, at)
	defer tree.Close()
	if got, err := os.ReadFile(filepath.Join(at, "f")); err != nil || string(got) != "x" {
		t.Errorf("f = %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(at, "g"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a view: %v", err)
	}
	root, err := tree.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := unix.Faccessat(int(root.Fd()), "f", unix.R_OK, 0); err != nil {
		t.Errorf("look-up through the descriptor: %v", err)
	}
}

func TestUserXattr(t *testing.T) { everyWay(t, testUserXattr) }

func testUserXattr(t *testing.T) {
	base := t.TempDir()
	top, bottom, at := mkdir(t, base, "top"), mkdir(t, base, "bottom"), mkdir(t, base, "at")
	mkdir(t, top, "d")
	write(t, filepath.Join(mkdir(t, bottom, "d"), "f"), "x")
	if err := unix.Setxattr(filepath.Join(top, "d"), "user.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	for _, user := range []bool{false, true} {
		tree, err := Overlay{Lower: []Layer{At(top), At(bottom)}, UserXattr: user}.Mount()
		if err != nil {
			t.Fatal(err)
		}
		attach(t, tree, at)
		tree.Close()
		if _, err := os.Stat(filepath.Join(at, "d/f")); (err == nil) == user {
			t.Errorf("with UserXattr %v, what a user.overlay.opaque directory hides: %v", user, err)
		}
		if err := Unmount(at, true); err != nil {
			t.Fatal(err)
		}
	}
}
