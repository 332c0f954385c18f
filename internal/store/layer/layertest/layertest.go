// Package layertest is the test suite of storage drivers. Every implementation of layer.Driver passes it. Its oracle is a
// simple reference that flattens the layers of an image.
//
// Run checks behaviour; RunFaults, RunDurability and RunVersions check what survives faults, power cuts and upgrades;
// RunBenchmarks measures speed; and RunTogether checks that several drivers make the same trees from the same random
// scripts. All need root, because they mount. RunTars is for drivers that store layers and mount nothing.
package layertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/durable"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// Open opens a driver on root, an existing directory that may contain what an earlier driver stored there. The suite closes
// the driver.
type Open func(t *testing.T, root string) layer.Driver

// group is a part of the suite.
type group struct {
	name string
	run  func(t *testing.T, open Open)
	mode bool // the result may depend on how a driver mounts
}

var groups = []group{
	{"apply", testApply, true},
	{"random", testRandomStacks, false},
	{"whiteout below a replaced directory", testWhiteoutBelowReplaced, false},
	{"deep", testDeep, true},
	{"hostile", func(t *testing.T, open Open) { testHostile(t, func(t *testing.T) *box { return newBox(t, open) }) }, false},
	{"commit", func(t *testing.T, open Open) { testCommit(t, func(t *testing.T) *box { return newBox(t, open) }) }, true},
	{"objects", func(t *testing.T, open Open) { testObjects(t, func(t *testing.T) *box { return newBox(t, open) }) }, true},
	{"reopen", testReopen, true},
	{"writable", testWritable, true},
	{"diff", testDiff, true},
	{"running", testRunning, true},
	{"init", testInit, true},
	{"script", func(t *testing.T, open Open) { testScripts(t, map[string]Open{"": open}) }, false},
}

// Run checks one driver, with a named subtest per behaviour.
func Run(t *testing.T, open Open) {
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) { g.run(t, open) })
	}
}

// RunMounts checks a further way of mounting of a driver that passes Run: everything in Run that may depend on it.
func RunMounts(t *testing.T, open Open) {
	for _, g := range groups {
		if g.mode {
			t.Run(g.name, func(t *testing.T) { g.run(t, open) })
		}
	}
}

// RunTars checks a driver that stores layers and mounts nothing: everything in Run that needs neither a view nor a
// writable.
func RunTars(t *testing.T, open Open) {
	unmounted := func(t *testing.T) *box {
		b := newBox(t, open)
		b.mounts = false
		return b
	}
	t.Run("hostile", func(t *testing.T) { testHostile(t, unmounted) })
	t.Run("commit", func(t *testing.T) { testCommit(t, unmounted) })
	t.Run("objects", func(t *testing.T) { testObjects(t, unmounted) })
}

// RunTogether runs the same random scripts on all drivers and checks that they make the same trees.
func RunTogether(t *testing.T, drivers map[string]Open) { testScripts(t, drivers) }

// box is a driver on a root of its own.
type box struct {
	layer.Driver
	root string // of the driver
	work string // for targets and writables
	open Open
	tars map[oci.DiffID][]byte
	n    int

	mounts bool // the driver can mount; set by RunTars to false
}

// checkView compares a view of chain with the reference. It does nothing for a driver that cannot mount.
func (b *box) checkView(t *testing.T, what string, chain oci.Chain, tars ...[]byte) {
	t.Helper()
	if !b.mounts {
		return
	}
	want, err := flatten(tars...)
	if err != nil {
		t.Fatalf("reference: %v", err)
	}
	checkTree(t, what, b.view(t, chain), want)
}

// runMounted runs a subtest that needs mounts.
func (b *box) runMounted(t *testing.T, name string, f func(t *testing.T)) {
	if b.mounts {
		t.Run(name, f)
	}
}

func newBox(t *testing.T, open Open) *box {
	t.Helper()
	base := t.TempDir()
	b := &box{root: filepath.Join(base, "driver"), work: filepath.Join(base, "work"), open: open, tars: map[oci.DiffID][]byte{}, mounts: true}
	for _, d := range []string{b.root, b.work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.Driver = open(t, b.root)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close driver: %v", err)
		}
	})
	return b
}

func (b *box) path(t testing.TB, prefix string) string {
	t.Helper()
	b.n++
	p := filepath.Join(b.work, prefix+time.Now().Format("150405.000000000"))
	if err := os.Mkdir(p, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// try commits data as a layer on parents.
func (b *box) try(t testing.TB, parents oci.Chain, data []byte) (layer.Info, error) {
	return tryIn(t.Context(), b.Driver, parents, data, diffID(data))
}

func tryIn(ctx context.Context, d layer.Driver, parents oci.Chain, data []byte, want oci.DiffID) (layer.Info, error) {
	w, err := d.Create(ctx)
	if err != nil {
		return layer.Info{}, err
	}
	// pieces of an odd size, because a writer need not receive whole blocks
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 10_007)
		if _, err := w.Write(rest[:n]); err != nil {
			return layer.Info{}, errors.Join(err, w.Abort())
		}
		rest = rest[n:]
	}
	info, err := w.Commit(ctx, parents, want)
	return info, errors.Join(err, w.Abort())
}

// put commits data as a layer on parents, which must succeed, and returns the longer chain.
func (b *box) put(t testing.TB, parents oci.Chain, data []byte) oci.Chain {
	t.Helper()
	info, err := b.try(t, parents, data)
	if err != nil {
		t.Fatalf("commit layer %d: %v", len(parents), err)
	}
	if want := diffID(data); info.DiffID != want {
		t.Fatalf("commit: Info.DiffID = %s, want %s", info.DiffID, want)
	}
	if info.TarSize != int64(len(data)) {
		t.Errorf("commit: Info.TarSize = %d, want %d", info.TarSize, len(data))
	}
	b.tars[info.DiffID] = data
	return append(parents[:len(parents):len(parents)], info.DiffID)
}

func (b *box) stack(t testing.TB, layers ...[]byte) oci.Chain {
	t.Helper()
	var chain oci.Chain
	for _, l := range layers {
		chain = b.put(t, chain, l)
	}
	return chain
}

func (b *box) view(t testing.TB, chain oci.Chain) string {
	t.Helper()
	target := b.path(t, "view")
	if err := b.View(t.Context(), chain, target); err != nil {
		t.Fatalf("view of %d layers: %v", len(chain), err)
	}
	t.Cleanup(func() { b.unmount(t, target) })
	return target
}

func (b *box) unmount(t testing.TB, target string) {
	t.Helper()
	if err := b.Unmount(context.WithoutCancel(t.Context()), target); err != nil {
		t.Errorf("unmount: %v", err)
	}
}

// rw is a mounted writable.
type rw struct {
	*box
	dir, target string
	chain       oci.Chain
}

func (b *box) writable(t testing.TB, chain oci.Chain, opts layer.MountOptions) *rw {
	t.Helper()
	w := &rw{box: b, dir: b.path(t, "rw"), target: b.path(t, "mnt"), chain: chain}
	if err := b.CreateWritable(t.Context(), w.dir, chain); err != nil {
		t.Fatalf("create writable: %v", err)
	}
	w.mount(t, opts)
	t.Cleanup(func() {
		b.unmount(t, w.target)
		if err := b.RemoveWritable(context.WithoutCancel(t.Context()), w.dir); err != nil {
			t.Errorf("remove writable: %v", err)
		}
	})
	return w
}

func (w *rw) mount(t testing.TB, opts layer.MountOptions) {
	t.Helper()
	if err := w.Mount(t.Context(), w.dir, w.chain, w.target, opts); err != nil {
		t.Fatalf("mount writable: %v", err)
	}
}

// at returns the path of a name that the test made.
func (w *rw) at(name string) string { return filepath.Join(w.target, name) }

func (w *rw) diff(t testing.TB) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := w.Diff(t.Context(), w.dir, w.chain, &buf); err != nil {
		t.Fatalf("diff: %v", err)
	}
	return buf.Bytes()
}

func (w *rw) changes(t testing.TB) []string {
	t.Helper()
	all, err := w.Changes(t.Context(), w.dir, w.chain)
	if err != nil {
		t.Fatalf("changes: %v", err)
	}
	var lines []string
	for _, c := range all {
		lines = append(lines, string("CAD"[c.Kind])+" "+c.Path)
	}
	return lines
}

func (b *box) tar(t testing.TB, chain oci.Chain) ([]byte, error) {
	t.Helper()
	r, err := b.Tar(t.Context(), chain)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// checkTars checks that every layer's tar is returned byte for byte and passes Verify.
func (b *box) checkTars(t testing.TB, chain oci.Chain) {
	t.Helper()
	for i := range chain {
		got, err := b.tar(t, chain[:i+1])
		if err != nil {
			t.Errorf("tar of layer %d: %v", i, err)
		} else if !bytes.Equal(got, b.tars[chain[i]]) {
			t.Errorf("tar of layer %d: %d bytes that differ from the %d given", i, len(got), len(b.tars[chain[i]]))
		}
		if err := b.Verify(t.Context(), chain[:i+1]); err != nil {
			t.Errorf("verify layer %d: %v", i, err)
		}
	}
}

// leftovers returns the temporaries below dir.
func leftovers(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(e.Name(), durable.TempPrefix) {
			found = append(found, strings.TrimPrefix(p, dir))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
