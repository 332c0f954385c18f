package tree_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer/tarscan"
	"ply/internal/store/layer/tree"
)

// pack makes a tar of "d name", "f name content", "l name target" (symbolic) and "h name target" (hard).
func pack(tb testing.TB, lines ...string) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, line := range lines {
		kind, rest, _ := strings.Cut(line, " ")
		name, more, _ := strings.Cut(rest, " ")
		h := &tar.Header{Name: name, Mode: 0o644, Typeflag: map[string]byte{"d": tar.TypeDir, "f": tar.TypeReg, "l": tar.TypeSymlink, "h": tar.TypeLink}[kind]}
		if kind == "f" {
			h.Size = int64(len(more))
		} else {
			h.Linkname = more
		}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if kind == "f" {
			fmt.Fprint(w, more)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func unpack(t *testing.T, data []byte) (dir string, m *tree.Meta, err error) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "layer")
	w, err := tree.Create(t.Context(), durable.OS, dir, tarscan.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err == nil {
		m, err = w.Finish("")
		if err == nil {
			return dir, m, nil
		}
		return dir, nil, errors.Join(err, w.Abort())
	} else {
		return dir, nil, errors.Join(err, w.Abort())
	}
}

// show lists a tree with contents and link targets.
func show(t *testing.T, root string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel := strings.TrimPrefix(p, root+"/")
		switch {
		case e.IsDir():
			rel += "/"
		case e.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			rel += " -> " + to
		case e.Type()&fs.ModeCharDevice != 0:
			rel += " whiteout"
		default:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += " = " + string(data)
		}
		lines = append(lines, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func rebuilt(t *testing.T, dir string, m *tree.Meta) ([]byte, error) {
	t.Helper()
	r, err := tree.OpenTar(durable.OS, dir, filepath.Join(dir, tree.FS), m)
	if err != nil {
		return nil, err
	}
	r = tree.Verified(r, m.DiffID, m.TarSize)
	defer r.Close()
	return io.ReadAll(r)
}

func TestUnpack(t *testing.T) {
	cases := []struct {
		name string
		tar  []string
		want []string
	}{
		{"links_of_the_layer_are_followed_inside", []string{"d usr/bin", "l bin usr/bin", "f bin/sh sh"}, []string{"bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/sh = sh"}},
		{"link_to_what_is_not_there_yet", []string{"l bin usr/bin", "f bin/sh sh"}, []string{"bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/sh = sh"}},
		{"absolute_link_stays_inside", []string{"l etc /real/etc", "f etc/passwd x"}, []string{"etc -> /real/etc", "real/", "real/etc/", "real/etc/passwd = x"}},
		{"climbing_link_stays_inside", []string{"d a", "l a/up ../../../../tmp", "f a/up/x x"}, []string{"a/", "a/up -> ../../../../tmp", "tmp/", "tmp/x = x"}},
		{"whiteout_below_link", []string{"l bin usr/bin", "f bin/.wh.sh "}, []string{"bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/sh whiteout"}},
		{"hard_link_through_link", []string{"f usr/bin/sh sh", "l bin usr/bin", "h ash bin/sh"}, []string{"ash = sh", "bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/sh = sh"}},
		{"directory_over_link", []string{"l bin usr/bin", "d bin", "f bin/sh sh"}, []string{"bin/", "bin/sh = sh"}},
		{"file_becomes_parent", []string{"f a content", "f a/b x"}, []string{"a/", "a/b = x"}},
		{"whiteout_turns_into_directory", []string{"f .wh.a ", "f a/b x"}, []string{"a/", "a/b = x"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			data := pack(t, c.tar...)
			dir, m, err := unpack(t, data)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(t, filepath.Join(dir, tree.FS)); !slices.Equal(got, c.want) {
				t.Errorf("tree = %q\nwant %q", got, c.want)
			}
			if got, err := rebuilt(t, dir, m); err != nil || !bytes.Equal(got, data) {
				t.Errorf("rebuilt tar: %d bytes, %v, want the %d given", len(got), err, len(data))
			}
			if m.DiffID != oci.DiffID(oci.DigestOf(data)) {
				t.Errorf("DiffID = %s", m.DiffID)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, lines := range map[string][]string{
		"loop":                     {"l a b", "l b a", "f a/x x"},
		"hard_link_below_file":     {"f a x", "h b a/x"},
		"hard_link_to_child":       {"f a/b x", "h a a/b"},
		"hard_link_to_directory":   {"d a", "h b a"},
		"hard_link_to_own_nothing": {"h a a"},
	} {
		dir, _, err := unpack(t, pack(t, lines...))
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want class invalid argument", name, err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the directory is left: %v", name, err)
		}
	}
}

// One entry can imply thousands of directories, so they count as names.
func TestImpliedDirectoriesAreLimited(t *testing.T) {
	for name, refuse := range map[string]bool{"a/b/c/d/e/f": false, "a/b/c/d/e/f/g": true} {
		w, err := tree.Create(t.Context(), durable.OS, filepath.Join(t.TempDir(), "layer"), tarscan.Limits{Entries: 5})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(pack(t, "f "+name+" x"))
		if err == nil {
			_, err = w.Finish("")
		}
		if errors.Is(err, errs.Invalid) != refuse || !refuse && err != nil {
			t.Errorf("%s with 5 names: %v", name, err)
		}
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
}

// Content that later entries replace is kept, whatever was linked to it.
func TestHidden(t *testing.T) {
	for name, lines := range map[string][]string{
		"twice":              {"f a 1", "f a 22"},
		"four_times":         {"f a 1", "f a 22", "f a 333", "f a 4444"},
		"in_a_directory":     {"f d/e/a 1", "f d/b 22", "f d file", "f d/e/a again"},
		"linked":             {"f a 1", "h b a", "f a 22", "h c b", "f b 333"},
		"link_then_file":     {"f a 1", "f b 22", "h a b", "f b 333", "f a 4444"},
		"by_link_to_itself":  {"f a 1", "h a a", "f a 22"},
		"empty_in_between":   {"f a 1", "f a ", "f a 22"},
		"link_in_between":    {"f a 1", "l a x", "f a 22", "d a", "f a 333"},
		"through_other_name": {"l l d", "f l/a 1", "f d/a 22", "f ./l/a 333"},
	} {
		t.Run(name, func(t *testing.T) {
			data := pack(t, lines...)
			dir, m, err := unpack(t, data)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := rebuilt(t, dir, m); err != nil || !bytes.Equal(got, data) {
				t.Errorf("rebuilt tar: %d bytes, %v, want the %d given", len(got), err, len(data))
			}
			loaded, err := tree.Load(durable.OS, dir)
			if err != nil {
				t.Fatal(err)
			}
			r, err := tree.OpenTar(durable.OS, dir, filepath.Join(dir, tree.FS), loaded)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if err := tree.Check(t.Context(), r, filepath.Join(dir, tree.FS), tarscan.Limits{}); err != nil {
				t.Errorf("check: %v", err)
			}
		})
	}
}

// Each part of a layer directory is damaged in turn.
func TestDamage(t *testing.T) {
	data := pack(t, "d d", "f d/f content", "l l target", "f g gg", "f e ")
	for name, damage := range map[string]func(dir string) error{
		"content":    func(dir string) error { return os.WriteFile(dir+"/fs/d/f", []byte("CONTENT"), 0o644) },
		"shorter":    func(dir string) error { return os.Truncate(dir+"/fs/d/f", 3) },
		"longer":     func(dir string) error { return os.WriteFile(dir+"/fs/d/f", []byte("contents"), 0o644) },
		"gone":       func(dir string) error { return os.Remove(dir + "/fs/g") },
		"empty_gone": func(dir string) error { return os.Remove(dir + "/fs/e") },
		"mode":       func(dir string) error { return os.Chmod(dir+"/fs/g", 0o600) },
		"owner":      func(dir string) error { return os.Chown(dir+"/fs/g", 1, 1) },
		"link":       func(dir string) error { return errors.Join(os.Remove(dir+"/fs/l"), os.Symlink("other", dir+"/fs/l")) },
		"to_link": func(dir string) error {
			return errors.Join(os.Remove(dir+"/fs/g"), os.Symlink("/etc/passwd", dir+"/fs/g"))
		},
		"parent_link": func(dir string) error { return errors.Join(os.RemoveAll(dir+"/fs/d"), os.Symlink("/tmp", dir+"/fs/d")) },
		"fifo":        func(dir string) error { return errors.Join(os.Remove(dir+"/fs/g"), mkfifo(dir+"/fs/g")) },
		"recipe":      func(dir string) error { return os.Truncate(dir+"/tar-split.json.gz", 100) },
		"no_recipe":   func(dir string) error { return os.Remove(dir + "/tar-split.json.gz") },
		"meta":        func(dir string) error { return os.Truncate(dir+"/meta.json", 0) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, _, err := unpack(t, data)
			if err != nil {
				t.Fatal(err)
			}
			if err := check(t, dir); err != nil {
				t.Fatalf("before: %v", err)
			}
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			if err := check(t, dir); !errors.Is(err, errs.DataLoss) {
				t.Errorf("check: %v, want class data loss", err)
			}
		})
	}
}

func check(t *testing.T, dir string) error {
	t.Helper()
	m, err := tree.Load(durable.OS, dir)
	if err != nil {
		return err
	}
	r, err := tree.OpenTar(durable.OS, dir, filepath.Join(dir, tree.FS), m)
	if err != nil {
		return err
	}
	r = tree.Verified(r, m.DiffID, m.TarSize)
	defer r.Close()
	return tree.Check(t.Context(), r, filepath.Join(dir, tree.FS), tarscan.Limits{})
}

// FuzzUnpack checks that any bytes result in a layer that can be rebuilt and verified, or in a refusal, and in nothing
// outside.
func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, "d d", "f d/f x", "l l d", "f l/g y", "h h d/f", "f .wh.q ", "f d/.wh..wh..opq "))
	f.Add(pack(f, "f a 1", "f a 22", "d a", "f a/b x", "h c lower"))
	f.Add(pack(f, "l a ../..", "f a/x y"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir, m, err := unpack(t, data)
		around, derr := os.ReadDir(filepath.Dir(dir))
		if derr != nil || len(around) > 1 {
			t.Fatalf("beside the layer: %v, %v", around, derr)
		}
		if err != nil {
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Precondition) {
				t.Errorf("refused with %v", err)
			}
			return
		}
		if got, err := rebuilt(t, dir, m); err != nil || !bytes.Equal(got, data) {
			t.Errorf("rebuilt tar: %v, differs: %v", err, !bytes.Equal(got, data))
		}
		if err := check(t, dir); err != nil {
			t.Errorf("check: %v", err)
		}
	})
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o644) }
