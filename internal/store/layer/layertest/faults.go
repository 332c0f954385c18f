package layertest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// RunFaults makes a stack of layers and a writable again and again, and each time lets another file-system operation of
// the driver fail: once with an error, and once as if the process ended there. Afterwards a driver on the same root must
// start, have complete layers or none, leave no temporaries, and accept the same layers again.
func RunFaults(t *testing.T, open func(fsys durable.FS, root string) (layer.Driver, error)) {
	tars := stackTars(t)
	for _, dead := range []bool{false, true} {
		t.Run(map[bool]string{false: "error", true: "death"}[dead], func(t *testing.T) {
			for n := 1; ; n++ {
				if n > 500 {
					t.Fatal("the operation never gets through")
				}
				if done := faultAt(t, open, tars, n, dead); done {
					t.Logf("%d operations", n-1)
					return
				}
			}
		})
	}
}

// stackTars returns two layers. The second depends on the first in every way in which a layer can.
func stackTars(t *testing.T) [][]byte {
	return [][]byte{
		makeTar(t, dir("a").chmod(0o700), file("a/f", noise(30, 20_000)), file("a/f", "again")),
		makeTar(t, file("a/g", "x"), hardlink("l", "a/f"), file("b/.wh.x", "")),
	}
}

// commitAll commits layers on top of each other.
func commitAll(t *testing.T, d layer.Driver, tars [][]byte) (chain oci.Chain, err error) {
	for _, data := range tars {
		info, err := tryIn(t.Context(), d, chain, data, diffID(data))
		if err != nil {
			return nil, err
		}
		chain = append(chain, info.DiffID)
	}
	return chain, nil
}

// faultAt runs the sequence with operation n failing. Done is true when the sequence has fewer operations.
func faultAt(t *testing.T, open func(fsys durable.FS, root string) (layer.Driver, error), tars [][]byte, n int, dead bool) (done bool) {
	t.Helper()
	base := t.TempDir()
	root, dir := filepath.Join(base, "driver"), filepath.Join(base, "rw")
	must(t, os.Mkdir(root, 0o755))
	must(t, os.Mkdir(dir, 0o755))
	defer os.RemoveAll(base) // now, so that the runs do not add up
	ops, what := 0, ""
	fsys := &faultfs.FS{Under: durable.OS, FailAt: n, Forever: dead, Short: true, Trace: func(op string) {
		if ops++; ops == n {
			what = op
		}
	}}
	sequence := func(fsys durable.FS) error {
		d, err := open(fsys, root)
		if err != nil {
			return err
		}
		chain, err := commitAll(t, d, tars)
		if err == nil {
			err = d.CreateWritable(t.Context(), dir, chain)
		}
		return errors.Join(err, d.Close())
	}
	err := sequence(fsys)
	if !fsys.Hit() {
		must(t, err)
		return true
	}
	if left := leftovers(t, root); !dead && len(left) > 0 && !strings.HasPrefix(strings.ToLower(what), "remove") {
		t.Errorf("operation %d (%s) failing leaves %q", n, what, left)
	}
	if err == nil && dead {
		t.Errorf("operation %d (%s): all later operations failed, and no error was returned", n, what)
	}
	d, err := open(durable.OS, root)
	if err != nil {
		t.Errorf("operation %d (%s): opening again: %v", n, what, err)
		return false
	}
	if left := leftovers(t, root); len(left) > 0 {
		t.Errorf("operation %d (%s): opening again leaves %q", n, what, left)
	}
	var chain oci.Chain
	for _, data := range tars {
		chain = append(chain, diffID(data))
		_, err := d.Stat(t.Context(), chain)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err == nil {
			err = d.Verify(t.Context(), chain)
		}
		if err != nil {
			t.Errorf("operation %d (%s): layer %d is there, but %v", n, what, len(chain)-1, err)
		}
	}
	must(t, d.RemoveWritable(t.Context(), dir))
	must(t, d.Close())
	if err := sequence(durable.OS); err != nil {
		t.Errorf("operation %d (%s): second try: %v", n, what, err)
	}
	return false
}
