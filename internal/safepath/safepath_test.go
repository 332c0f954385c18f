package safepath_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/safepath"
)

func TestClean(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a", "a"}, {"/a/b", "a/b"}, {"//a", "a"}, {"./a/./b", "a/b"}, {"a//b/", "a/b"}, {"", "."}, {"/", "."}, {".", "."}, {"./", "."},
		{"...", "..."}, {"..a", "..a"}, {"a..", "a.."}, {"\xff\xfe", "\xff\xfe"}, {"a b\n", "a b\n"}, {`a\..\b`, `a\..\b`},
		{strings.Repeat("n", 255), strings.Repeat("n", 255)}, {strings.Repeat("d/", 2000), strings.TrimSuffix(strings.Repeat("d/", 2000), "/")},
	} {
		got, err := safepath.Clean(c.in)
		if err != nil || got != c.want {
			t.Errorf("Clean(%.60q) = %.60q, %v, want %.60q", c.in, got, err, c.want)
		}
	}
	for _, in := range []string{
		"..", "../a", "a/..", "a/../b", "/..", "a/b/../../..", "./..", "a\x00", "\x00", strings.Repeat("n", 256), "a/" + strings.Repeat("n", 256),
		strings.Repeat("d/", 2048) + "x",
	} {
		if got, err := safepath.Clean(in); !errors.Is(err, errs.Invalid) {
			t.Errorf("Clean(%.60q) = %.60q, %v, want class invalid argument", in, got, err)
		}
	}
}

// fixture is a root directory with links of every kind, and a directory beside it that nothing may change.
type fixture struct {
	root    *os.File
	path    string
	outside string
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	base := t.TempDir()
	h := fixture{path: filepath.Join(base, "root"), outside: filepath.Join(base, "outside")}
	for _, d := range []string{h.path, h.outside, h.path + "/d", h.path + "/d/e", h.path + h.outside} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{h.outside + "/secret": "outside", h.path + h.outside + "/secret": "inside", h.path + "/d/f": "f"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	up := strings.Repeat("../", 40)
	for name, target := range map[string]string{
		"abs": h.outside, "climb": up + h.outside[1:], "loop": "loop", "ping": "pong", "pong": "ping", "d/back": "../d/f", "tod": "d", "tod2": "/tod",
		"proc": "/proc/self/root", "d/abs": "/tod/e", "dangling": "new/deep", "absdangling": h.outside + "/made", "d/e/up": "../../..", "file": "d/f",
	} {
		if err := os.Symlink(target, filepath.Join(h.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(h.path)
	if err != nil {
		t.Fatal(err)
	}
	h.root = root
	t.Cleanup(func() { root.Close() })
	return h
}

func (h fixture) checkOutside(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(h.outside)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(h.outside + "/secret")
	if len(entries) != 1 || string(data) != "outside" {
		t.Errorf("outside: %v, secret %q, %v", entries, data, err)
	}
}

func TestOpenStaysInside(t *testing.T) {
	h := newFixture(t)
	defer h.checkOutside(t)
	for _, c := range []struct {
		name string
		want string
		err  error
	}{
		{"d/f", "f", nil},
		{"/d/f", "f", nil},
		{"../../../d/f", "f", nil},
		{"d/back", "f", nil},
		{"tod2/f", "f", nil},
		{"abs/secret", "inside", nil},
		{"climb/secret", "inside", nil},
		{h.outside + "/secret", "inside", nil},
		{"d/e/up/d/f", "f", nil},
		{"d/e/up/../../../d/f", "f", nil},
		{"loop", "", unix.ELOOP},
		{"ping", "", unix.ELOOP},
		{"nothing", "", unix.ENOENT},
		{"d/f/x", "", unix.ENOTDIR},
		{"absdangling", "", unix.ENOENT},
		{"\x00", "", unix.EINVAL},
	} {
		f, err := safepath.Open(h.root, c.name, os.O_RDONLY, 0)
		if !errors.Is(err, c.err) {
			t.Errorf("Open(%q): %v, want %v", c.name, err, c.err)
		}
		if err != nil {
			continue
		}
		data, err := io.ReadAll(f)
		if string(data) != c.want || err != nil {
			t.Errorf("Open(%q) reads %q, %v, want %q", c.name, data, err, c.want)
		}
		f.Close()
	}
}

func TestOpenRefusesMagicLinks(t *testing.T) {
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"proc/self/root/etc", "proc/self/cwd", "proc/self/fd/0"} {
		if f, err := safepath.Open(root, name, unix.O_PATH, 0); !errors.Is(err, unix.ELOOP) {
			t.Errorf("Open(%q) = %v, %v, want ELOOP", name, f, err)
		}
	}
}

func TestOpenFlags(t *testing.T) {
	h := newFixture(t)
	defer h.checkOutside(t)
	if _, err := safepath.Open(h.root, "file", os.O_RDONLY|unix.O_NOFOLLOW, 0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Open of a link with O_NOFOLLOW: %v, want ELOOP", err)
	}
	f, err := safepath.Open(h.root, "absdangling", os.O_WRONLY|os.O_CREATE, 0o640)
	if err != nil {
		t.Fatalf("create through a link: %v", err)
	}
	f.Close()
	if _, err := os.Lstat(h.path + h.outside + "/made"); err != nil {
		t.Errorf("created through a link: %v, want it inside the root", err)
	}
	f, err = safepath.Open(h.root, "regular", os.O_WRONLY|os.O_CREATE, unix.S_IFREG|0o600) // a mode as tar headers have it
	if err != nil {
		t.Fatalf("create with a file type in the mode: %v", err)
	}
	f.Close()
	f, err = safepath.Open(h.root, "", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatalf("open of the root: %v", err)
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags = %#x, %v, want FD_CLOEXEC", flags, err)
	}
	f.Close()
}

func TestOpenParent(t *testing.T) {
	h := newFixture(t)
	defer h.checkOutside(t)
	for _, c := range []struct{ name, base, sees string }{
		{"d/f", "f", "f"}, {"d/f/", "f", "f"}, {"tod2/f", "f", "f"}, {"abs/secret", "secret", "secret"}, {"climb/new", "new", "secret"}, {"top", "top", "d"}, {"/", ".", "d"}, {"", ".", "d"},
	} {
		dir, base, err := safepath.OpenParent(h.root, c.name)
		if err != nil {
			t.Errorf("OpenParent(%q): %v", c.name, err)
			continue
		}
		var st unix.Stat_t
		if serr := unix.Fstatat(int(dir.Fd()), c.sees, &st, unix.AT_SYMLINK_NOFOLLOW); base != c.base || serr != nil {
			t.Errorf("OpenParent(%q) = %q in a directory where %s is %v, want base %q", c.name, base, c.sees, serr, c.base)
		}
		dir.Close()
	}
	for _, name := range []string{"..", "d/..", "d/../", "a\x00b"} {
		if _, _, err := safepath.OpenParent(h.root, name); !errors.Is(err, errs.Invalid) {
			t.Errorf("OpenParent(%q): %v, want class invalid argument", name, err)
		}
	}
	if _, _, err := safepath.OpenParent(h.root, "missing/f"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("OpenParent below nothing: %v, want ENOENT", err)
	}
}

func TestMkdirAll(t *testing.T) {
	h := newFixture(t)
	defer h.checkOutside(t)
	for _, c := range []struct{ name, at string }{
		{"x/y/z", "x/y/z"}, {"/x/y/z", "x/y/z"}, {"abs/sub/dir", h.outside[1:] + "/sub/dir"}, {"climb/other", h.outside[1:] + "/other"}, {"dangling/more", "new/deep/more"},
		{"tod2/q", "d/q"}, {"d/abs/k", "d/e/k"}, {"../../esc", "esc"}, {"d/e/up/up", "up"}, {".", "."}, {"absdangling", h.outside[1:] + "/made"},
	} {
		f, err := safepath.MkdirAll(h.root, c.name, 0o750)
		if err != nil {
			t.Errorf("MkdirAll(%q): %v", c.name, err)
			continue
		}
		want, err := os.Stat(filepath.Join(h.path, c.at))
		if err != nil {
			t.Errorf("MkdirAll(%q): %v", c.name, err)
		} else if got, err := f.Stat(); err != nil || !os.SameFile(got, want) {
			t.Errorf("MkdirAll(%q) opened another directory than %s: %v", c.name, c.at, err)
		}
		f.Close()
	}
	for name, want := range map[string]error{"d/f/x": unix.ENOTDIR, "loop/x": unix.ELOOP, "ping/x/y": unix.ELOOP} {
		if _, err := safepath.MkdirAll(h.root, name, 0o750); !errors.Is(err, want) {
			t.Errorf("MkdirAll(%q): %v, want %v", name, err, want)
		}
	}
}

// MkdirAll follows as many links as the kernel does in one look-up, and no more.
func TestMkdirAllLimitsLinks(t *testing.T) {
	h := newFixture(t)
	const limit = 40
	target := "d"
	for i := range limit + 1 {
		name := "chain" + strconv.Itoa(i+1)
		if err := os.Symlink(target, filepath.Join(h.path, name)); err != nil {
			t.Fatal(err)
		}
		target = name
	}
	f, err := safepath.MkdirAll(h.root, "chain40/new", 0o755)
	if err != nil {
		t.Fatalf("through %d links: %v", limit, err)
	}
	f.Close()
	if _, err := safepath.MkdirAll(h.root, "chain41/new2", 0o755); !errors.Is(err, unix.ELOOP) {
		t.Errorf("through %d links: %v, want ELOOP", limit+1, err)
	}
}

// A directory is replaced by a link that leads out of the root while paths through it are opened.
func TestOpenWhileDirectoryIsReplacedByLink(t *testing.T) {
	h := newFixture(t)
	defer h.checkOutside(t)
	dir, aside := filepath.Join(h.path, "race"), filepath.Join(h.path, "aside")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(h.path, "link")
	if err := os.Symlink(h.outside, link); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Rename(dir, aside)
			_ = os.Rename(link, dir)
			_ = os.Rename(dir, link)
			_ = os.Rename(aside, dir)
		}
	})
	for range 3000 {
		if f, err := safepath.Open(h.root, "race/made", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600); err == nil {
			f.Close()
		}
		if f, err := safepath.Open(h.root, "race/secret", os.O_RDONLY, 0); err == nil {
			data, _ := io.ReadAll(f)
			if string(data) == "outside" {
				t.Fatal("read a file outside the root")
			}
			f.Close()
		}
		if f, err := safepath.MkdirAll(h.root, "race/sub", 0o755); err == nil {
			f.Close()
		}
	}
	close(stop)
	wg.Wait()
}

// While directories are renamed, the kernel gives up a look-up with ".." that stays in a root; Open tries again.
func TestOpenWhileDirectoriesAreRenamed(t *testing.T) {
	h := newFixture(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		from, to := filepath.Join(h.path, "d/e"), filepath.Join(h.path, "d/e2")
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Rename(from, to)
			_ = os.Rename(to, from)
		}
	})
	defer wg.Wait()
	defer close(stop)
	name := strings.Repeat("d/../", 50) + "d/f"
	for range 30_000 {
		f, err := safepath.Open(h.root, name, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"a/b", "../x", "/", "./.", "a//b", "\x00", "a/../b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got, err := safepath.Clean(name)
		if err != nil {
			return
		}
		if strings.HasPrefix(got, "/") || got != filepath.Clean(got) || got == ".." || strings.HasPrefix(got, "../") {
			t.Errorf("Clean(%q) = %q", name, got)
		}
		if again, err := safepath.Clean(got); err != nil || again != got {
			t.Errorf("Clean(%q) = %q, %v, want itself", got, again, err)
		}
	})
}
