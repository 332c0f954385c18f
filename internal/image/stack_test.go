package image_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
)

// stackWorld has an image of three layers and one that shares the lower two with it.
func stackWorld(t *testing.T) (f *imagetest.Fixture, top oci.ImageID, chain []oci.ChainID) {
	f = imagetest.New(t)
	layers := [][]byte{imagetest.Tar(t, "a", "1"), imagetest.Tar(t, "b", "22"), imagetest.Tar(t, "c", "333")}
	top = f.Image(imagetest.Spec{Name: "top", Layers: layers, Labels: map[string]string{"k": "v"}, Empty: []string{`CMD ["top"]`}})
	f.Image(imagetest.Spec{Name: "fork", Layers: append(slices.Clone(layers[:2]), imagetest.Tar(t, "d", "4444"), imagetest.Tar(t, "e", "5")), Hours: 1})
	img, err := f.Images.Get(t.Context(), "top")
	if err != nil {
		t.Fatal(err)
	}
	return f, top, img.Chain.IDs()
}

// The chain ID of lower layers of an image is an image for every command: what they were, made once, hidden from lists, gone with the next removal.
func TestStackIsAnImage(t *testing.T) {
	f, top, chain := stackWorld(t)
	ctx := t.Context()
	img, err := f.Images.Get(ctx, string(chain[1]))
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Chain) != 2 || len(img.Config.History) != 2 || img.Config.Config.Labels["k"] != "v" || img.Config.Config.Cmd != nil || img.Size != 3 {
		t.Errorf("%+v", img)
	}
	for _, ref := range []string{chain[1].String(), string(chain[1])[7:], string(chain[1])[7:19], string(img.ID), string(img.ID)[7:19]} {
		again, err := f.Images.Get(ctx, ref)
		if err != nil || again.ID != img.ID {
			t.Errorf("%s: %v, %v", ref, again, err)
		}
		if id, name, err := f.Images.Find(ref); err != nil || id != img.ID || !name.IsZero() {
			t.Errorf("find %s: %s, %v", ref, id, err)
		}
	}
	if id, err := f.Images.Lookup(string(chain[2])); err != nil || id != top {
		t.Errorf("the whole chain: %s, %v; want the image itself", id, err)
	}
	if x, err := f.Images.Index(string(chain[0])); x != nil || err != nil {
		t.Errorf("index: %v, %v", x, err)
	}
	if _, err := f.Images.GetFor(ctx, string(chain[0]), "linux/amd64"); err != nil {
		t.Errorf("for a platform: %v", err)
	}
	list, err := f.Images.List(ctx, image.ListOptions{})
	if err != nil || len(list) != 2 {
		t.Errorf("listed: %d images, %v", len(list), err)
	}
	if h, err := f.Images.History(ctx, string(chain[1])); err != nil || len(h) != 2 || h[0].ID != img.ID {
		t.Errorf("history: %+v, %v", h, err)
	}
	if err := f.Images.Tag(ctx, string(chain[0])[7:20], imagetest.Ref(t, "bottom")); err != nil {
		t.Fatal(err)
	}
	f.InUse[img.ID] = []string{strings.Repeat("c", 64)}
	out, err := f.Images.Remove(ctx, "top", image.RemoveOptions{})
	if err != nil || len(out) != 3 || out[1].Deleted != top {
		t.Errorf("removal of top: %v, %v", out, err)
	}
	if _, err := f.Images.Get(ctx, "bottom"); err != nil {
		t.Errorf("it has a name: %v", err)
	}
	if _, err := f.Images.Get(ctx, string(img.ID)); err != nil {
		t.Errorf("it has a container: %v", err)
	}
	delete(f.InUse, img.ID)
	if _, err := f.Images.Remove(ctx, "bottom", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Images.Get(ctx, string(img.ID)); !errors.Is(err, errs.NotFound) {
		t.Errorf("nothing needs it any more: %v", err)
	}
	if _, err := f.Images.Get(ctx, string(chain[1])); err != nil {
		t.Errorf("fork has these layers, too: %v", err)
	}
	if _, err := f.Images.Remove(ctx, "fork", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range chain {
		if _, err := f.Images.Get(ctx, string(c)); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v, and no image has these layers any more", c, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(f.Store.Root, "blobs", "sha256", "*")); err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
}

// A short word is never a stack of layers: it may be meant as a name.
func TestStackNeedsTwelveDigits(t *testing.T) {
	f, _, chain := stackWorld(t)
	for _, ref := range []string{string(chain[0])[7:18], string(chain[0])[7:9], strings.Repeat("0", 64), "sha256:" + strings.Repeat("1", 12)} {
		if _, err := f.Images.Get(t.Context(), ref); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := f.Images.Remove(t.Context(), string(chain[1]), image.RemoveOptions{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("removal of what is no image: %v", err)
	}
}

// With a damaged config, another image that has the layers says what they were; without one, the error is that of the damage.
func TestStackOfDamagedImage(t *testing.T) {
	f, top, chain := stackWorld(t)
	flipBlob(t, f, oci.Digest(top))
	if img, err := f.Images.Get(t.Context(), string(chain[1])); err != nil || len(img.Chain) != 2 {
		t.Errorf("%v", err)
	}
	if _, err := f.Images.Remove(t.Context(), "fork", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Images.Get(t.Context(), string(chain[0])); !errors.Is(err, errs.DataLoss) {
		t.Errorf("%v", err)
	}
}

// The listed tree has the images that a list has, by the names that people are shown.
func TestListedTree(t *testing.T) {
	f, _, chain := stackWorld(t)
	ctx := t.Context()
	if _, err := f.Images.Get(ctx, string(chain[1])); err != nil {
		t.Fatal(err)
	}
	draw := func(opts image.ListOptions) string {
		roots, err := f.Images.Tree(ctx, image.TreeOptions{Listed: &opts})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		var visit func([]*image.LayerView, string)
		visit = func(views []*image.LayerView, indent string) {
			for _, v := range views {
				fmt.Fprintf(&b, "%s%d %d %s;", indent, v.Virtual, len(v.Images), strings.Join(v.Shown, ","))
				visit(v.Children, indent+"-")
			}
		}
		visit(roots, "")
		return b.String()
	}
	if got, want := draw(image.ListOptions{}), "1 0 ;-3 0 ;--7 0 ;---8 1 fork:latest;--6 1 top:latest;"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := draw(image.ListOptions{All: true}), "1 0 ;-3 1 ;--7 0 ;---8 1 fork:latest;--6 1 top:latest;"; got != want {
		t.Errorf("all: %s, want %s", got, want)
	}
	for key, value := range map[string]string{"reference": "top", "label": "k=v", "before": "fork"} {
		if got, want := draw(image.ListOptions{Filters: map[string][]string{key: {value}}}), "1 0 ;-3 0 ;--6 1 top:latest;"; got != want {
			t.Errorf("%s=%s: %s, want %s", key, value, got, want)
		}
	}
}

// BenchmarkTree draws 1,000 images of 10 layers, 9 of which are shared by ten images each.
func BenchmarkTree(b *testing.B) {
	f := imagetest.New(b)
	for i := range 1000 {
		var layers [][]byte
		for j := range 9 {
			layers = append(layers, imagetest.Tar(b, fmt.Sprint("f", j), fmt.Sprint(i/10)))
		}
		f.Image(imagetest.Spec{Name: fmt.Sprintf("image%d", i), Layers: append(layers, imagetest.Tar(b, "own", fmt.Sprint(i))), Hours: i})
	}
	for b.Loop() {
		if _, err := f.Images.Tree(b.Context(), image.TreeOptions{Listed: &image.ListOptions{}}); err != nil {
			b.Fatal(err)
		}
	}
}
