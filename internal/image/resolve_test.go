package image_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

func TestGetByEveryReference(t *testing.T) {
	f := imagetest.New(t)
	id := f.Image(imagetest.Spec{Name: "hello", Layers: [][]byte{imagetest.Tar(t, "hello", "x")}})
	manifest := addManifest(t, f, id, "hello")
	if err := f.Images.Tag(t.Context(), "hello", imagetest.Ref(t, "172.28.109.11:5000/mhk/hello:1.3")); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{
		"hello", "hello:latest", "library/hello", "172.28.109.11:5000/mhk/hello:1.3",
		string(id), id.Hex(), id.Short(), id.Hex()[:1], "sha256:" + id.Short(),
		"hello@" + string(manifest), "hello:any@" + string(manifest), string(manifest), manifest.Hex(), manifest.Hex()[:20],
	} {
		img, err := f.Images.Get(t.Context(), ref)
		if err != nil {
			t.Errorf("Get(%q): %v", ref, err)
			continue
		}
		if img.ID != id {
			t.Errorf("Get(%q) = %s, want %s", ref, img.ID, id)
		}
	}
	img, err := f.Images.Get(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	if got := texts(img.Names); !cmp.Equal(got, []string{"172.28.109.11:5000/mhk/hello:1.3", "hello:latest"}) && !cmp.Equal(got, []string{"hello:latest", "172.28.109.11:5000/mhk/hello:1.3"}) {
		t.Errorf("names %v", got)
	}
	if got := texts(img.Digests); !cmp.Equal(got, []string{"hello@" + string(manifest)}) {
		t.Errorf("digests %v", got)
	}
	if img.Manifest == nil || img.Manifest.Digest != manifest || img.Size != 1 || img.Shared != -1 {
		t.Errorf("image %+v", img)
	}
}

func TestGetMisses(t *testing.T) {
	f := imagetest.New(t)
	absent := strings.Repeat("0", 63) + "1"
	for ref, want := range map[string]string{
		"mysql":              "No such image: mysql:latest",
		"mysql:8":            "No such image: mysql:8",
		"deadbeef":           "No such image: deadbeef:latest",
		absent:               "No such image: sha256:" + absent,
		"sha256:" + absent:   "No such image: sha256:" + absent,
		"a@sha256:" + absent: "No such image: a@sha256:" + absent,
		"h:5000/x":           "No such image: h:5000/x:latest",
	} {
		_, err := f.Images.Get(t.Context(), ref)
		if !errors.Is(err, errs.NotFound) || err.Error() != want {
			t.Errorf("Get(%q) = %v, want %q", ref, err, want)
		}
	}
	for _, ref := range []string{"", "UPPER", "a:b:c", "a//b", ":x", strings.Repeat("a", 5000), "-", "a\x00b"} {
		if _, err := f.Images.Get(t.Context(), ref); !errors.Is(err, errs.Invalid) {
			t.Errorf("Get(%.20q) = %v, want invalid", ref, err)
		}
	}
}

func TestAmbiguousPrefixAndNamesFirst(t *testing.T) {
	f := imagetest.New(t)
	first := map[byte]oci.ImageID{}
	var shared byte
	var a, b oci.ImageID
	for i := 0; shared == 0 && i < 17; i++ { // of 17 IDs, two have the same first digit
		id := f.Image(imagetest.Spec{Hours: i})
		c := id.Hex()[0]
		if other, ok := first[c]; ok {
			shared, a, b = c, other, id
		}
		first[c] = id
	}
	if _, err := f.Images.Get(t.Context(), string(shared)); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "multiple IDs found with provided prefix: "+string(shared)) {
		t.Errorf("ambiguous: %v", err)
	}
	if err := f.Images.Tag(t.Context(), string(a), imagetest.Ref(t, b.Short())); err != nil {
		t.Fatal(err)
	}
	if img, err := f.Images.Get(t.Context(), b.Short()); err != nil || img.ID != a {
		t.Errorf("the name %s: %v %v", b.Short(), img, err)
	}
}

// A damaged config is an error where it is needed. The image can still be listed and removed.
func TestDamagedConfig(t *testing.T) {
	f := imagetest.New(t)
	id := f.Image(imagetest.Spec{Name: "bad", Layers: [][]byte{imagetest.Tar(t, "a", "b")}})
	f.Image(imagetest.Spec{Name: "good", Hours: 1})
	flipBlob(t, f, oci.Digest(id))
	for range 2 { // the first Get removes the damaged blob; the second finds no config, but the image still exists
		if _, err := f.Images.Get(t.Context(), "bad"); !errors.Is(err, errs.DataLoss) || errors.Is(err, errs.NotFound) {
			t.Errorf("Get: %v", err)
		}
	}
	list, err := f.Images.List(t.Context(), image.ListOptions{})
	if err != nil || len(list) != 2 {
		t.Fatalf("List: %d images, %v", len(list), err)
	}
	if _, err := f.Images.Tree(t.Context(), image.TreeOptions{History: true}); err != nil {
		t.Error(err)
	}
	if _, err := f.Images.Remove(t.Context(), "bad", image.RemoveOptions{}); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestTouch(t *testing.T) {
	f := imagetest.New(t)
	id := f.Image(imagetest.Spec{Name: "x"})
	setUsed(t, f, id, imagetest.Day)
	if err := f.Images.Touch(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if img, _ := f.Images.Get(t.Context(), "x"); !img.LastUsed.After(imagetest.Day) {
		t.Errorf("last used %s", img.LastUsed)
	}
	if err := f.Images.Touch(t.Context(), "sha256:none"); !errors.Is(err, errs.NotFound) {
		t.Errorf("absent: %v", err)
	}
}

func texts(refs []oci.Reference) []string {
	out := []string{}
	for _, r := range refs {
		out = append(out, r.Familiar())
	}
	return out
}

// update writes to the database without the service.
func update(t *testing.T, f *imagetest.Fixture, do func(tx *meta.Tx) error) {
	t.Helper()
	if err := f.Store.Meta.Update(do); err != nil {
		t.Fatal(err)
	}
}
