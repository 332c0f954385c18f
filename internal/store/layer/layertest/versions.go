package layertest

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/store/layer"
)

// RunVersions checks what a driver does with the records of other releases. Each of its JSON files, when a newer release
// wrote it, stops Open before anything is changed. Files without a writer, as builds before the first release wrote them,
// are read.
func RunVersions(t *testing.T, open func(fsys durable.FS, root string) (layer.Driver, error)) {
	root := t.TempDir()
	d, err := open(durable.OS, root)
	must(t, err)
	b := &box{Driver: d}
	chain, err := commitAll(t, d, stackTars(t))
	must(t, err)
	must(t, d.Close())
	// Open removes it, unless it refuses the root.
	must(t, os.Mkdir(durable.TempName(filepath.Join(root, "layers", "sha256")), 0o700))

	records := 0
	for name, data := range jsonFiles(t, root) {
		records++
		newer := regexp.MustCompile(`^\{"version":1,"writer":"[^"]*"`).ReplaceAll(data, []byte(`{"version":2,"writer":"9.8.7"`))
		if bytes.Equal(newer, data) {
			t.Errorf("%s does not start with its version and its writer: %.100s", name, data)
		}
		must(t, os.WriteFile(name, newer, 0o600))
		before := listing(t, root)
		fsys := &faultfs.FS{Under: durable.OS}
		_, err := open(fsys, root)
		if !errors.Is(err, errs.Precondition) || !strings.Contains(err.Error(), "ply 9.8.7") || !strings.Contains(err.Error(), filepath.Base(name)) {
			t.Errorf("%s is newer: open = %v; want class Precondition, the file and its writer", name, err)
		}
		if after := listing(t, root); after != before || fsys.Count() != 0 {
			t.Errorf("%s is newer: open made %d changes, from\n%s\nto\n%s", name, fsys.Count(), before, after)
		}
		must(t, os.WriteFile(name, data, 0o600))
	}
	if records < len(chain) {
		t.Errorf("only %d records of %d layers", records, len(chain))
	}

	for name, data := range jsonFiles(t, root) {
		must(t, os.WriteFile(name, regexp.MustCompile(`"writer":"[^"]*",?`).ReplaceAll(data, nil), 0o600))
	}
	b.Driver, err = open(durable.OS, root)
	must(t, err)
	for i := range chain {
		if _, err := b.Stat(t.Context(), chain[:i+1]); err != nil {
			t.Errorf("layer %d of an earlier build: %v", i, err)
		}
		if err := b.Verify(t.Context(), chain[:i+1]); err != nil {
			t.Errorf("layer %d of an earlier build: %v", i, err)
		}
	}
	must(t, b.Close())
}

// jsonFiles returns the records below root.
func jsonFiles(t *testing.T, root string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	must(t, filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".json") {
			files[p], err = os.ReadFile(p)
		}
		return err
	}))
	return files
}

// listing lists all names below root with their modification times.
func listing(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			all.WriteString(strings.TrimPrefix(p, root) + " " + info.ModTime().String() + "\n")
		}
		return err
	}))
	return all.String()
}
