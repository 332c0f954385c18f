// Package treetest makes directories with files for tests of what reads them.
package treetest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Dir makes a directory with files and opens it: "d/" is a directory, "a -> b" a symbolic link, "a == b" another name of the file b, and "a = text" a file, whose
// directories are made too.
func Dir(t testing.TB, files ...string) *os.File {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, f := range files {
		var err error
		if name, target, ok := strings.Cut(f, " -> "); ok {
			err = os.Symlink(target, at(name))
		} else if name, first, ok := strings.Cut(f, " == "); ok {
			err = os.Link(at(first), at(name))
		} else if name, text, ok := strings.Cut(f, " = "); ok {
			err = errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o755), os.WriteFile(at(name), []byte(text), 0o644))
		} else {
			err = os.MkdirAll(at(f), 0o755)
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
	return root
}
