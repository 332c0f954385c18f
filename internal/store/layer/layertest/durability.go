package layertest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/durable/powercut"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// RunDurability checks that what a driver acknowledges survives a power cut: by the order of its file-system operations, and
// by cutting the power of a disk.
func RunDurability(t *testing.T, open func(fsys durable.FS, root string) (layer.Driver, error)) {
	t.Run("order", func(t *testing.T) { testOrder(t, open) })
	for _, kind := range powercut.Kinds {
		t.Run("power cut on "+string(kind), func(t *testing.T) { testPowerCut(t, kind, open) })
	}
}

func testOrder(t *testing.T, open func(fsys durable.FS, root string) (layer.Driver, error)) {
	root, rw := t.TempDir(), t.TempDir()
	step := ""
	order := &faultfs.Order{Under: durable.OS, Report: func(problem string) { t.Errorf("%s: %s", step, problem) }}
	var ops []string
	fsys := &faultfs.FS{Under: order, Trace: func(op string) { ops = append(ops, op) }}
	d, err := open(fsys, root)
	must(t, err)
	defer func() { must(t, d.Close()) }()
	tars := stackTars(t)
	other := makeTar(t, dir("a").chmod(0o711), file("a/f", "other"))
	put := func(chain oci.Chain, data []byte) oci.Chain {
		t.Helper()
		ops = nil
		info, err := tryIn(t.Context(), d, chain, data, diffID(data))
		must(t, err)
		for _, u := range order.Unsynced() {
			t.Errorf("%s: not durable when Commit has returned: %s", step, u)
		}
		checkTreesAreSynced(t, step, ops)
		return append(slices.Clone(chain), info.DiffID)
	}
	step = "layer"
	low := put(nil, tars[0])
	step = "layer that depends on the one below"
	chain := put(low, tars[1])
	step = "the same layer on another one"
	put(put(nil, other), tars[1])
	step = "writable"
	ops = nil
	must(t, d.CreateWritable(t.Context(), rw, chain))
	for _, u := range order.Unsynced() {
		t.Errorf("%s: not durable when CreateWritable has returned: %s", step, u)
	}
	if i := slices.Index(ops, "mkdir "+filepath.Join(rw, "fs")); i >= 0 && !slices.ContainsFunc(ops[i:], isSyncFS) {
		t.Errorf("%s: CreateWritable returns before the copy of the image is synced", step)
	}
	step = "layer that replaces a damaged one"
	must(t, damageAll(filepath.Join(root, "layers", "sha256")))
	put(nil, tars[0])
}

func isSyncFS(op string) bool { return strings.HasPrefix(op, "syncfs ") }

// damageAll cuts all large files below dir in half.
func damageAll(dir string) error {
	return filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if info, err := e.Info(); err == nil && info.Size() > 8000 {
			return os.Truncate(p, info.Size()/2)
		}
		return nil
	})
}

// checkTreesAreSynced checks that a temporary directory into which a tree was unpacked gets its final name only after the
// whole file system was synced. Trees are unpacked without the durable.FS, so faultfs.Order does not see their files.
func checkTreesAreSynced(t *testing.T, step string, ops []string) {
	t.Helper()
	unpacked := false
	for _, op := range ops {
		what, path, _ := strings.Cut(op, " ")
		switch {
		case what == "mkdir" && filepath.Base(path) == "fs":
			unpacked = true
		case what == "syncfs":
			unpacked = false
		case what == "rename" && filepath.Base(filepath.Dir(path)) == "sha256" && !durable.IsTemp(filepath.Base(path)) && unpacked:
			t.Errorf("%s: %s gets its name before its tree is synced", step, path)
		}
	}
}

// testPowerCut cuts the power at different moments. A layer whose Commit returned is there afterwards; one that was being
// committed is there completely or not at all; a writable that was created is there and has no changes; and the driver opens.
func testPowerCut(t *testing.T, kind powercut.Kind, open func(fsys durable.FS, root string) (layer.Driver, error)) {
	disk := powercut.New(t, kind)
	var acknowledged, all []oci.Chain
	writables := map[string]oci.Chain{}
	check := func(d layer.Driver) {
		t.Helper()
		for _, c := range acknowledged {
			must(t, d.Verify(t.Context(), c))
		}
		for dir, c := range writables {
			if changes, err := d.Changes(t.Context(), dir, c); err != nil || len(changes) > 0 {
				t.Fatalf("%s: changes %v, %v", dir, changes, err)
			}
		}
		for _, c := range all {
			if _, err := d.Stat(t.Context(), c); errors.Is(err, errs.NotFound) {
				continue
			}
			must(t, d.Verify(t.Context(), c))
		}
	}
	for i := range 6 {
		d, err := open(durable.OS, disk.Dir)
		if err != nil {
			t.Fatalf("cut %d: open: %v", i, err)
		}
		check(d)
		chain, err := commitAll(t, d, [][]byte{
			makeTar(t, dir("d"), file("d/f", noise(uint64(i), 300_000))),
			makeTar(t, hardlink("l", "d/f"), file("d/g", fmt.Sprint(i))),
		})
		must(t, err)
		acknowledged = append(acknowledged, chain[:1], chain)
		rw := filepath.Join(disk.Dir, fmt.Sprint("rw", i))
		must(t, durable.OS.Mkdir(rw, 0o700))
		must(t, durable.OS.SyncDir(disk.Dir))
		must(t, d.CreateWritable(t.Context(), rw, chain))
		writables[rw] = chain
		unacknowledged := makeTar(t, file("u", noise(uint64(100+i), 400_000)))
		all = append(all, oci.Chain{diffID(unacknowledged)})
		done := make(chan error, 1)
		go func() {
			_, err := tryIn(t.Context(), d, nil, unacknowledged, diffID(unacknowledged))
			done <- err
		}()
		time.Sleep(time.Duration(i) * time.Millisecond) // the moment of the cut; nothing is waited for
		how := kind.Cuts()[i%len(kind.Cuts())]
		disk.Cut(how)
		if err := <-done; err == nil && how != powercut.Snapshot { // after a snapshot, the disk works on
			acknowledged = append(acknowledged, oci.Chain{diffID(unacknowledged)})
		}
		_ = d.Close() // the disk is gone
		disk.Restart()
	}
	d, err := open(durable.OS, disk.Dir)
	must(t, err)
	check(d)
	must(t, d.Close())
}
