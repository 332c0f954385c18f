package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file without a name can be written and read, and leaves nothing in its directory, whether the file system knows such files or not.
func TestNameless(t *testing.T) {
	for kind, open := range map[string]func(string) (*os.File, error){"never named": Nameless, "unlinked": unnamed} {
		dir := t.TempDir()
		f, err := open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
			t.Errorf("%s: the directory has %v, %v", kind, names, err)
		}
		if _, err := f.WriteString("text"); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(io.NewSectionReader(f, 0, 10)); string(b) != "text" || err != nil {
			t.Errorf("%s: %q, %v", kind, b, err)
		}
		if st, err := f.Stat(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", kind, st.Mode(), err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := open(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "absent") {
			t.Errorf("%s: in a directory that is not there: %v", kind, err)
		}
	}
}
