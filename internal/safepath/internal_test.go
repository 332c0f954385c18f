package safepath

import (
	"os"
	"path/filepath"
	"testing"
)

// A directory on the way that has been replaced by a link since it was looked up does not lead out of the root.
func TestMkdirOneFollowsLinksInsideTheRoot(t *testing.T) {
	base := t.TempDir()
	outside, path := filepath.Join(base, "outside"), filepath.Join(base, "root")
	for _, d := range []string{outside, filepath.Join(path, outside)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(path, "replaced")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, made, err := mkdirOne(root, "replaced", "new", 0o755); err != nil || !made {
		t.Errorf("mkdirOne = %v, %v", made, err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside the root: %v, %v", left, err)
	}
}
