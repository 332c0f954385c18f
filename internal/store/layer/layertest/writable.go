package layertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer"
)

// ground is a layer with one name of each type, for tests that change it.
func ground(t testing.TB) []byte {
	return makeTar(t,
		dir("etc").chmod(0o755), file("etc/passwd", "root"), file("etc/hosts", "x"), dir("etc/conf.d"), file("etc/conf.d/a", "a"), file("etc/conf.d/b", "b"),
		dir("usr"), dir("usr/bin"), file("usr/bin/tool", noise(20, 3000)).chmod(0o4755), hardlink("usr/bin/alias", "usr/bin/tool"),
		symlink("bin", "usr/bin"), dir("var").chmod(0o1777), file("var/log", "log").chown(5, 6).xattr("user.k", "v"), dir("gone"), file("gone/f", "x"), dir("gone/d"), file("gone/d/g", "x"),
		entry{name: "null", kind: '3', major: 1, minor: 3}, entry{name: "fifo", kind: '6'},
	)
}

func testWritable(t *testing.T, open Open) {
	b := newBox(t, open)
	chain := b.stack(t, ground(t), makeTar(t, dir("var").chmod(0o1777), file("var/upper", "u")))
	t.Run("copy_up", func(t *testing.T) {
		w, other := b.writable(t, chain, noOptions), b.writable(t, chain, noOptions)
		f, err := os.OpenFile(w.at("etc/passwd"), os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(":added")
		must(t, errors.Join(err, f.Close()))
		must(t, os.Chmod(w.at("var/log"), 0o600))
		for path, want := range map[string]string{
			w.at("etc/passwd"): "root:added", other.at("etc/passwd"): "root", b.view(t, chain) + "/etc/passwd": "root", w.at("var/log"): "log",
		} {
			if got, err := os.ReadFile(path); string(got) != want {
				t.Errorf("%s = %q, %v, want %q", path, got, err, want)
			}
		}
		if x, err := readXattrs(w.at("var/log")); x["user.k"] != "v" {
			t.Errorf("xattrs after copy-up = %v, %v", x, err)
		}
		if got, want := w.changes(t), []string{"C /etc", "C /etc/passwd", "C /var", "C /var/log"}; !slices.Equal(got, want) {
			t.Errorf("changes = %q, want %q", got, want)
		}
		if got := other.changes(t); len(got) > 0 {
			t.Errorf("changes of the other = %q", got)
		}
		b.checkTars(t, chain)
	})
	t.Run("usage", func(t *testing.T) {
		w := b.writable(t, chain, noOptions)
		before, err := b.Usage(t.Context(), w.dir, chain)
		must(t, err)
		must(t, os.WriteFile(w.at("new"), make([]byte, 12_345), 0o600))
		must(t, os.Link(w.at("new"), w.at("linked")))
		must(t, os.Remove(w.at("etc/passwd")))
		after, err := b.Usage(t.Context(), w.dir, chain)
		must(t, err)
		if after-before != 12_345 && after-before != 12_345-4 {
			t.Errorf("usage grew by %d, want 12345", after-before)
		}
	})
	t.Run("remount_keeps", func(t *testing.T) {
		for _, volatile := range []bool{false, true} {
			w := b.writable(t, chain, layer.MountOptions{Volatile: volatile})
			must(t, os.WriteFile(w.at("kept"), []byte("x"), 0o600))
			must(t, os.RemoveAll(w.at("gone")))
			b.unmount(t, w.target)
			if got, want := w.changes(t), []string{"A /kept", "D /gone"}; !sameSet(got, want) {
				t.Errorf("changes while not mounted = %q, want %q", got, want)
			}
			w.mount(t, layer.MountOptions{Volatile: volatile})
			if _, err := os.Stat(w.at("gone")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("deleted directory after mounting again: %v", err)
			}
			if data, err := os.ReadFile(w.at("kept")); string(data) != "x" {
				t.Errorf("file after mounting again = %q, %v", data, err)
			}
		}
	})
	t.Run("remove", func(t *testing.T) {
		w := b.writable(t, chain, noOptions)
		must(t, os.MkdirAll(w.at("a/b/c"), 0o000))
		must(t, os.WriteFile(w.at("a/b/f"), make([]byte, 100_000), 0o000))
		b.unmount(t, w.target)
		must(t, b.RemoveWritable(t.Context(), w.dir))
		left, err := os.ReadDir(w.dir)
		must(t, err)
		if len(left) > 0 {
			t.Errorf("removal left %v", left)
		}
		must(t, b.RemoveWritable(t.Context(), w.dir))
	})
	t.Run("root_attributes", func(t *testing.T) {
		chain := b.stack(t, makeTar(t, dir(".").chmod(0o711).chown(3, 4)), makeTar(t, file("f", "x")))
		w := b.writable(t, chain, noOptions)
		var st unix.Stat_t
		must(t, unix.Stat(w.target, &st))
		if st.Mode&0o7777 != 0o711 || st.Uid != 3 || st.Gid != 4 {
			t.Errorf("root of a writable = %o %d:%d, want 711 3:4", st.Mode&0o7777, st.Uid, st.Gid)
		}
	})
	t.Run("rename", func(t *testing.T) {
		w := b.writable(t, chain, noOptions)
		err := os.Rename(w.at("gone"), w.at("moved"))
		if err != nil && !errors.Is(err, unix.EXDEV) {
			t.Errorf("rename of an image's directory: %v", err)
		}
		must(t, os.Rename(w.at("etc/hosts"), w.at("etc/moved")))
		checkReapplied(t, w)
	})
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// checkReapplied commits the writable's diff as a layer and checks that it results in the same tree.
func checkReapplied(t testing.TB, w *rw) {
	t.Helper()
	data := w.diff(t)
	if again := w.diff(t); !bytes.Equal(data, again) {
		t.Error("two diffs of one tree differ")
	}
	want := readTree(t, w.target)
	want["."].anyTime = true
	next := w.put(t, w.chain, data)
	target := w.path(t, "again")
	if err := w.View(t.Context(), next, target); err != nil {
		t.Fatalf("view of the applied diff: %v", err)
	}
	defer w.unmount(t, target)
	got := readTree(t, target)
	for _, l := range compareTrees(got, want) {
		t.Errorf("diff and apply: %s", l)
	}
	w.checkTars(t, next)
}

// testDiff changes the ground in known ways, and checks the changes and that the diff results in the same tree again.
func testDiff(t *testing.T, open Open) {
	b := newBox(t, open)
	chain := b.stack(t, ground(t))
	cases := []struct {
		name   string
		change func(t *testing.T, w *rw)
		want   []string
	}{
		{"nothing", func(t *testing.T, w *rw) {}, nil},
		{"add", func(t *testing.T, w *rw) { must(t, os.WriteFile(w.at("new"), []byte("x"), 0o640)) }, []string{"A /new"}},
		{"add_below", func(t *testing.T, w *rw) { must(t, os.WriteFile(w.at("etc/conf.d/c"), []byte("x"), 0o640)) }, []string{"C /etc", "C /etc/conf.d", "A /etc/conf.d/c"}},
		{"add_directory", func(t *testing.T, w *rw) {
			must(t, os.MkdirAll(w.at("etc/new/deep"), 0o711))
			must(t, os.WriteFile(w.at("etc/new/deep/f"), []byte("x"), 0o640))
		}, []string{"C /etc", "A /etc/new", "A /etc/new/deep", "A /etc/new/deep/f"}},
		{"change", func(t *testing.T, w *rw) { must(t, os.WriteFile(w.at("etc/passwd"), []byte("longer"), 0o640)) }, []string{"C /etc", "C /etc/passwd"}},
		{"chmod", func(t *testing.T, w *rw) { must(t, os.Chmod(w.at("etc/passwd"), 0o4711)) }, []string{"C /etc", "C /etc/passwd"}},
		{"chmod_directory", func(t *testing.T, w *rw) { must(t, os.Chmod(w.at("etc/conf.d"), 0o2700)) }, []string{"C /etc", "C /etc/conf.d"}},
		{"delete", func(t *testing.T, w *rw) { must(t, os.Remove(w.at("etc/conf.d/a"))) }, []string{"C /etc", "C /etc/conf.d", "D /etc/conf.d/a"}},
		{"delete_directory", func(t *testing.T, w *rw) { must(t, os.RemoveAll(w.at("gone"))) }, []string{"D /gone"}},
		{"add_and_delete_again", func(t *testing.T, w *rw) {
			must(t, os.WriteFile(w.at("etc/tmp"), nil, 0o600))
			must(t, os.Remove(w.at("etc/tmp")))
		}, []string{"C /etc"}},
		{"recreate_directory", func(t *testing.T, w *rw) {
			must(t, os.RemoveAll(w.at("gone")))
			must(t, os.Mkdir(w.at("gone"), 0o700))
			must(t, os.WriteFile(w.at("gone/new"), []byte("x"), 0o640))
		}, []string{"C /gone", "D /gone/d", "D /gone/f", "A /gone/new"}},
		{"recreate_file", func(t *testing.T, w *rw) {
			must(t, os.Remove(w.at("etc/hosts")))
			must(t, os.WriteFile(w.at("etc/hosts"), []byte("new one"), 0o640))
		}, []string{"C /etc", "C /etc/hosts"}},
		{"directory_to_file", func(t *testing.T, w *rw) {
			must(t, os.RemoveAll(w.at("gone")))
			must(t, os.WriteFile(w.at("gone"), []byte("x"), 0o640))
		}, []string{"C /gone"}},
		{"file_to_directory", func(t *testing.T, w *rw) {
			must(t, os.Remove(w.at("fifo")))
			must(t, os.Mkdir(w.at("fifo"), 0o750))
			must(t, os.WriteFile(w.at("fifo/f"), []byte("x"), 0o640))
		}, []string{"C /fifo", "A /fifo/f"}},
		{"symlink", func(t *testing.T, w *rw) {
			must(t, os.Remove(w.at("bin")))
			must(t, os.Symlink("../../usr/bin", w.at("bin")))
		}, []string{"C /bin"}},
		{"links", func(t *testing.T, w *rw) {
			must(t, os.WriteFile(w.at("one"), []byte("x"), 0o640))
			must(t, os.Link(w.at("one"), w.at("three")))
			must(t, os.Link(w.at("one"), w.at("etc/two")))
		}, []string{"C /etc", "A /etc/two", "A /one", "A /three"}},
		{"special", func(t *testing.T, w *rw) {
			must(t, unix.Mknod(w.at("dev"), unix.S_IFBLK|0o640, int(unix.Mkdev(8, 17))))
			must(t, unix.Mkfifo(w.at("pipe"), 0o604))
			must(t, os.Symlink(strings.Repeat("t/", 200), w.at("sym")))
		}, []string{"A /dev", "A /pipe", "A /sym"}},
		{"xattrs", func(t *testing.T, w *rw) {
			must(t, unix.Setxattr(w.at("etc/passwd"), "user.new", []byte("v\x00w"), 0))
			must(t, unix.Setxattr(w.at("usr/bin"), "user.dir", []byte("d"), 0))
			must(t, unix.Setxattr(w.at("etc/hosts"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
			// Overlayfs asks the lower inode whether it supports ACLs, and EROFS does not, so the file is copied up first.
			must(t, os.Chown(w.at("etc/conf.d/a"), -1, -1))
			must(t, unix.Setxattr(w.at("etc/conf.d/a"), "system.posix_acl_access", acl(), 0))
		}, []string{"C /etc", "C /etc/conf.d", "C /etc/conf.d/a", "C /etc/hosts", "C /etc/passwd", "C /usr", "C /usr/bin"}},
		{"owners_and_times", func(t *testing.T, w *rw) {
			must(t, os.WriteFile(w.at("mine"), []byte("x"), 0o640))
			must(t, os.Lchown(w.at("mine"), 2_500_000, 2_147_483_647))
			must(t, os.Chtimes(w.at("mine"), time.Time{}, time.Unix(-77, 5)))
		}, []string{"A /mine"}},
		{"names", func(t *testing.T, w *rw) {
			for _, n := range []string{strings.Repeat("n", 255), "\xff\xfe", "new\nline", `back\slash`, " ", "wh.x"} {
				must(t, os.WriteFile(w.at(n), []byte(n), 0o640))
			}
		}, []string{"A /\n", "skip"}},
		{"root_attributes", func(t *testing.T, w *rw) { must(t, os.Chmod(w.target, 0o700)) }, nil},
		{"sparse", func(t *testing.T, w *rw) {
			must(t, os.WriteFile(w.at("sparse"), []byte("start"), 0o640))
			must(t, os.Truncate(w.at("sparse"), 5<<20))
		}, []string{"A /sparse"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := b.writable(t, chain, noOptions)
			c.change(t, w)
			if got := w.changes(t); !slices.Equal(got, c.want) && !slices.Contains(c.want, "skip") {
				t.Errorf("changes = %q\nwant %q", got, c.want)
			}
			checkReapplied(t, w)
		})
	}
	t.Run("sockets_left_out", func(t *testing.T) {
		w := b.writable(t, chain, noOptions)
		t.Chdir(w.target) // paths of sockets must be short
		l, err := net.Listen("unix", "sock")
		must(t, err)
		defer l.Close()
		tree, err := flatten(ground(t), w.diff(t))
		must(t, err)
		if tree["sock"] != nil {
			t.Error("the diff has a socket")
		}
		t.Chdir("/")
	})
	t.Run("whiteout_name", func(t *testing.T) {
		w := b.writable(t, chain, noOptions)
		must(t, os.WriteFile(w.at(".wh.etc"), nil, 0o600))
		if err := b.Diff(t.Context(), w.dir, chain, io.Discard); err == nil || !strings.Contains(err.Error(), ".wh.etc") {
			t.Errorf("diff with a file named like a whiteout: %v, want an error that names it", err)
		}
	})
	t.Run("second_layer_hides", func(t *testing.T) {
		chain := b.put(t, chain, makeTar(t, file(".wh.gone", ""), dir("etc"), file("etc/.wh..wh..opq", ""), file("etc/only", "x")))
		w := b.writable(t, chain, noOptions)
		must(t, os.MkdirAll(w.at("gone/d"), 0o755))
		must(t, os.WriteFile(w.at("etc/passwd"), []byte("again"), 0o600))
		if got, want := w.changes(t), []string{"C /etc", "A /etc/passwd", "A /gone", "A /gone/d"}; !slices.Equal(got, want) {
			t.Errorf("changes = %q\nwant %q", got, want)
		}
		checkReapplied(t, w)
	})
}

// acl is a POSIX ACL with one named user.
func acl() []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 4, 1000}, {4, 4, 1<<32 - 1}, {0x10, 4, 1<<32 - 1}, {0x20, 4, 1<<32 - 1}} {
		b = append(b, byte(e[0]), 0, byte(e[1]), 0, byte(e[2]), byte(e[2]>>8), byte(e[2]>>16), byte(e[2]>>24))
	}
	return b
}

// testRunning takes the diff of a writable while files change: the tar must be valid.
func testRunning(t *testing.T, open Open) {
	b := newBox(t, open)
	chain := b.stack(t, ground(t))
	w := b.writable(t, chain, noOptions)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- churn(ctx, w) }()
	for range 10 {
		data := w.diff(t)
		if _, err := flatten(ground(t), data); err != nil {
			t.Errorf("diff of a running container: %v", err)
			break
		}
		if _, err := b.Changes(t.Context(), w.dir, chain); err != nil {
			t.Errorf("changes of a running container: %v", err)
		}
		if _, err := b.Usage(t.Context(), w.dir, chain); err != nil {
			t.Errorf("usage of a running container: %v", err)
		}
	}
	stop()
	must(t, <-done)
	checkReapplied(t, w)
}

// churn grows, shrinks, removes and replaces files until ctx ends.
func churn(ctx context.Context, w *rw) error {
	for i := 0; ctx.Err() == nil; i++ {
		name := w.at(fmt.Sprintf("churn%d", i%7))
		var err error
		switch i % 5 {
		case 0, 1:
			err = os.WriteFile(name, make([]byte, i%50*4096), 0o600)
		case 2:
			err = os.RemoveAll(name)
		case 3:
			if err = os.RemoveAll(name); err == nil {
				err = os.MkdirAll(name+"/sub/dir", 0o755)
			}
		case 4:
			if _, serr := os.Stat(name); serr == nil {
				err = os.RemoveAll(name)
			}
			if err == nil {
				err = os.WriteFile(name, []byte("x"), 0o600)
			}
			if err == nil {
				err = os.Truncate(name, 1<<20)
			}
		}
		if err != nil && !errors.Is(err, unix.EISDIR) {
			return err
		}
	}
	return nil
}

// testInit checks that the mount points of the runtime exist and are no changes.
func testInit(t *testing.T, open Open) {
	b := newBox(t, open)
	entries := []layer.InitEntry{
		{Path: "/dev", Dir: true, Mode: 0o755}, {Path: "/proc", Dir: true, Mode: 0o555}, {Path: "/etc/resolv.conf", Mode: 0o644},
		{Path: "/etc/hosts", Mode: 0o644}, {Path: "/etc/mtab", Link: "/proc/mounts"}, {Path: "/dev/pts", Dir: true, Mode: 0o755}, {Path: "/.dockerenv", Mode: 0o755},
	}
	opts := layer.MountOptions{Init: entries}
	images := []struct {
		name  string
		image []entry
	}{
		{"empty", nil},
		{"there_already", []entry{dir("etc").chmod(0o711).chown(1, 2), file("etc/hosts", "own").chmod(0o600), dir("dev"), dir("proc"), symlink("etc/mtab", "elsewhere")}},
		{"links", []entry{symlink("dev", "/CANARY"), symlink("etc", "../../../../real"), dir("real"), file("real/x", "x"), symlink("real/hosts", "/CANARY/f")}},
		{"wrong_kinds", []entry{file("dev", "x"), dir("etc"), dir("etc/hosts"), file("proc", "x")}},
	}
	for _, im := range images {
		t.Run(im.name, func(t *testing.T) {
			canary := t.TempDir()
			before := readTree(t, canary)
			chain := b.stack(t, makeTar(t, aim(im.image, canary)...))
			w := b.writable(t, chain, opts)
			for _, e := range entries {
				st, err := os.Lstat(w.at(e.Path))
				if strings.HasPrefix(e.Path, "/etc/") && im.name == "links" {
					st, err = os.Lstat(w.at("real/" + strings.TrimPrefix(e.Path, "/etc/")))
				}
				switch {
				case err != nil:
					t.Errorf("%s: %v", e.Path, err)
				case e.Link == "" && st.IsDir() != e.Dir:
					t.Errorf("%s is %v, want a directory: %v", e.Path, st.Mode(), e.Dir)
				case e.Link == "" && st.Mode()&fs.ModeSymlink != 0, e.Link != "" && st.Mode()&fs.ModeSymlink == 0:
					t.Errorf("%s is %v", e.Path, st.Mode())
				}
			}
			if im.name == "there_already" {
				if data, _ := os.ReadFile(w.at("etc/hosts")); string(data) != "own" {
					t.Errorf("the image's own file became %q", data)
				}
				if st, _ := os.Stat(w.at("etc")); st.Mode().Perm() != 0o711 || !st.ModTime().Equal(testTime) {
					t.Errorf("the image's own directory became %v, %v", st.Mode(), st.ModTime())
				}
			}
			if got := w.changes(t); len(got) > 0 {
				t.Errorf("mount points are changes: %q", got)
			}
			if tree, err := flatten(w.diff(t)); err != nil || len(tree) != 1 {
				t.Errorf("mount points are in the diff: %v, %v", tree, err)
			}
			b.unmount(t, w.target)
			w.mount(t, opts)
			must(t, os.WriteFile(w.at("own"), []byte("x"), 0o600))
			if got := w.changes(t); !slices.Equal(got, []string{"A /own"}) {
				t.Errorf("changes = %q, want [A /own]", got)
			}
			for _, l := range compareTrees(readTree(t, canary), before) {
				t.Errorf("canary: %s", l)
			}
		})
	}
}
