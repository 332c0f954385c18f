package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/layer/overlay2"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

var drivers = map[string]func(root string) (layer.Driver, error){
	"erofs":    func(root string) (layer.Driver, error) { return erofs.Open(durable.OS, root, erofs.Options{}) },
	"overlay2": func(root string) (layer.Driver, error) { return overlay2.Open(durable.OS, root, overlay2.Options{}) },
}

func onDriver(t *testing.T, open func(string) (layer.Driver, error)) side {
	t.Helper()
	root := t.TempDir()
	d, err := open(root)
	if err != nil {
		t.Fatal(err)
	}
	f := imagetest.On(t, root, d)
	return side{f, archive.New(f.Store, f.Images, archive.Options{})}
}

func (s side) loadOn(t *testing.T, data []byte) (lines []string, err error) {
	t.Helper()
	err = s.Load(t.Context(), bytes.NewReader(data), transfer.LoadOptions{Quiet: true}, func(p transfer.Progress) { lines = append(lines, line(p)) })
	return lines, err
}

// rich is a layer with links, whiteouts, modes, owners, times and long names.
func rich(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	at := time.Unix(1_500_000_000, 0)
	long := strings.Repeat("long", 50)
	for _, h := range []*tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/shadow", Typeflag: tar.TypeReg, Mode: 0o640, Gid: 42, Size: 5},
		{Name: "etc/link", Typeflag: tar.TypeSymlink, Linkname: "../../../shadow"},
		{Name: "etc/hard", Typeflag: tar.TypeLink, Linkname: "etc/shadow"},
		{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 5, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		{Name: long + "/" + long, Typeflag: tar.TypeReg, Mode: 0o600, Uid: 1 << 22, Size: 5},
		{Name: "b/.wh.x", Typeflag: tar.TypeReg},
		{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
	} {
		h.ModTime = at
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("hello")[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Load, save, import and removal work byte for byte with every storage driver.
func TestOnDrivers(t *testing.T) {
	from := newSide(t, archive.Options{})
	four(t, from)
	base := from.image(t, "ubuntu:14.04").ID
	from.Image(imagetest.Spec{Name: "rich", Parent: base, Layers: [][]byte{rich(t)}, Hours: 2})
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			d := onDriver(t, open)
			for _, format := range []string{"legacy", "docker", "oci", "hybrid"} {
				if _, err := d.loadOn(t, from.save(t, format, "rich", "base:1")); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(from.image(t, "rich").Raw, d.image(t, "rich").Raw); diff != "" {
				t.Error(diff)
			}
			for _, format := range []string{"hybrid", "docker", "oci", "legacy"} {
				if !bytes.Equal(from.save(t, format, "rich", "base:1"), d.save(t, format, "rich", "base:1")) {
					t.Errorf("%s: saved bytes differ", format)
				}
			}
			target := t.TempDir()
			if err := d.Store.Layers.View(t.Context(), d.image(t, "rich").Chain, target); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(target + "/etc/hard"); err != nil || string(b) != "hello" {
				t.Errorf("etc/hard: %q %v", b, err)
			}
			if err := d.Store.Layers.Unmount(t.Context(), target); err != nil {
				t.Fatal(err)
			}
			list, err := d.Images.List(t.Context(), image.ListOptions{All: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, img := range list {
				if _, err := d.Images.Remove(t.Context(), string(img.ID), image.RemoveOptions{Force: true}); err != nil && !errors.Is(err, errs.NotFound) {
					t.Fatal(err)
				}
			}
			noLayers(t, d)
		})
	}
}

// noLayers checks that the driver has no layers.
func noLayers(t *testing.T, s side) {
	t.Helper()
	err := s.Store.Layers.Walk(t.Context(), func(k layer.Key, _ time.Time) error {
		t.Errorf("layer %s is still there", k)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = filepath.WalkDir(s.Store.Root, func(p string, e os.DirEntry, err error) error {
		if err == nil && strings.Contains(p, durable.TempPrefix) {
			t.Errorf("temporary %s", p)
		}
		return nil
	})
}

// No driver may unpack the layer. Load and import refuse it and leave nothing in the store.
func TestHostileLayerOnDrivers(t *testing.T) {
	evil := imagetest.Tar(t, "ok", strings.Repeat("x", 50_000), "../evil", "x")
	s := newSide(t, archive.Options{})
	four(t, s)
	doc := parse(t, s.save(t, "docker", "ubuntu:14.04"))
	swapLayer(doc, evil)
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			d := onDriver(t, open)
			if _, err := d.loadOn(t, doc.bytes()); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "evil") {
				t.Errorf("load: %v", err)
			}
			if _, err := d.Import(t.Context(), transfer.ImportOptions{Source: bytes.NewReader(evil)}, transfer.Discard); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "evil") {
				t.Errorf("import: %v", err)
			}
			noLayers(t, d)
			if _, err := d.loadOn(t, s.save(t, "", "ubuntu:14.04")); err != nil {
				t.Errorf("the benign twin: %v", err)
			}
		})
	}
}

// One layer is in two chains. A driver that stores layers per chain needs its bytes twice.
func TestSameLayerInTwoChains(t *testing.T) {
	s := newSide(t, archive.Options{})
	var b bytes.Buffer // a hard link to a file of the layer below
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "link", Typeflag: tar.TypeLink, Linkname: "f"}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	pad := imagetest.Tar(t, "pad", strings.Repeat("p", 50_000))
	s.Image(imagetest.Spec{Name: "one", Layers: [][]byte{imagetest.Tar(t, "f", "1"), b.Bytes(), pad}})
	s.Image(imagetest.Spec{Name: "two", Layers: [][]byte{imagetest.Tar(t, "f", "2"), b.Bytes(), pad}, Hours: 1})
	data := s.save(t, "", "one", "two")
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			d := onDriver(t, open)
			if _, err := d.loadOn(t, data); err != nil {
				t.Fatal(err)
			}
			for ref, want := range map[string]string{"one": "1", "two": "2"} {
				target := t.TempDir()
				if err := d.Store.Layers.View(t.Context(), d.image(t, ref).Chain, target); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(target + "/link"); err != nil || string(got) != want {
					t.Errorf("%s: link holds %q, %v", ref, got, err)
				}
				if err := d.Store.Layers.Unmount(t.Context(), target); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
