package export

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/build/tree"
)

// treeOf makes a directory; a name that ends in a slash is a directory, "a->b" a link.
func treeOf(t *testing.T, names string) *tree.Tree {
	t.Helper()
	dir := t.TempDir()
	for n := range strings.FieldsSeq(names) {
		link, target, isLink := strings.Cut(n, "->")
		p := filepath.Join(dir, link)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		switch {
		case isLink:
			err = errors.Join(err, os.Symlink(target, p))
		case strings.HasSuffix(n, "/"):
			err = errors.Join(err, os.MkdirAll(p, 0o755))
		default:
			err = errors.Join(err, os.WriteFile(p, []byte(n), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	tr, err := tree.New(root, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func tarOf(t *testing.T, names string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n := range strings.FieldsSeq(names) {
		h := &tar.Header{Name: n, Mode: 0o644, ModTime: time.Unix(5, 0)}
		if strings.HasSuffix(n, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestSquashLayers(t *testing.T) {
	for _, tt := range []struct {
		name, below, above string
		layers             []string
		want               string
	}{
		{"added", "x", "x a", []string{"a"}, "a"},
		{"added and removed", "x", "x", []string{"a", ".wh.a"}, ""},
		{"removed", "x d/y", "", []string{".wh.x", ".wh.d"}, ".wh.d .wh.x"},
		{"removed in a directory", "d/x d/y", "d/y", []string{"d/ d/.wh.x"}, "d/ d/.wh.x"},
		{"removed and made again", "d/x", "d/z", []string{".wh.d", "d/ d/z"}, "d/ d/.wh..wh..opq d/z"},
		{"opaque", "d/x d/y", "d/y", []string{"d/ d/.wh..wh..opq d/y"}, "d/ d/.wh..wh..opq d/y"},
		{"opaque without its directory", "d/x", "d/z", []string{"d/.wh..wh..opq d/z"}, "d/ d/.wh..wh..opq d/z"},
		{"opaque below opaque", "d/e/x", "d/e/z", []string{".wh.d", "d/ d/e/ d/e/z", "d/e/.wh..wh..opq d/e/z"}, "d/ d/.wh..wh..opq d/e/ d/e/z"},
		{"directory becomes file", "d/x", "d", []string{"d"}, "d"},
		{"file becomes directory", "f", "f/x", []string{"f/ f/x"}, "f/ f/x"},
		{"directory, file, directory", "d/x", "d/y", []string{"d", ".wh.d d/ d/y"}, "d/ d/.wh..wh..opq d/y"},
		{"link over directory", "d/x", "d->e", []string{"d"}, "d"},
		{"nothing below", "", "a d/b", []string{"a d/ d/b d/c", "d/.wh.c"}, "a d/ d/b"},
		{"all of below", "x y", "z", []string{".wh..wh..opq z"}, ".wh..wh..opq z"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var layers []io.Reader
			for _, l := range tt.layers {
				layers = append(layers, tarOf(t, l))
			}
			var below *tree.Tree
			if tt.below != "" {
				below = treeOf(t, tt.below)
			}
			var b bytes.Buffer
			latest := time.Unix(1000, 0)
			if err := Squash(t.Context(), below, treeOf(t, tt.above), layers, latest, &b); err != nil {
				t.Fatal(err)
			}
			var got []string
			for r := tar.NewReader(&b); ; {
				h, err := r.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, h.Name)
				if h.ModTime.After(latest) {
					t.Errorf("%s has the time %v", h.Name, h.ModTime)
				}
			}
			slices.Sort(got)
			want := strings.Fields(tt.want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
