package image_test

import (
	"errors"
	"slices"
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

// gallery makes base, mid from base (without a name), top from mid, other (with two tags and a digest) and dangling (without a
// name).
func gallery(t *testing.T) (*imagetest.Fixture, map[oci.ImageID]string) {
	f := imagetest.New(t)
	base := f.Image(imagetest.Spec{Name: "base:1", Layers: [][]byte{imagetest.Tar(t, "a", "1234")}, Labels: map[string]string{"kind": "base", "x": ""}})
	mid := f.Image(imagetest.Spec{Parent: base, Layers: [][]byte{imagetest.Tar(t, "b", "12")}, Hours: 1})
	top := f.Image(imagetest.Spec{Name: "top", Parent: mid, Empty: []string{"CMD x"}, Hours: 2, Labels: map[string]string{"kind": "top"}})
	other := f.Image(imagetest.Spec{Name: "h:5000/team/other:v1", Layers: [][]byte{imagetest.Tar(t, "c", "1")}, Hours: 3})
	if err := f.Images.Tag(t.Context(), string(other), imagetest.Ref(t, "other:v2")); err != nil {
		t.Fatal(err)
	}
	addManifest(t, f, other, "h:5000/team/other")
	dangling := f.Image(imagetest.Spec{Layers: [][]byte{imagetest.Tar(t, "d", "")}, Hours: 4})
	return f, map[oci.ImageID]string{base: "base", mid: "mid", top: "top", other: "other", dangling: "dangling"}
}

func TestList(t *testing.T) {
	f, names := gallery(t)
	var topID, otherID string
	for id, n := range names {
		switch n {
		case "top":
			topID = id.Short()
		case "other":
			otherID = string(id)
		}
	}
	now := time.Now()
	afterOther := imagetest.Day.Add(3*time.Hour + time.Minute)
	for _, c := range []struct {
		name string
		opts image.ListOptions
		want string // newest first
	}{
		{"plain hides intermediate", image.ListOptions{}, "dangling other top base"},
		{"all", image.ListOptions{All: true}, "dangling other top mid base"},
		{"dangling", image.ListOptions{Filters: filter.Args{"dangling": {"true"}}}, "dangling"},
		{"not dangling", image.ListOptions{Filters: filter.Args{"dangling": {"false"}}}, "other top base"},
		{"label", image.ListOptions{Filters: filter.Args{"label": {"kind"}}}, "top base"},
		{"label value", image.ListOptions{Filters: filter.Args{"label": {"kind=top"}}}, "top"},
		{"labels all", image.ListOptions{Filters: filter.Args{"label": {"kind=base", "x"}}}, "base"},
		{"label not", image.ListOptions{Filters: filter.Args{"label!": {"kind=base"}}}, "dangling other top"},
		{"before", image.ListOptions{Filters: filter.Args{"before": {topID}}}, "base"},
		{"since", image.ListOptions{Filters: filter.Args{"since": {topID}}}, "dangling other"},
		{"since by digest", image.ListOptions{Filters: filter.Args{"since": {otherID}}}, "dangling"},
		{"until date", image.ListOptions{Filters: filter.Args{"until": {afterOther.Format(time.RFC3339)}}}, "other top base"},
		{"until duration", image.ListOptions{Filters: filter.Args{"until": {now.Sub(afterOther).String()}}}, "other top base"},
		{"until all of several", image.ListOptions{Filters: filter.Args{"until": {"1704164645.000000001", afterOther.Format(time.RFC3339)}}}, "base"},
		{"before all of several", image.ListOptions{Filters: filter.Args{"before": {topID, otherID}}}, "base"},
		{"since all of several", image.ListOptions{Filters: filter.Args{"since": {otherID, topID}}}, "dangling"},
		{"until unix", image.ListOptions{Filters: filter.Args{"until": {"1704164645.000000001"}}}, "base"},
		{"reference", image.ListOptions{Filters: filter.Args{"reference": {"top"}}}, "top"},
		{"reference glob", image.ListOptions{Filters: filter.Args{"reference": {"*:v*"}}}, "other"},
		{"reference with path", image.ListOptions{Filters: filter.Args{"reference": {"h:5000/*/other"}}}, "other"},
		{"references any", image.ListOptions{Filters: filter.Args{"reference": {"top:latest", "base:*"}}}, "top base"},
		{"reference none", image.ListOptions{Filters: filter.Args{"reference": {"nope"}}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, err := f.Images.List(t.Context(), c.opts)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range list {
				got = append(got, names[i.ID])
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
		})
	}
}

func TestListKeepsMatchingNamesOnly(t *testing.T) {
	f, _ := gallery(t)
	list, err := f.Images.List(t.Context(), image.ListOptions{Filters: filter.Args{"reference": {"other:v2"}}})
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if got := texts(list[0].Names); !cmp.Equal(got, []string{"other:v2"}) || len(list[0].Digests) != 0 {
		t.Errorf("names %v, digests %v", got, list[0].Digests)
	}
}

func TestListSizes(t *testing.T) {
	f, names := gallery(t)
	list, err := f.Images.List(t.Context(), image.ListOptions{All: true, Shared: true})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][2]int64{}
	for _, i := range list {
		got[names[i.ID]] = [2]int64{i.Size, i.Shared}
	}
	want := map[string][2]int64{"base": {4, 4}, "mid": {6, 6}, "top": {6, 6}, "other": {1, 0}, "dangling": {0, 0}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestListRefusesFilters(t *testing.T) {
	f, _ := gallery(t)
	for want, filters := range map[string]filter.Args{
		"invalid filter 'nope'":            {"nope": {"1"}},
		"invalid filter 'dangling=maybe'":  {"dangling": {"maybe"}},
		"invalid filter 'dangling=0,1'":    {"dangling": {"0", "1"}},
		"invalid filter 'reference=[a'":    {"reference": {"[a"}},
		"invalid filter 'until=yesterday'": {"until": {"yesterday"}},
		"No such image: ghost:latest":      {"before": {"ghost"}},
		"invalid filter 'unused'":          {"unused": {"1h"}},
	} {
		if _, err := f.Images.List(t.Context(), image.ListOptions{Filters: filters}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", filters, err, want)
		}
	}
}

func TestHistory(t *testing.T) {
	f, names := gallery(t)
	h, err := f.Images.History(t.Context(), "top")
	if err != nil {
		t.Fatal(err)
	}
	type row struct {
		ID, By string
		Size   int64
		Tags   string
	}
	var got []row
	for _, e := range h {
		got = append(got, row{names[e.ID], e.CreatedBy, e.Size, strings.Join(texts(e.Tags), ",")})
	}
	want := []row{
		{"top", "CMD x", 0, "top:latest"},
		{"mid", "layer a of ", 2, ""},
		{"base", "layer a of base:1", 4, "base:1"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := f.Images.Remove(t.Context(), "base:1", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	h, _ = f.Images.History(t.Context(), "top")
	if h[2].Tags != nil {
		t.Errorf("tags of an untagged parent: %v", h[2].Tags)
	}
}

// The history of an image without local parents, and of one whose config has no history.
func TestHistoryWithoutParents(t *testing.T) {
	f := imagetest.New(t)
	a, b := f.Layer(imagetest.Tar(t, "a", "123")), f.Layer(imagetest.Tar(t, "b", "1"))
	made := imagetest.Day
	raw, err := image.EncodeConfig(oci.Config{Created: &made, OS: "linux", Architecture: "amd64", RootFS: oci.RootFS{Type: "layers", DiffIDs: oci.Chain{a, b}}})
	if err != nil {
		t.Fatal(err)
	}
	id, err := f.Images.Put(t.Context(), nil, image.PutOptions{Config: raw, Names: []oci.Reference{imagetest.Ref(t, "bare")}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := f.Images.History(t.Context(), "bare")
	if err != nil || len(h) != 2 || h[0].ID != id || h[0].Size != 1 || h[1].ID != "" || h[1].Size != 3 {
		t.Errorf("%+v %v", h, err)
	}
}

func TestLayersAndTree(t *testing.T) {
	f, names := gallery(t)
	layers, err := f.Images.Layers(t.Context(), "top")
	if err != nil {
		t.Fatal(err)
	}
	if got := drawViews(layers, names); got != "4/4 base base:1 [layer a of base:1]\n2/6 mid,top top:latest [layer a of ]\n" && got != "4/4 base base:1 [layer a of base:1]\n2/6 top,mid top:latest [layer a of ]\n" {
		t.Errorf("layers:\n%s", got)
	}
	f.Image(imagetest.Spec{Name: "empty"})
	roots, err := f.Images.Tree(t.Context(), image.TreeOptions{History: true})
	if err != nil {
		t.Fatal(err)
	}
	want := `4/4 base base:1 [layer a of base:1]
  2/6 mid,top top:latest [layer a of ]
0/0  empty:latest []
1/1 other h:5000/team/other:v1,other:v2 [layer a of h:5000/team/other:v1]
0/0 dangling  [layer a of ]
`
	got := strings.ReplaceAll(drawTree(roots, names, ""), "top,mid", "mid,top")
	got = strings.ReplaceAll(got, "other:v2,h:5000/team/other:v1", "h:5000/team/other:v1,other:v2")
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func drawViews(views []*image.LayerView, names map[oci.ImageID]string) string {
	var b strings.Builder
	for _, v := range views {
		var ids []string
		for _, i := range v.Images {
			ids = append(ids, names[i])
		}
		slices.Sort(ids)
		b.WriteString(itoa(v.Size) + "/" + itoa(v.Virtual) + " " + strings.Join(ids, ",") + " " + strings.Join(texts(v.Tags), ",") + " [" + v.CreatedBy + "]\n")
	}
	return b.String()
}

func drawTree(views []*image.LayerView, names map[oci.ImageID]string, indent string) string {
	var b strings.Builder
	for _, v := range views {
		b.WriteString(indent + drawViews([]*image.LayerView{v}, names))
		b.WriteString(drawTree(v.Children, names, indent+"  "))
	}
	return b.String()
}

func itoa(n int64) string { return string(rune('0' + n)) }

// The deepest chain that an image may have, and two images that share most of it.
func TestTreeDeep(t *testing.T) {
	f := imagetest.New(t)
	var chain [][]byte
	for i := range 127 {
		chain = append(chain, imagetest.Tar(t, "f"+string(rune('a'+i%26)), strings.Repeat("x", i+1)))
	}
	f.Image(imagetest.Spec{Name: "deep", Layers: chain})
	f.Image(imagetest.Spec{Name: "fork", Layers: append(slices.Clone(chain[:100]), imagetest.Tar(t, "g", "1")), Hours: 1})
	roots, err := f.Images.Tree(t.Context(), image.TreeOptions{History: true})
	if err != nil || len(roots) != 1 {
		t.Fatal(len(roots), err)
	}
	depth, forks := 0, 0
	for v := roots[0]; v != nil; depth++ {
		forks += max(0, len(v.Children)-1)
		if len(v.Children) == 0 {
			if v.Virtual != 127*128/2 || len(v.Tags) != 1 || v.Tags[0].Familiar() != "deep:latest" {
				t.Errorf("top: %+v", v)
			}
			v = nil
			continue
		}
		v = v.Children[0]
	}
	if depth != 127 || forks != 1 {
		t.Errorf("depth %d, forks %d", depth, forks)
	}
}

func TestTag(t *testing.T) {
	f, names := gallery(t)
	ctx := t.Context()
	if err := f.Images.Tag(ctx, "top", imagetest.Ref(t, "base:1")); err != nil {
		t.Fatal(err)
	}
	if img, _ := f.Images.Get(ctx, "base:1"); names[img.ID] != "top" {
		t.Errorf("base:1 is %s", names[img.ID])
	}
	if err := f.Images.Tag(ctx, "ghost", imagetest.Ref(t, "x")); !errors.Is(err, errs.NotFound) {
		t.Errorf("ghost: %v", err)
	}
	for _, bad := range []oci.Reference{{}, imagetest.Ref(t, "x@sha256:"+strings.Repeat("a", 64)), imagetest.Ref(t, "sha256:abc")} {
		if err := f.Images.Tag(ctx, "top", bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("Tag(%s) = %v", bad, err)
		}
	}
	past, _ := f.Events.Listen(ctx)
	last := past[len(past)-1]
	if last.Action != "tag" || last.Attributes["name"] != "base:1" || last.Attributes["kind"] != "top" || last.Type != "image" {
		t.Errorf("event %+v", last)
	}
}
