package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// shape is one image of the registry. Its layers have the same content on every run.
type shape struct {
	name string // below bench/ in the registry, and of the OCI layout in the cache
	what string
}

// The shapes that pull is measured on. All are made of the same packages.
var (
	six  = shape{"big", "6 layers"}
	many = shape{"many", "40 layers of 5 MB"}
	one  = shape{"one", "one layer of 440 MB and three of 5 MB"}
)

var shapes = []shape{six, many, one}

const (
	manyLayers = 40
	manySize   = 5 << 20
)

func (s shape) ref() string { return "bench/" + s.name + ":1" }

// makeShapes writes the layouts of many and one, from the layers of six.
func makeShapes(cache string) error {
	dir := func(s shape) string { return filepath.Join(cache, "oci-"+s.name) }
	if _, err := os.Stat(filepath.Join(dir(one), "index.json")); err == nil {
		return nil
	}
	slices := filepath.Join(cache, "slices")
	if err := errors.Join(os.RemoveAll(slices), os.MkdirAll(slices, 0o755), os.RemoveAll(dir(many)), os.RemoveAll(dir(one))); err != nil {
		return err
	}
	tars, err := sliceTar(filepath.Join(cache, "layers", "4.tar"), slices)
	if err != nil {
		return err
	}
	if err := writeLayout(dir(many), tars); err != nil {
		return err
	}
	return writeLayout(dir(one), append([]string{filepath.Join(cache, "layers", "2.tar")}, tars[:3]...))
}

// sliceTar writes the regular files and links of a tar into tars of about manySize bytes, each with the directories that it needs.
func sliceTar(name, dir string) (made []string, err error) {
	in, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	dirs := map[string]*tar.Header{}
	var out *os.File
	var w *tar.Writer
	var has map[string]bool
	finish := func() error {
		if w == nil {
			return nil
		}
		err := errors.Join(w.Close(), out.Close())
		w = nil
		return err
	}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeDir {
			dirs[path.Clean(h.Name)] = h
			continue
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeSymlink {
			continue
		}
		if w == nil {
			if len(made) == manyLayers {
				break
			}
			if out, err = os.Create(filepath.Join(dir, fmt.Sprintf("%d.tar", len(made)))); err != nil {
				return nil, err
			}
			w, has = tar.NewWriter(out), map[string]bool{}
			made = append(made, out.Name())
		}
		elems := strings.Split(path.Dir(path.Clean(h.Name)), "/")
		for i := range elems {
			d := strings.Join(elems[:i+1], "/")
			if parent := dirs[d]; parent != nil && !has[d] {
				has[d] = true
				if err := w.WriteHeader(parent); err != nil {
					return nil, err
				}
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.Copy(w, r); err != nil {
			return nil, err
		}
		if at, err := out.Seek(0, io.SeekCurrent); err != nil {
			return nil, err
		} else if at >= manySize {
			if err := finish(); err != nil {
				return nil, err
			}
		}
	}
	if err := finish(); err != nil {
		return nil, err
	}
	if len(made) < manyLayers {
		return nil, fmt.Errorf("%s is enough for %d layers only", name, len(made))
	}
	return made, nil
}
