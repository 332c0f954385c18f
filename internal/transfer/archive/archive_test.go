package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
	"ply/internal/transfer/transfertest"
)

var update = flag.Bool("update", false, "rewrite golden files")

// side is a store with its archive service.
type side struct {
	*imagetest.Fixture
	*archive.Archive
}

func newSide(t testing.TB, opts archive.Options) side {
	f := imagetest.New(t)
	return side{f, archive.New(f.Store, f.Images, opts)}
}

// newDroppingSide returns a side whose store keeps no compressed layers.
func newDroppingSide(t testing.TB) side {
	f := imagetest.NewWith(t, store.Options{Retain: store.RetainNever})
	return side{f, archive.New(f.Store, f.Images, archive.Options{})}
}

func (s side) save(t testing.TB, format string, refs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Save(t.Context(), refs, transfer.SaveOptions{Format: format}, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// line writes a report as text: the name that was loaded, or the ID of an image without one.
func line(p transfer.Progress) string {
	if p.State == transfer.Loaded && !p.Ref.IsZero() {
		p.Image = ""
	}
	return transfertest.Line(p)
}

// load returns the reports that are not about a layer.
func (s side) load(t testing.TB, data []byte) []string {
	t.Helper()
	lines, err := s.tryLoad(t, data, transfer.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func (s side) tryLoad(t testing.TB, data []byte, opts transfer.LoadOptions) (lines []string, err error) {
	t.Helper()
	var mu sync.Mutex
	err = s.Load(t.Context(), iotestReader{bytes.NewReader(data)}, opts, func(p transfer.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Layer == "" {
			lines = append(lines, line(p))
		}
	})
	if s.Driver.Open != 0 {
		t.Errorf("%d layers neither committed nor aborted", s.Driver.Open)
	}
	return lines, err
}

// iotestReader has no method but Read, like a network stream.
type iotestReader struct{ io.Reader }

func (s side) image(t testing.TB, ref string) *image.Image {
	t.Helper()
	img, err := s.Images.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// four makes an image of four layers; it shares two of them with the image base.
func four(t testing.TB, s side) {
	t.Helper()
	base := s.Image(imagetest.Spec{Name: "base:1", Layers: [][]byte{
		imagetest.Tar(t, "etc/", "", "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"), imagetest.Tar(t, "b", strings.Repeat("b", 100_000)),
	}})
	s.Image(imagetest.Spec{Name: "ubuntu:14.04", Parent: base, Layers: [][]byte{
		imagetest.Tar(t, "c", "c"), imagetest.Tar(t, "d", strings.Repeat("d", 50_000)),
	}, Hours: 1})
}

type item struct {
	typ  byte
	link string
	data []byte
}

func list(t testing.TB, data []byte) (names []string, items map[string]item) {
	t.Helper()
	items = map[string]item{}
	tr := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names, items
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		items[h.Name] = item{h.Typeflag, h.Linkname, b}
	}
}

// The entries of each format, with their types and sizes, are those of the golden files.
func TestSaveListing(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	for _, format := range []string{"hybrid", "oci", "docker", "legacy"} {
		t.Run(format, func(t *testing.T) {
			names, items := list(t, s.save(t, format, "ubuntu:14.04"))
			var b strings.Builder
			for _, n := range names {
				i := items[n]
				fmt.Fprintf(&b, "%c %6d %s", i.typ, len(i.data), n)
				if i.link != "" {
					b.WriteString(" -> " + i.link)
				}
				b.WriteByte('\n')
			}
			golden(t, "listing-"+format+".txt", b.String())
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	p := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-update rewrites it):\n%s", name, d)
	}
}

// The legacy format has a directory per layer: four layers give four directories and thirteen files.
func TestSaveLegacy(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	names, items := list(t, s.save(t, "legacy", "ubuntu:14.04"))
	dirs, files := 0, 0
	dirName := regexp.MustCompile(`^[0-9a-f]{64}/$`)
	var parents []string
	for _, n := range names {
		if items[n].typ == tar.TypeDir {
			dirs++
			if !dirName.MatchString(n) {
				t.Errorf("directory %s", n)
			}
			if string(items[n+"VERSION"].data) != "1.0" {
				t.Errorf("%sVERSION holds %q", n, items[n+"VERSION"].data)
			}
			var v struct{ ID, Parent string }
			if err := json.Unmarshal(items[n+"json"].data, &v); err != nil || v.ID+"/" != n {
				t.Errorf("%sjson: %s %v", n, items[n+"json"].data, err)
			}
			parents = append(parents, v.Parent)
			continue
		}
		files++
	}
	if dirs != 4 || files != 13 {
		t.Errorf("%d directories, %d files, want 4 and 13", dirs, files)
	}
	var repos map[string]map[string]string
	if err := json.Unmarshal(items["repositories"].data, &repos); err != nil {
		t.Fatal(err)
	}
	top := repos["ubuntu"]["14.04"]
	if len(repos) != 1 || len(repos["ubuntu"]) != 1 || slices.Contains(parents, top) || items[top+"/json"].data == nil {
		t.Errorf("repositories %v", repos)
	}
	// layer.tar is the uncompressed tar of the layer.
	if n, _ := list(t, items[top+"/layer.tar"].data); !cmp.Equal(n, []string{"d"}) {
		t.Errorf("top layer holds %v", n)
	}
}

func TestSaveIsDeterministic(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	for _, format := range []string{"", "oci", "docker", "legacy"} {
		if !bytes.Equal(s.save(t, format, "ubuntu:14.04", "base"+":1"), s.save(t, format, "ubuntu:14.04", "base:1")) {
			t.Errorf("%s: two saves differ", format)
		}
	}
}

// An archive of every format can be loaded into an empty store, compressed or with its entries in another order.
func TestRoundTrip(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	if err := s.Images.Tag(t.Context(), "ubuntu:14.04", imagetest.Ref(t, "h:5000/team/ubuntu")); err != nil {
		t.Fatal(err)
	}
	refs := []string{"ubuntu:14.04", "base:1", "h:5000/team/ubuntu"}
	for _, format := range []string{"hybrid", "oci", "docker"} {
		for name, pack := range packings {
			t.Run(format+" "+name, func(t *testing.T) {
				d := newSide(t, archive.Options{})
				lines := d.load(t, pack(t, s.save(t, format, refs...)))
				want := []string{"Loaded ubuntu:14.04", "Loaded h:5000/team/ubuntu:latest", "Loaded base:1"}
				slices.Sort(want)
				slices.Sort(lines)
				if diff := cmp.Diff(want, lines); diff != "" {
					t.Error(diff)
				}
				for _, ref := range refs {
					a, b := s.image(t, ref), d.image(t, ref)
					if a.ID != b.ID || a.Size != b.Size || !bytes.Equal(a.Raw, b.Raw) {
						t.Errorf("%s: %s %d, want %s %d", ref, b.ID, b.Size, a.ID, a.Size)
					}
					if b.Manifest != nil {
						t.Errorf("%s: kept a manifest that was made for the archive", ref)
					}
				}
				if n := len(d.Driver.Files()); n != 4 {
					t.Errorf("%d layers, want 4: %v", n, d.Driver.Files())
				}
			})
		}
	}
}

// packings are the ways in which an archive may have been compressed or reordered.
var packings = map[string]func(testing.TB, []byte) []byte{
	"plain": func(_ testing.TB, b []byte) []byte { return b },
	"gzip":  gzipped,
	"reversed": func(t testing.TB, b []byte) []byte { // the documents come last
		names, items := list(t, b)
		slices.Reverse(names)
		return rebuild(t, names, items)
	},
	"dot slash": func(t testing.TB, b []byte) []byte {
		names, items := list(t, b)
		for i, n := range names {
			items["./"+n] = items[n]
			names[i] = "./" + n
		}
		return rebuild(t, names, items)
	},
}

func gzipped(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func rebuild(t testing.TB, names []string, items map[string]item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		i := items[n]
		if err := w.WriteHeader(&tar.Header{Name: n, Typeflag: i.typ, Linkname: i.link, Size: int64(len(i.data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(i.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The oldest layout has no history. Files and run configuration survive a round trip, the ID does not.
func TestLegacyRoundTrip(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	four(t, s)
	if lines := d.load(t, s.save(t, "legacy", "ubuntu:14.04")); !cmp.Equal(lines, []string{"Loaded ubuntu:14.04"}) {
		t.Error(lines)
	}
	a, b := s.image(t, "ubuntu:14.04"), d.image(t, "ubuntu:14.04")
	if diff := cmp.Diff(a.Chain, b.Chain); diff != "" || !cmp.Equal(a.Config.Config, b.Config.Config) || len(b.Config.History) != 4 || !a.Created().Equal(b.Created()) {
		t.Errorf("%s\n%+v", diff, b.Config)
	}
	// An archive of an image that was saved by ID has no file repositories.
	d2 := newSide(t, archive.Options{})
	if lines := d2.load(t, s.save(t, "legacy", string(a.ID))); !cmp.Equal(lines, []string{"Loaded " + string(b.ID)}) {
		t.Error(lines)
	}
}

func TestSaveNames(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	id := s.image(t, "ubuntu:14.04").ID
	for _, tag := range []string{"ubuntu:trusty", "ubuntu:latest"} {
		if err := s.Images.Tag(t.Context(), string(id), imagetest.Ref(t, tag)); err != nil {
			t.Fatal(err)
		}
	}
	for want, refs := range map[string][]string{
		"ubuntu:14.04 ubuntu:latest ubuntu:trusty": {"ubuntu"},
		"ubuntu:latest": {"ubuntu:latest", "docker.io/library/ubuntu:latest"},
		"":              {id.Short()},
		"ubuntu:trusty": {string(id), "ubuntu:trusty"},
	} {
		_, items := list(t, s.save(t, "", refs...))
		var m []struct{ RepoTags []string }
		if err := json.Unmarshal(items["manifest.json"].data, &m); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(m[0].RepoTags, " "); got != want || len(m) != 1 {
			t.Errorf("save %v: %q, want %q", refs, got, want)
		}
		d := newSide(t, archive.Options{})
		lines := d.load(t, s.save(t, "", refs...))
		if want == "" && !cmp.Equal(lines, []string{"Loaded " + string(id)}) {
			t.Errorf("save %v: %v", refs, lines)
		}
	}
	for want, refs := range map[string][]string{"No such image: ghost:latest": {"base:1", "ghost"}, "no image named": nil} {
		var b bytes.Buffer
		if err := s.Save(t.Context(), refs, transfer.SaveOptions{}, &b); err == nil || !strings.Contains(err.Error(), want) || b.Len() > 0 {
			t.Errorf("save %v: %v, %d bytes", refs, err, b.Len())
		}
	}
	if err := s.Save(t.Context(), []string{"base:1"}, transfer.SaveOptions{Format: "zip"}, io.Discard); err == nil {
		t.Error("unknown format accepted")
	}
}

// A layer that an image has twice, or that two images have, is in the archive once.
func TestSaveSharesLayers(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	for format, want := range map[string]int{"hybrid": 4, "oci": 4, "docker": 4, "legacy": 4} {
		_, items := list(t, s.save(t, format, "base:1", "ubuntu:14.04"))
		n := 0
		for _, i := range items {
			if i.typ == tar.TypeReg && len(i.data) > 262 && string(i.data[257:262]) == "ustar" {
				n++
			}
		}
		if n != want {
			t.Errorf("%s: %d layers, want %d", format, n, want)
		}
	}
}

func TestLoadMovesNames(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	four(t, s)
	old := d.Image(imagetest.Spec{Name: "ubuntu:14.04"})
	lines := d.load(t, s.save(t, "", "ubuntu:14.04"))
	want := []string{
		"NameMoved ubuntu:14.04 " + string(old),
		"Loaded ubuntu:14.04",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	if img := d.image(t, string(old)); len(img.Names) != 0 {
		t.Errorf("old names %v", img.Names)
	}
	if again := d.load(t, s.save(t, "", "ubuntu:14.04")); !cmp.Equal(again, want[1:]) {
		t.Errorf("again: %v", again)
	}
}

func TestLoadReplacesADamagedLayer(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	data := s.save(t, "", "ubuntu:14.04")
	top := s.image(t, "ubuntu:14.04").Chain.Top()
	if err := os.WriteFile(s.Driver.Path(top), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), []string{"ubuntu:14.04"}, transfer.SaveOptions{}, io.Discard); err == nil {
		t.Error("saved a damaged layer")
	}
	s.load(t, data)
	if !bytes.Equal(s.save(t, "", "ubuntu:14.04"), data) {
		t.Error("not healed")
	}
}

func TestLoadProgress(t *testing.T) {
	s, d := newSide(t, archive.Options{}), newSide(t, archive.Options{})
	s.Image(imagetest.Spec{Name: "big", Layers: [][]byte{imagetest.Tar(t, "x", strings.Repeat("x", 3<<20))}})
	data := s.save(t, "", "big")
	for _, quiet := range []bool{false, true} {
		seen := map[string]int64{}
		err := d.Load(t.Context(), bytes.NewReader(data), transfer.LoadOptions{Quiet: quiet}, func(p transfer.Progress) {
			if p.State == transfer.LayerLoading {
				if p.Current > p.Total || p.Current < seen[p.Layer] {
					t.Errorf("%+v after %d", p, seen[p.Layer])
				}
				seen[p.Layer] = p.Current
			}
		})
		top := s.image(t, "big").Chain.Top()
		if err != nil || quiet && len(seen) > 0 || !quiet && seen[top.Short()] < 3<<20 {
			t.Errorf("quiet %v: %v %v", quiet, seen, err)
		}
	}
}

// Many layers wait without one writer of the driver each. Each is written once, in any order of the entries.
func TestLoadManyLayers(t *testing.T) {
	s := newSide(t, archive.Options{})
	var layers [][]byte
	for i := range 40 {
		layers = append(layers, imagetest.Tar(t, fmt.Sprint("f", i), strings.Repeat("x", 40_000+i)))
	}
	layers[20] = imagetest.Tar(t, "small", "x") // stays in memory
	s.Image(imagetest.Spec{Name: "deep", Layers: layers})
	for _, format := range []string{"hybrid", "oci", "docker"} {
		for name, pack := range packings {
			t.Run(format+" "+name, func(t *testing.T) {
				d := newSide(t, archive.Options{})
				d.load(t, pack(t, s.save(t, format, "deep")))
				if d.image(t, "deep").ID != s.image(t, "deep").ID {
					t.Error("another image")
				}
				if d.Driver.MaxOpen > 5 || d.Driver.Creates != 40 || d.Driver.Made != 40 {
					t.Errorf("at most %d writers at once, %d in all, %d layers", d.Driver.MaxOpen, d.Driver.Creates, d.Driver.Made)
				}
				if name == "plain" && d.Driver.MaxOpen > 2 { // one of the layers is in memory
					t.Errorf("%d writers at once for an archive with its documents first", d.Driver.MaxOpen)
				}
			})
		}
	}
}
