package lint

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// largest is how long a file of the project may be, in bytes.
const largest = 512 << 10

// The tree has sources and small files for tests: a program that was built into it, or a large file, would stay in the history for ever.
func TestNothingLargeOrBuilt(t *testing.T) {
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // of another test
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() && (rel == ".git" || rel == "bin") {
			return fs.SkipDir
		}
		ext := filepath.Ext(path)
		if !d.Type().IsRegular() || ext == ".test" || ext == ".out" || rel == ".git" { // what .gitignore has
			return nil
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		head := make([]byte, 4)
		if _, err := io.ReadFull(f, head); err == nil && bytes.Equal(head, []byte("\x7fELF")) {
			t.Errorf("%s is a program", rel)
		}
		if st, err := f.Stat(); err != nil || st.Size() > largest {
			t.Errorf("%s is larger than %d KiB, or %v", rel, largest>>10, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
