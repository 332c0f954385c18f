package erofs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

type entry struct {
	name string
	kind byte
	mode int64
	body string
	link string
}

func pack(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Linkname: e.link, Size: int64(len(e.body)), ModTime: time.Unix(1_000_000_000, 0)}
		if err := w.WriteHeader(h); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func open(tb testing.TB, root string, opts Options) *Driver {
	tb.Helper()
	d, err := Open(durable.OS, root, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

func commit(d *Driver, parents oci.Chain, data []byte) (oci.Chain, error) {
	w, err := d.Create(context.Background())
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	info, err := w.Commit(context.Background(), parents, oci.DiffID(oci.DigestOf(data)))
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return append(slices.Clone(parents), info.DiffID), nil
}

func put(tb testing.TB, d *Driver, parents oci.Chain, data []byte) oci.Chain {
	tb.Helper()
	c, err := commit(d, parents, data)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func view(tb testing.TB, d *Driver, chain oci.Chain) string {
	tb.Helper()
	target := tb.TempDir()
	if err := d.View(context.Background(), chain, target); err != nil {
		tb.Fatalf("view: %v", err)
	}
	tb.Cleanup(func() {
		if err := d.Unmount(context.Background(), target); err != nil {
			tb.Error(err)
		}
	})
	return target
}

func want(tb testing.TB, root, name, content string) {
	tb.Helper()
	got, err := os.ReadFile(filepath.Join(root, name))
	if err != nil || string(got) != content {
		tb.Errorf("%s = %.100q, %v; want %.100q", name, got, err, content)
	}
}

// A layer whose hard link and directories depend on the layers below looks right on each of its chains.
func TestLayerOnTwoChains(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, Options{})
	one := put(t, d, nil, pack(t, entry{name: "d/", kind: tar.TypeDir, mode: 0o700}, entry{name: "d/f", mode: 0o600, body: "one"}))
	two := put(t, d, nil, pack(t, entry{name: "d/", kind: tar.TypeDir, mode: 0o711}, entry{name: "d/f", mode: 0o644, body: strings.Repeat("two", 5000)}))
	top := pack(t, entry{name: "d/new", body: "x"}, entry{name: "l", kind: tar.TypeLink, link: "d/f"})
	if _, err := commit(d, nil, top); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "d/f") {
		t.Errorf("without the layer below: %v", err)
	}
	a := put(t, d, one, top)
	if _, err := d.Stat(t.Context(), append(slices.Clone(two), a.Top())); !errors.Is(err, errs.NotFound) {
		t.Errorf("Stat for a chain it was not committed on: %v", err)
	}
	if err := d.View(t.Context(), append(slices.Clone(two), a.Top()), t.TempDir()); !errors.Is(err, errs.NotFound) {
		t.Errorf("View on a chain it was not committed on: %v", err)
	}
	b := put(t, d, two, top)
	check := func(chain oci.Chain, body string, mode os.FileMode) {
		t.Helper()
		root := view(t, d, chain)
		want(t, root, "l", body)
		want(t, root, "d/f", body)
		want(t, root, "d/new", "x")
		st, err := os.Stat(filepath.Join(root, "d"))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("d has %v, %v; want %v", st.Mode(), err, mode)
		}
		if err := d.Verify(t.Context(), chain); err != nil {
			t.Error(err)
		}
	}
	check(a, "one", 0o700)
	check(b, strings.Repeat("two", 5000), 0o711)

	keys := d.Keys(a)
	if err := d.Remove(t.Context(), keys[len(keys)-2]); !errors.Is(err, errs.Conflict) {
		t.Errorf("remove of a mounted index: %v", err)
	}
	d2 := open(t, dir, Options{}) // does not know the mounts of d
	if err := d2.Remove(t.Context(), keys[len(keys)-2]); err != nil {
		t.Error(err)
	}
	if _, err := d2.Stat(t.Context(), a); !errors.Is(err, errs.NotFound) {
		t.Errorf("Stat after removal of the index: %v", err)
	}
	if _, err := d2.Stat(t.Context(), b); err != nil {
		t.Errorf("the other chain lost its index: %v", err)
	}
}

// The content of sparse files is kept in side data with holes, also when other content is copied up from below.
func TestSparseLayer(t *testing.T) {
	var buf bytes.Buffer
	// archive/tar does not write sparse files, so the PAX 1.0 headers are made here.
	w := tar.NewWriter(&buf)
	body := "1\n1048576\n3\n" + strings.Repeat("\x00", 500) + "end"
	h := &tar.Header{Name: "GNUSparseFile.0/s", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), Format: tar.FormatPAX,
		PAXRecords: map[string]string{"PLY.placeholder": "1"}}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, body)
	w.WriteHeader(&tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "below"})
	w.Close()
	data := sparsePAX(t, buf.Bytes())
	d := open(t, t.TempDir(), Options{})
	base := put(t, d, nil, pack(t, entry{name: "below", body: "from below", mode: 0o600}))
	chain := put(t, d, base, data)
	root := view(t, d, chain)
	want(t, root, "s", strings.Repeat("\x00", 1<<20)+"end")
	want(t, root, "l", "from below")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(d.layerDir(chain.Top()), sideName), &st); err != nil || st.Blocks*512 > 200<<10 {
		t.Errorf("side data takes %d bytes, %v; want it sparse", st.Blocks*512, err)
	}
	if err := d.Verify(t.Context(), chain); err != nil {
		t.Error(err)
	}
	if err := os.Truncate(filepath.Join(d.layerDir(chain.Top()), sideName), 5); err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(t.Context(), chain); !errors.Is(err, errs.DataLoss) {
		t.Errorf("verify with damaged side data: %v", err)
	}
}

// sparsePAX replaces the first extended header by one that makes the next file sparse.
func sparsePAX(t *testing.T, data []byte) []byte {
	t.Helper()
	if data[156] != 'x' {
		t.Fatal("no extended header")
	}
	var recs strings.Builder
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=s", "GNU.sparse.realsize=1048579"} {
		n := len(kv) + 4
		if n < 10 {
			t.Fatal("short record")
		}
		fmt.Fprintf(&recs, "%d %s\n", n, kv)
	}
	h := bytes.Clone(data[:512])
	copy(h[124:136], fmt.Sprintf("%011o\x00", recs.Len()))
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	body := make([]byte, 512)
	copy(body, recs.String())
	return slices.Concat(h, body, data[1024:])
}

// Overlayfs has no opaque root directory: the driver leaves out the layers below one.
func TestOpaqueRoot(t *testing.T) {
	d := open(t, t.TempDir(), Options{})
	chain := put(t, d, nil, pack(t, entry{name: "old", body: "1"}))
	chain = put(t, d, chain, pack(t, entry{name: ".wh..wh..opq"}, entry{name: "new", body: "2"}))
	chain = put(t, d, chain, pack(t, entry{name: "newer", body: "3"}))
	root := view(t, d, chain)
	names, err := os.ReadDir(root)
	if err != nil || len(names) != 2 {
		t.Errorf("root holds %v, %v; want new and newer", names, err)
	}
}

// Each attached layer has one mount point. After a kill the next driver removes them, and the views stay.
func TestAttachedLayers(t *testing.T) {
	root := t.TempDir()
	d := open(t, root, Options{Attached: true})
	chain := put(t, d, nil, pack(t, entry{name: "a", body: "1"}))
	chain = put(t, d, chain, pack(t, entry{name: "b", body: "2"}))
	target := t.TempDir()
	if err := d.View(t.Context(), chain, target); err != nil {
		t.Fatal(err)
	}
	want(t, target, "a", "1")
	points, _ := os.ReadDir(d.points)
	if len(points) != 2 {
		t.Errorf("%d mount points, want one per layer", len(points))
	}
	d2 := open(t, root, Options{}) // as after a kill of d
	if points, _ := os.ReadDir(d2.points); len(points) != 0 {
		t.Errorf("%d mount points after a new start", len(points))
	}
	want(t, target, "b", "2")
	if err := d.Unmount(t.Context(), target); err != nil {
		t.Error(err)
	}
}

func TestLayersAreMountedOnceAndDropped(t *testing.T) {
	d := open(t, t.TempDir(), Options{IdleMounts: 2})
	var chain oci.Chain
	for i := range 5 {
		chain = put(t, d, chain, pack(t, entry{name: fmt.Sprint(i), body: "x"}))
	}
	a, b := t.TempDir(), t.TempDir()
	for _, target := range []string{a, b} {
		if err := d.View(t.Context(), chain, target); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.View(t.Context(), chain, a); !errors.Is(err, errs.Conflict) {
		t.Errorf("a second mount on one target: %v", err)
	}
	if len(d.mounts) != 5 {
		t.Errorf("%d mounts for 5 layers", len(d.mounts))
	}
	for _, target := range []string{a, b} {
		if err := d.Unmount(t.Context(), target); err != nil {
			t.Error(err)
		}
	}
	if len(d.mounts) != 5 || len(d.idle) != 5 {
		t.Errorf("%d mounts and %d idle ones stay, want the chain that was used last", len(d.mounts), len(d.idle))
	}
	if err := errors.Join(d.View(t.Context(), chain[:1], a), d.Unmount(t.Context(), a)); err != nil {
		t.Error(err)
	}
	if len(d.mounts) != 2 || len(d.idle) != 2 {
		t.Errorf("%d mounts and %d idle ones stay, want 2", len(d.mounts), len(d.idle))
	}
}

func TestParallelCommitsAndViews(t *testing.T) {
	d := open(t, t.TempDir(), Options{IdleMounts: -1})
	base := pack(t, entry{name: "d/", kind: tar.TypeDir, mode: 0o700}, entry{name: "d/f", body: strings.Repeat("b", 3<<20)})
	top := pack(t, entry{name: "l", kind: tar.TypeLink, link: "d/f"}, entry{name: "d/g", body: "x"})
	var wg sync.WaitGroup
	fail := make(chan error, 64)
	for range 8 {
		target := t.TempDir()
		wg.Go(func() {
			chain, err := commit(d, nil, base)
			if err == nil {
				chain, err = commit(d, chain, top)
			}
			if err == nil {
				err = d.View(context.Background(), chain, target)
			}
			if err == nil {
				var got []byte
				if got, err = os.ReadFile(filepath.Join(target, "l")); err == nil && len(got) != 3<<20 {
					err = fmt.Errorf("read %d bytes", len(got))
				}
				err = errors.Join(err, d.Unmount(context.Background(), target))
			}
			if err != nil {
				fail <- err
			}
		})
	}
	wg.Wait()
	close(fail)
	for err := range fail {
		t.Error(err)
	}
	if left, _ := os.ReadDir(d.layers); len(left) != 2 {
		t.Errorf("store holds %v, want two layers", left)
	}
}

// The free space that layers must leave is checked before and while a layer is written.
func TestReserve(t *testing.T) {
	d := open(t, t.TempDir(), Options{Reserve: 1 << 60})
	if _, err := d.Create(t.Context()); !errors.Is(err, errs.Exhausted) {
		t.Errorf("Create without room: %v, want class resource exhausted", err)
	}
}

func TestProbe(t *testing.T) {
	if ok, why := Probe(filepath.Join(t.TempDir(), "new")); !ok {
		t.Errorf("Probe on a plain directory: %s", why)
	}
	dir := t.TempDir()
	if err := unix.Mount("ply-test", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	ok, why := Probe(dir)
	t.Logf("tmpfs: %v %s", ok, why)
	if !ok && !strings.Contains(why, "tmpfs") {
		t.Errorf("Probe on tmpfs says %q", why)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("Probe left %v", left)
	}
}

func TestWriterRefusesUseAfterEnd(t *testing.T) {
	d := open(t, t.TempDir(), Options{})
	w, err := d.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	data := pack(t, entry{name: "a"})
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context(), nil, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err == nil {
		t.Error("write after commit passed")
	}
	if _, err := w.Commit(t.Context(), nil, ""); err == nil {
		t.Error("second commit passed")
	}
}

var _ layer.Driver = (*Driver)(nil)

// Programs such as find -xdev, du and tar compare st_dev and st_ino: a root is one device, different files have different
// inode numbers, and hard links have the same one.
func TestRootIsOneDevice(t *testing.T) {
	d := open(t, t.TempDir(), Options{})
	var chain oci.Chain
	for i := range 20 {
		chain = put(t, d, chain, pack(t, entry{name: fmt.Sprintf("d%d/f", i), body: "x"}, entry{name: fmt.Sprintf("d%d/l", i), kind: tar.TypeLink, link: fmt.Sprintf("d%d/f", i)}))
	}
	dir, target := t.TempDir(), t.TempDir()
	if err := d.CreateWritable(t.Context(), dir, chain); err != nil {
		t.Fatal(err)
	}
	if err := d.Mount(t.Context(), dir, chain, target, layer.MountOptions{}); err != nil {
		t.Fatal(err)
	}
	defer d.Unmount(context.Background(), target)
	want(t, target, "d3/f", "x")
	if err := os.WriteFile(filepath.Join(target, "own"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var root unix.Stat_t
	if err := unix.Lstat(target, &root); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]string{}
	err := filepath.WalkDir(target, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if st.Dev != root.Dev {
			t.Errorf("%s is on device %x, the root on %x", p, st.Dev, root.Dev)
		}
		if old, ok := seen[st.Ino]; ok && !(strings.HasSuffix(p, "/l") && old == strings.TrimSuffix(p, "l")+"f") {
			t.Errorf("%s and %s have inode %d", p, old, st.Ino)
		}
		seen[st.Ino] = p
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
