package layertest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ply/internal/oci"
)

// scripts is for long manual runs: -layertest.scripts=500 -rapid.checks=500.
var scripts = flag.Int("layertest.scripts", 15, "random scripts to run")

// scriptNames are few names, so that operations clash.
var scriptNames = []string{"a", "b", "etc", "etc/passwd", "etc/conf.d", "etc/conf.d/a", "etc/new", "usr", "usr/bin", "usr/bin/tool", "gone", "gone/d", "gone/d/g", "a/b", "a/b/c", "var", "bin", "fifo"}

// scriptGround is the layer that scripts change. It has no hard links, because overlayfs breaks them at copy-up and full
// copies do not.
func scriptGround(t testing.TB) []byte {
	return makeTar(t,
		dir("etc"), file("etc/passwd", "root"), dir("etc/conf.d").chmod(0o750), file("etc/conf.d/a", "a").xattr("user.x1", "v"), dir("usr"), dir("usr/bin").chown(3, 4),
		file("usr/bin/tool", noise(20, 3000)).chmod(0o4755), symlink("bin", "usr/bin"), dir("gone"), file("gone/f", "x"), dir("gone/d"), file("gone/d/g", "x"), entry{name: "fifo", kind: '6'},
	)
}

// op is one file operation. It may fail, but then it must fail on every driver.
type op struct {
	kind     int
	from, to string
	n        int
}

const opKinds = 13

func (o op) String() string { return fmt.Sprintf("%d(%s, %s, %d)", o.kind, o.from, o.to, o.n) }

func drawOp(rt *rapid.T) op {
	name := rapid.SampledFrom(scriptNames)
	return op{
		kind: rapid.IntRange(0, opKinds-1).Draw(rt, "kind"), from: name.Draw(rt, "from"), to: name.Draw(rt, "to"),
		n: rapid.IntRange(0, 9).Draw(rt, "n"),
	}
}

// apply runs o below root. Paths are used without following links, so that no script leaves the tree.
func (o op) apply(root string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	d, err := r.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	fd := int(d.Fd())
	from, to := o.from, o.to
	if !plainParents(fd, from) || !plainParents(fd, to) {
		return errNotPlain
	}
	at := fmt.Sprintf("/proc/self/fd/%d/", fd)
	switch o.kind {
	case 0:
		f, err := unix.Openat(fd, from, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
		if err != nil {
			return err
		}
		_, err = unix.Write(f, []byte(strings.Repeat("w", o.n*700)))
		return errors.Join(err, unix.Close(f))
	case 1:
		f, err := unix.Openat(fd, from, unix.O_WRONLY|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(f, []byte(strings.Repeat("a", o.n)))
		return errors.Join(err, unix.Close(f))
	case 2:
		return unix.Mkdirat(fd, from, 0o700|uint32(o.n))
	case 3, 4:
		return r.RemoveAll(from)
	case 5:
		return unix.Symlinkat(strings.Repeat("../", o.n)+to, fd, from)
	case 6:
		return unix.Linkat(fd, from, fd, to, 0)
	case 7:
		if st, err := r.Lstat(from); err != nil || st.IsDir() {
			return errNotPlain // whether a directory of an image can be renamed differs between drivers
		}
		return unix.Renameat(fd, from, fd, to)
	case 8:
		if st, err := r.Lstat(from); err != nil || st.Mode()&os.ModeSymlink != 0 {
			return errNotPlain
		}
		return unix.Fchmodat(fd, from, uint32(o.n)<<9|uint32(o.n*37)&0o777, 0)
	case 9:
		return unix.Fchownat(fd, from, o.n*1000, o.n, unix.AT_SYMLINK_NOFOLLOW)
	case 10:
		if st, err := r.Lstat(from); err != nil || !st.IsDir() && !st.Mode().IsRegular() {
			return errNotPlain
		}
		return unix.Lsetxattr(at+from, fmt.Sprintf("user.x%d", o.n%3), []byte(to), 0)
	case 11:
		if o.n%2 == 0 {
			return unix.Mknodat(fd, from, unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(o.n)+1)))
		}
		return unix.Mknodat(fd, from, unix.S_IFIFO|0o600, 0)
	default:
		return errors.Join(r.RemoveAll(from), unix.Mkdirat(fd, from, 0o755))
	}
}

var errNotPlain = errors.New("not done")

// plainParents reports whether no component before the last is a link.
func plainParents(fd int, name string) bool {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, dir, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return false
		}
	}
	return true
}

// setTimes sets the time of every name to one that depends only on its path, because the times of operations differ between
// drivers.
func setTimes(t testing.TB, root string, names tree) {
	t.Helper()
	paths := slices.Sorted(func(yield func(string) bool) {
		for p := range names {
			if !yield(p) {
				return
			}
		}
	})
	for _, p := range slices.Backward(paths) {
		ts := unix.NsecToTimespec(int64(len(p)+1)*1_000_000_007 + int64(p[0]))
		if names[p].kind != unix.S_IFDIR {
			// hard links share one time
			ts = unix.NsecToTimespec(time.Unix(1_500_000_000, 77).UnixNano())
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, root+"/"+p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatalf("set time of %s: %v", p, err)
		}
	}
}

// testScripts runs random scripts on every driver. All must end with the same tree, and diff, apply and mount must result
// in that tree again.
func testScripts(t *testing.T, drivers map[string]Open) {
	var names []string
	boxes := map[string]*box{}
	for name, open := range drivers {
		names = append(names, name)
		boxes[name] = newBox(t, open)
		boxes[name].stack(t, scriptGround(t))
	}
	slices.Sort(names)
	runs, bad := 0, false
	rapid.Check(t, func(rt *rapid.T) {
		// Every run mounts, and the suite must be fast. After a failure, more runs may shrink the script.
		if runs++; runs > *scripts && (!bad || runs > *scripts+45) {
			return
		}
		script := rapid.SliceOfN(rapid.Custom(drawOp), 1, 40).Draw(rt, "script")
		var first tree
		var failed []string
		for _, name := range names {
			ok := t.Run("run", func(t *testing.T) {
				got, errors := boxes[name].script(t, script)
				if first == nil {
					first, failed = got, errors
					return
				}
				for _, l := range compareTrees(got, first) {
					t.Errorf("%s and %s differ: %s", name, names[0], l)
				}
				if !slices.Equal(errors, failed) {
					t.Errorf("%s and %s fail differently: %q, %q", name, names[0], errors, failed)
				}
			})
			if !ok {
				bad = true
				rt.Fatalf("%s: script %v", name, script)
			}
		}
	})
}

// script runs ops in a fresh writable and returns the tree, and how each operation ended.
func (b *box) script(t *testing.T, ops []op) (tree, []string) {
	t.Helper()
	chain := oci.Chain{diffID(scriptGround(t))}
	w := b.writable(t, chain, noOptions)
	var failed []string
	for i, o := range ops {
		if err := o.apply(w.target); err != nil {
			failed = append(failed, fmt.Sprintf("%d: %v", i, errnoOf(err)))
		}
	}
	setTimes(t, w.target, readTree(t, w.target))
	got := readTree(t, w.target)
	checkReapplied(t, w)
	return got, failed
}

func errnoOf(err error) error {
	var no unix.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}
