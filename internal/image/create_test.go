package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
)

func TestCreateIsDeterministic(t *testing.T) {
	f := imagetest.New(t)
	d := f.Layer(imagetest.Tar(t, "a", "b"))
	made := time.Date(2024, 1, 2, 3, 4, 5, 6, time.UTC)
	o := image.CreateOptions{
		Config: oci.Config{
			Created: &made, Architecture: "amd64", OS: "linux", Author: "mhk",
			Config:  oci.RunConfig{Env: []string{"A=<1>&2"}, Cmd: []string{"/x"}, Labels: map[string]string{"b": "2", "a": "1"}},
			RootFS:  oci.RootFS{DiffIDs: oci.Chain{d}},
			History: []oci.History{{Created: &made, CreatedBy: "/bin/bash"}},
		},
		Message: "add vim", Name: imagetest.Ref(t, "mhk/ubuntu:1.3"),
	}
	id, err := f.Images.Create(t.Context(), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	img, err := f.Images.Get(t.Context(), "mhk/ubuntu:1.3")
	if err != nil || img.ID != id {
		t.Fatal(img, err)
	}
	want := `{"architecture":"amd64","author":"mhk","comment":"add vim","config":{"Env":["A=\u003c1\u003e\u00262"],"Cmd":["/x"],"Labels":{"a":"1","b":"2"}},` +
		`"created":"2024-01-02T03:04:05.000000006Z","history":[{"created":"2024-01-02T03:04:05.000000006Z","created_by":"/bin/bash","comment":"add vim"}],` +
		`"os":"linux","rootfs":{"type":"layers","diff_ids":["` + string(d) + `"]}}`
	if d := cmp.Diff(want, string(img.Raw)); d != "" {
		t.Error(d)
	}
	if again, err := f.Images.Create(t.Context(), nil, o); err != nil || again != id {
		t.Errorf("again %s %v", again, err)
	}
	if o.Config.History[0].Comment != "" {
		t.Error("the caller's history was changed")
	}
}

func TestCreateFormat(t *testing.T) {
	f := imagetest.New(t)
	base := f.Image(imagetest.Spec{Format: oci.FormatDocker})
	child := f.Image(imagetest.Spec{Parent: base, Empty: []string{"x"}})
	own := f.Image(imagetest.Spec{Hours: 1})
	for id, want := range map[oci.ImageID]oci.Format{base: oci.FormatDocker, child: oci.FormatDocker, own: oci.FormatOCI} {
		if img, err := f.Images.Get(t.Context(), string(id)); err != nil || img.Format != want {
			t.Errorf("%s: %v, want %s, %v", id.Short(), img.Format, want, err)
		}
	}
	if _, err := f.Images.Create(t.Context(), nil, image.CreateOptions{Parent: "sha256:" + oci.ImageID(strings.Repeat("1", 64))}); !errors.Is(err, errs.NotFound) {
		t.Errorf("parent absent: %v", err)
	}
}

func TestPutRefuses(t *testing.T) {
	f := imagetest.New(t)
	d := f.Layer(imagetest.Tar(t, "a", "b"))
	good := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + string(d) + `"]}}`
	manifest := func(change func(m *oci.Manifest)) *oci.Descriptor {
		m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeOCIManifest,
			Config: oci.Descriptor{MediaType: oci.MediaTypeOCIConfig, Digest: oci.DigestOf([]byte(good)), Size: int64(len(good))},
			Layers: []oci.Descriptor{{MediaType: oci.MediaTypeOCILayer, Digest: oci.Digest(d), Size: 1}}}
		change(&m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		digest, err := f.Store.Blobs.Put(raw)
		if err != nil {
			t.Fatal(err)
		}
		return &oci.Descriptor{MediaType: oci.MediaTypeOCIManifest, Digest: digest, Size: int64(len(raw))}
	}
	fine := manifest(func(*oci.Manifest) {})
	lied := *fine
	lied.Size++
	for name, c := range map[string]struct {
		o     image.PutOptions
		class error
		want  string
	}{
		"no JSON":            {image.PutOptions{Config: []byte("x")}, errs.Invalid, "config"},
		"windows":            {image.PutOptions{Config: bytes.Replace([]byte(good), []byte("linux"), []byte("windows"), 1)}, errs.Invalid, `operating system "windows" cannot be used on this platform`},
		"arch":               {image.PutOptions{Config: bytes.Replace([]byte(good), []byte("amd64"), []byte("../x"), 1)}, errs.Invalid, "architecture"},
		"layer missing":      {image.PutOptions{Config: bytes.Replace([]byte(good), []byte(d), []byte(oci.DigestOf(nil)), 1)}, errs.Precondition, "layer e3b0c44298fc (1 of 1)"},
		"manifest missing":   {image.PutOptions{Config: []byte(good), Manifest: &oci.Descriptor{Digest: oci.DigestOf([]byte("x"))}}, errs.Precondition, "manifest"},
		"manifest size":      {image.PutOptions{Config: []byte(good), Manifest: &lied}, errs.Invalid, "its descriptor says"},
		"manifest of others": {image.PutOptions{Config: []byte(good), Manifest: manifest(func(m *oci.Manifest) { m.Config.Digest = oci.DigestOf(nil) })}, errs.Invalid, "is of another image"},
		"manifest layers":    {image.PutOptions{Config: []byte(good), Manifest: manifest(func(m *oci.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) })}, errs.Invalid, "manifest has 2 layers, config has 1"},
		"index alone":        {image.PutOptions{Config: []byte(good), Index: fine}, errs.Invalid, "without a manifest"},
		"index is none":      {image.PutOptions{Config: []byte(good), Manifest: fine, Index: fine}, errs.Invalid, "index"},
		"zero name":          {image.PutOptions{Config: []byte(good), Names: make([]oci.Reference, 1)}, errs.Invalid, "empty name"},
	} {
		before := state(t, f)
		if _, err := f.Images.Put(t.Context(), nil, c.o); !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if d := cmp.Diff(before, state(t, f)); d != "" {
			t.Errorf("%s: refused, yet changed:\n%s", name, d)
		}
	}
	if _, err := f.Images.Put(t.Context(), nil, image.PutOptions{Config: []byte(good), Manifest: fine}); err != nil {
		t.Errorf("the benign twin: %v", err)
	}
}

func TestPutMovesNames(t *testing.T) {
	f := imagetest.New(t)
	old := f.Image(imagetest.Spec{Name: "x"})
	id := f.Image(imagetest.Spec{Name: "x", Hours: 1})
	if img, err := f.Images.Get(t.Context(), "x"); err != nil || img.ID != id {
		t.Errorf("x is %v %v", img, err)
	}
	list, err := f.Images.List(t.Context(), image.ListOptions{Filters: filter.Args{"dangling": {"true"}}})
	if err != nil || len(list) != 1 || list[0].ID != old {
		t.Errorf("dangling: %v %v", list, err)
	}
}

// An image does not become its own ancestor.
func TestParentsMakeNoCircle(t *testing.T) {
	f := imagetest.New(t)
	ids := []oci.ImageID{f.Image(imagetest.Spec{Layers: [][]byte{imagetest.Tar(t, "f", "x")}})}
	for _, step := range []string{"a", "b", "c"} {
		ids = append(ids, f.Image(imagetest.Spec{Parent: ids[len(ids)-1], Empty: []string{step}}))
	}
	parent := func(id oci.ImageID) oci.ImageID {
		img, err := f.Images.Get(t.Context(), string(id))
		if err != nil {
			t.Fatal(err)
		}
		return img.Parent
	}
	for i, id := range ids[1:] {
		if parent(id) != ids[i] {
			t.Errorf("the parent of image %d is %q, want %q", i+1, parent(id), ids[i])
		}
	}
	for _, above := range ids {
		first, err := f.Images.Get(t.Context(), string(ids[0]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Images.Put(t.Context(), nil, image.PutOptions{Config: first.Raw, Parent: above}); err != nil {
			t.Fatal(err)
		}
		if got := parent(ids[0]); got != "" {
			t.Errorf("the first image has the parent %q, which was made from it", got)
		}
	}
}
