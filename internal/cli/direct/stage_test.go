package direct

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// treeOf returns the files below a directory with their contents; a directory has "/", and a link its target.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		switch {
		case e.IsDir():
			out[rel] = "/"
		case e.Type() == fs.ModeSymlink:
			out[rel], err = os.Readlink(name)
		default:
			var b []byte
			b, err = os.ReadFile(name)
			out[rel] = string(b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func plant(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		if files[name] == "/" {
			err = errors.Join(err, os.MkdirAll(p, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(p, []byte(files[name]), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// An output into a directory that breaks off, at any byte, changes nothing: not the files that were there, and a directory that was not there is not made.
func TestOutputThatBreaksOffChangesNothing(t *testing.T) {
	whole := tarOf(t, tar.Header{Name: "a", Typeflag: tar.TypeReg}, tar.Header{Name: "d", Typeflag: tar.TypeDir}, tar.Header{Name: "d/b", Typeflag: tar.TypeReg},
		tar.Header{Name: "d/s", Typeflag: tar.TypeSymlink, Linkname: "b"}, tar.Header{Name: "z", Typeflag: tar.TypeReg}).Bytes()
	before := map[string]string{"a": "old", "d": "/", "d/mine": "mine", "z": "/", "z/in": "in"}
	failed := errors.New("the build failed")
	for n := 0; n <= len(whole); n += 256 {
		top := t.TempDir()
		dest := filepath.Join(top, "there")
		plant(t, dest, before)
		for _, d := range []string{dest, filepath.Join(top, "new", "below")} {
			if err := ToDir(d).takeDir(io.MultiReader(bytes.NewReader(whole[:n]), &brokenReader{failed}), func() error { return failed }); !errors.Is(err, failed) {
				t.Fatalf("%d bytes: %v", n, err)
			}
		}
		if got := treeOf(t, dest); !maps.Equal(got, before) {
			t.Fatalf("%d bytes: %v, want %v", n, got, before)
		}
		if list, err := os.ReadDir(top); err != nil || len(list) != 1 {
			t.Fatalf("%d bytes: %v, %v", n, list, err)
		}
	}
}

type brokenReader struct{ err error }

func (r *brokenReader) Read([]byte) (int, error) { return 0, r.err }

// What has another type than before takes its place, as with buildx: a file that of a directory with all that is in it, a directory that of a file or of a link, which is not
// followed. Directories are joined.
func TestOutputReplacesOtherTypes(t *testing.T) {
	top := t.TempDir()
	dest := filepath.Join(top, "dest")
	plant(t, top, map[string]string{"outside/f": "outside", "dest/dir/x": "x", "dest/file": "f", "dest/both/mine": "mine", "dest/both/f": "old"})
	if err := os.Symlink("../outside", filepath.Join(dest, "link")); err != nil {
		t.Fatal(err)
	}
	list := tarOf(t, tar.Header{Name: "dir", Typeflag: tar.TypeReg}, tar.Header{Name: "file", Typeflag: tar.TypeDir}, tar.Header{Name: "file/in", Typeflag: tar.TypeReg},
		tar.Header{Name: "both", Typeflag: tar.TypeDir}, tar.Header{Name: "both/f", Typeflag: tar.TypeReg}, tar.Header{Name: "both/h", Typeflag: tar.TypeLink, Linkname: "both/f"},
		tar.Header{Name: "link", Typeflag: tar.TypeDir}, tar.Header{Name: "link/f", Typeflag: tar.TypeReg})
	if err := ToDir(dest).takeDir(list, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"outside": "/", "outside/f": "outside", "dest": "/", "dest/dir": "text", "dest/file": "/", "dest/file/in": "text", "dest/both": "/", "dest/both/mine": "mine",
		"dest/both/f": "text", "dest/both/h": "text", "dest/link": "/", "dest/link/f": "text"}
	if got := treeOf(t, top); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestMain lets the test start itself as a process that is killed while it writes an output.
func TestMain(m *testing.M) {
	if dest := os.Getenv("PLY_TEST_OUTPUT"); dest != "" {
		take := ToDir(dest).takeDir
		if os.Getenv("PLY_TEST_FILE") != "" {
			take = ToFile(dest).takeFile
		}
		_ = take(os.Stdin, func() error { return nil })
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// What a killed process has left is removed by the next output into the same directory. What another process still writes stays, and so do files that only look alike.
func TestRemainsOfKilledProcesses(t *testing.T) {
	for _, file := range []string{"", "1"} {
		top := t.TempDir()
		dest := filepath.Join(top, "dest")
		plant(t, dest, map[string]string{".ply-output-mine": "m", ".ply-output-0123456789abcdeX": "x", "keep": "k", ".ply-0123456789abcdef": "p"})
		if file != "" {
			dest = filepath.Join(dest, "out")
		}
		whole := tarOf(t, tar.Header{Name: "d", Typeflag: tar.TypeDir}, tar.Header{Name: "d/f", Typeflag: tar.TypeReg}).Bytes()
		begin := func() (*exec.Cmd, io.WriteCloser) {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "PLY_TEST_OUTPUT="+dest, "PLY_TEST_FILE="+file)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			if _, err := in.Write(whole[:1024+512]); err != nil {
				t.Fatal(err)
			}
			return cmd, in
		}
		stages := func() (names []string) {
			list, _ := os.ReadDir(filepath.Join(top, "dest"))
			for _, e := range list {
				if isStage(e.Name()) && busy(filepath.Join(top, "dest", e.Name())) {
					names = append(names, e.Name())
				}
			}
			return names
		}
		first, _ := begin()
		for len(stages()) < 1 {
			if t.Context().Err() != nil {
				t.Fatal("no stage")
			}
		}
		second, _ := begin()
		for len(stages()) < 2 {
			if t.Context().Err() != nil {
				t.Fatal("the second process removed what the first one writes")
			}
		}
		running := stages()
		if err := first.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = first.Wait()
		take := ToDir(dest).takeDir
		if file != "" {
			take = ToFile(dest).takeFile
		}
		if err := take(bytes.NewReader(whole), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		left, all := stages(), 0
		list, err := os.ReadDir(filepath.Join(top, "dest"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if isStage(e.Name()) {
				all++
			}
		}
		if all != 1 || len(left) != 1 || !slices.Contains(running, left[0]) {
			t.Errorf("file %q: stages %v are left of %v, want that of the process that runs", file, left, running)
		}
		_ = second.Process.Kill()
		_ = second.Wait()
		if err := take(bytes.NewReader(whole), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		var names []string
		for name := range treeOf(t, filepath.Join(top, "dest")) {
			names = append(names, name)
		}
		slices.Sort(names)
		want := ".ply-0123456789abcdef .ply-output-0123456789abcdeX .ply-output-mine d d/f keep"
		if file != "" {
			want = ".ply-0123456789abcdef .ply-output-0123456789abcdeX .ply-output-mine keep out"
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("file %q: %s, want %s", file, got, want)
		}
	}
}

// busy reports whether a process holds the lock of a stage.
func busy(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	return lock(f, unix.LOCK_SH|unix.LOCK_NB) != nil
}
