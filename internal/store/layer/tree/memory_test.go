package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/memory"
	"ply/internal/store/layer/tarscan"
)

// What an unpacker keeps of a layer until its end has a share of the memory: too many directories, whiteouts or links into lower
// layers are refused, and as many files in few directories are not.
func TestUnpackingIsBounded(t *testing.T) {
	for name, header := range map[string]func(i int) tar.Header{
		"directories":         func(i int) tar.Header { return tar.Header{Name: fmt.Sprintf("d%d/", i), Typeflag: tar.TypeDir} },
		"implied directories": func(i int) tar.Header { return tar.Header{Name: fmt.Sprintf("d%d/f", i), Typeflag: tar.TypeReg} },
		"whiteouts":           func(i int) tar.Header { return tar.Header{Name: fmt.Sprintf("d/.wh.%d", i), Typeflag: tar.TypeReg} },
		"links": func(i int) tar.Header {
			return tar.Header{Name: fmt.Sprintf("l%d", i), Linkname: "below", Typeflag: tar.TypeLink}
		},
		"files": func(i int) tar.Header { return tar.Header{Name: fmt.Sprintf("d/%d", i), Typeflag: tar.TypeReg} },
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for i := range 2000 {
				h := header(i)
				h.Mode = 0o755
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			root, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			rec, err := newRecipe(durable.OS, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			pool := memory.NewPool(128<<10, 256<<10)
			u := newUnpacker(durable.OS, filepath.Dir(dir), root, rec, pool)
			err = u.run(t.Context(), &b, tarscan.Limits{})
			if want := name != "files"; errors.Is(err, errs.Exhausted) != want || !want && err != nil {
				t.Errorf("2000 %s in 256 KiB: %v", name, err)
			}
			u.share.Close()
			if turn := pool.TryTurn(); turn == nil || !pool.Share().Fit(128<<10) {
				t.Error("the memory was not returned")
			}
		})
	}
}
