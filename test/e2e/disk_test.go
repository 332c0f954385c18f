package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// drawn reads the code blocks of docs/DISK.md: the paths of the data root, then those of the exec root.
func drawn(t *testing.T) (roots [2][]*regexp.Regexp) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "DISK.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(doc), "```\n")
	if len(blocks) != 7 { // data root, exec root, fields
		t.Fatalf("docs/DISK.md has %d code fences, want 6", len(blocks)-1)
	}
	for i, block := range []string{blocks[1], blocks[3]} {
		for line := range strings.Lines(block) {
			path, _, _ := strings.Cut(strings.TrimRight(line, "\n"), "  ")
			p := regexp.QuoteMeta(path)
			p = strings.NewReplacer("<hex>", "[0-9a-f]{64}", "<short>", "[0-9a-f]{12}", "<name>", "[a-zA-Z0-9_.-]+", "/…", "(/.*)?").Replace(p)
			roots[i] = append(roots[i], regexp.MustCompile("^"+p+"$"))
		}
	}
	return roots
}

func TestDiskDrawing(t *testing.T) {
	roots := drawn(t)
	for _, driver := range []string{"erofs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			w := newWorld(t, "--storage-driver", driver)
			w.busybox()
			w.ply("run", "--rm", "-v", "vol:/v", "busybox", "mkdir", "/v/sub")
			w.ply("run", "-d", "--name", "c1", "-v", "vol:/v", "--mount", "type=volume,src=vol,dst=/w,volume-subpath=sub", "busybox", "sleep", "100")
			w.ply("commit", "c1", "x:1")
			w.ply("run", "--name", "c2", "busybox", "true")
			for i, root := range []string{"data", "run"} {
				checkDrawn(t, filepath.Join(w.dir, root), roots[i])
			}
		})
	}
}

func checkDrawn(t *testing.T, root string, patterns []*regexp.Regexp) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		for _, p := range patterns {
			if p.MatchString(rel) {
				if d.IsDir() && (filepath.Base(path) == "rootfs" || filepath.Base(path) == "fs" || filepath.Base(path) == "upper") {
					return fs.SkipDir
				}
				return nil
			}
		}
		if d.IsDir() || strings.HasPrefix(d.Name(), ".tmp-") {
			return nil // only what holds data is drawn, and a sentence says what temporaries are called
		}
		t.Errorf("%s is not drawn in docs/DISK.md", rel)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
