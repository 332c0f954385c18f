package image_test

import (
	"encoding/json"
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
	"ply/internal/store/meta"
)

const ctr = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// said writes the result of a removal as text: "-NAME" for a removed name, and the name in names for a deleted image.
func said(removed []image.Removed, names map[oci.ImageID]string) string {
	var out []string
	for _, r := range removed {
		if r.Untagged != "" {
			name, digest, ok := strings.Cut(r.Untagged, "@")
			if ok && strings.HasPrefix(digest, "sha256:") {
				name += "@"
			}
			out = append(out, "-"+name)
			continue
		}
		if n := names[r.Deleted]; n != "" {
			out = append(out, n)
		} else {
			out = append(out, "layer")
		}
	}
	return strings.Join(out, " ")
}

func TestRemove(t *testing.T) {
	for _, c := range []struct {
		name    string
		ref     string // a name, or "#name" for the ID of an image of gallery
		opts    image.RemoveOptions
		inUse   string // an image that a stopped container uses
		running string // an image that a running container uses
		want    string
		refused string
	}{
		{name: "one of two names", ref: "other:v2", want: "-other:v2"},
		{name: "last tag of its repository takes the digest", ref: "h:5000/team/other:v1", want: "-h:5000/team/other:v1 -h:5000/team/other@"},
		{name: "nameless parents go too", ref: "top", want: "-top:latest top mid layer"},
		{name: "no prune keeps them", ref: "top", opts: image.RemoveOptions{NoPrune: true}, want: "-top:latest top"},
		{name: "name of a parent is only untagged", ref: "base:1", want: "-base:1"},
		{name: "by ID of a parent", ref: "#base", refused: "conflict: unable to delete ID (cannot be forced) - image has dependent child images"},
		{name: "by ID of a parent, forced", ref: "#base", opts: image.RemoveOptions{Force: true}, refused: "cannot be forced"},
		{name: "by ID", ref: "#dangling", want: "dangling layer"},
		{name: "by ID with one name", ref: "#top", want: "-top:latest top mid layer"},
		{name: "by ID with names in two repositories", ref: "#other", refused: "conflict: unable to delete ID (must be forced) - image is referenced in multiple repositories"},
		{name: "the same, forced", ref: "#other", opts: image.RemoveOptions{Force: true}, want: "-other:v2 -h:5000/team/other:v1 -h:5000/team/other@ other layer"},
		{name: "last name while in use", ref: "top", inUse: "top", refused: `conflict: unable to remove repository reference "top" (must force) - container 0123456789ab is using its referenced image ID`},
		{name: "the same, forced: names only", ref: "top", inUse: "top", opts: image.RemoveOptions{Force: true}, want: "-top:latest"},
		{name: "one of two names while in use", ref: "other:v2", inUse: "other", want: "-other:v2"},
		{name: "by ID while in use", ref: "#top", inUse: "top", refused: "conflict: unable to delete ID (must be forced) - image is being used by stopped container 0123456789ab"},
		{name: "by ID while in use, forced: names only", ref: "#top", inUse: "top", opts: image.RemoveOptions{Force: true}, want: "-top:latest"},
		{name: "by ID while running", ref: "#top", running: "top", opts: image.RemoveOptions{Force: true}, refused: "conflict: unable to delete ID (cannot be forced) - image is being used by running container 0123456789ab"},
		{name: "by name while running, forced", ref: "top", running: "top", opts: image.RemoveOptions{Force: true}, want: "-top:latest"},
		{name: "parent in use stays", ref: "top", inUse: "mid", want: "-top:latest top"},
		{name: "absent", ref: "ghost", refused: "No such image: ghost:latest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, names := gallery(t)
			byName := map[string]oci.ImageID{}
			for id, n := range names {
				byName[n] = id
			}
			ref := c.ref
			short := "no such text"
			if id, ok := byName[c.ref]; ok {
				short = id.Short()
			}
			if n, ok := strings.CutPrefix(c.ref, "#"); ok {
				ref, short = byName[n].Hex()[:20], byName[n].Short()
			}
			if c.inUse != "" {
				f.InUse[byName[c.inUse]] = []string{ctr}
			}
			if c.running != "" {
				f.InUse[byName[c.running]] = []string{ctr}
				f.Running[ctr] = true
			}
			before := state(t, f)
			got, err := f.Images.Remove(t.Context(), ref, c.opts)
			if c.refused != "" {
				if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), short, "ID"), c.refused) {
					t.Errorf("err %v, want %q", err, c.refused)
				}
				if d := cmp.Diff(before, state(t, f)); d != "" {
					t.Errorf("refused, yet changed:\n%s", d)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s := said(got, names); s != c.want {
				t.Errorf("got  %q\nwant %q", s, c.want)
			}
			checkFiles(t, f)
		})
	}
}

// state lists everything that a removal can change.
func state(t *testing.T, f *imagetest.Fixture) (all []string) {
	t.Helper()
	err := f.Store.Meta.View(func(tx *meta.Tx) error {
		for k, v := range tx.Names.All() {
			all = append(all, k+" "+string(v.Value.Image))
		}
		for k := range tx.Images.All() {
			all = append(all, string(k))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(all, f.Driver.Files()...)
}

// checkFiles checks that the driver has exactly the layers that images have.
func checkFiles(t *testing.T, f *imagetest.Fixture) {
	t.Helper()
	want := map[string]bool{}
	err := f.Store.Meta.View(func(tx *meta.Tx) error {
		for id, rec := range tx.Images.All() {
			for _, d := range rec.Value.Chain {
				want[d.Hex()] = true
			}
			if _, err := f.Store.Blobs.Stat(oci.Digest(id)); err != nil {
				t.Errorf("config of a living image: %v", err)
			}
		}
		for d := range tx.Layers.All() {
			if !want[d.Hex()] {
				t.Errorf("record of a dead layer %s", d)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, n := range f.Driver.Files() {
		got[n] = true
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("layers on disk:\n%s", d)
	}
}

func TestRemoveByDigestKeepsTheTag(t *testing.T) {
	f := imagetest.New(t)
	id := f.Image(imagetest.Spec{Name: "r/x:1", Layers: [][]byte{imagetest.Tar(t, "a", "b")}})
	d := addManifest(t, f, id, "r/x")
	got, err := f.Images.Remove(t.Context(), "r/x@"+string(d), image.RemoveOptions{})
	if err != nil || said(got, nil) != "-r/x@" || got[0].Untagged != "r/x@"+string(d) {
		t.Errorf("%v %v", got, err)
	}
	if _, err := f.Images.Get(t.Context(), "r/x:1"); err != nil {
		t.Error(err)
	}
	// The digest of the manifest, without a repository, means the image.
	got, err = f.Images.Remove(t.Context(), string(d), image.RemoveOptions{})
	if err != nil || said(got, map[oci.ImageID]string{id: "x"}) != "-r/x:1 x layer" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := f.Store.Blobs.Stat(d); !errors.Is(err, errs.NotFound) {
		t.Errorf("manifest still there: %v", err)
	}
}

// A container that is created after InUse was called is found in its record.
func TestRemoveSeesContainerRecords(t *testing.T) {
	f := imagetest.New(t)
	id := f.Image(imagetest.Spec{Name: "x"})
	update(t, f, func(tx *meta.Tx) error {
		raw, err := json.Marshal(map[string]any{"image": id, "chain": []string{}})
		if err != nil {
			return err
		}
		return tx.Containers.Put(ctr, raw)
	})
	if _, err := f.Images.Remove(t.Context(), "x", image.RemoveOptions{}); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "container 0123456789ab is using") {
		t.Errorf("err %v", err)
	}
}

func TestRemoveKeepsSharedLayersAndLeases(t *testing.T) {
	f := imagetest.New(t)
	a, b, c := imagetest.Tar(t, "a", "1"), imagetest.Tar(t, "b", "2"), imagetest.Tar(t, "c", "3")
	one := f.Image(imagetest.Spec{Name: "one", Layers: [][]byte{a, b}})
	f.Image(imagetest.Spec{Name: "two", Layers: [][]byte{a, c}, Hours: 1})
	img, _ := f.Images.Get(t.Context(), "one")
	lease := f.Store.Lease()
	lease.Layer(img.Chain)
	got, err := f.Images.Remove(t.Context(), "one", image.RemoveOptions{})
	if err != nil || said(got, map[oci.ImageID]string{one: "one"}) != "-one:latest one layer" {
		t.Errorf("%v %v", got, err)
	}
	if !slices.Contains(f.Driver.Files(), img.Chain[1].Hex()) {
		t.Error("a leased layer went")
	}
	lease.Release()
}

func TestPrune(t *testing.T) {
	for _, c := range []struct {
		name    string
		filters filter.Args
		inUse   string
		want    string
	}{
		{"dangling", nil, "", "dangling layer"},
		{"dangling, said", filter.Args{"dangling": {"true"}}, "", "dangling layer"},
		{"dangling in use", nil, "dangling", ""},
		{"all", filter.Args{"dangling": {"false"}}, "", "-top:latest top mid layer dangling layer -h:5000/team/other:v1 -other:v2 -h:5000/team/other@ other layer -base:1 base layer"},
		{"all but what is used", filter.Args{"dangling": {"false"}}, "top", "dangling layer -h:5000/team/other:v1 -other:v2 -h:5000/team/other@ other layer -base:1"},
		{"label", filter.Args{"dangling": {"0"}, "label": {"kind=top"}}, "", "-top:latest top mid layer"},
		{"label not", filter.Args{"dangling": {"0"}, "label!": {"kind"}}, "", "dangling layer -h:5000/team/other:v1 -other:v2 -h:5000/team/other@ other layer"},
		{"until", filter.Args{"dangling": {"0"}, "until": {imagetest.Day.Add(150 * time.Minute).Format(time.RFC3339)}}, "", "-top:latest top mid layer -base:1 base layer"},
		{"unused", filter.Args{"dangling": {"0"}, "unused": {"24h"}}, "", "-top:latest top mid layer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, names := gallery(t)
			for id, n := range names {
				if n == c.inUse {
					f.InUse[id] = []string{ctr}
				}
				if n == "top" {
					setUsed(t, f, id, time.Now().Add(-48*time.Hour))
				}
			}
			got, freed, err := f.Images.Prune(t.Context(), image.PruneOptions{Filters: c.filters})
			if err != nil {
				t.Fatal(err)
			}
			// Images with as many ancestors are removed in the order of their creation times, which may be equal.
			if a, b := sortedWords(said(got, names)), sortedWords(c.want); a != b {
				t.Errorf("got  %q\nwant %q", said(got, names), c.want)
			}
			if (freed > 0) != strings.Contains(c.want, "layer") {
				t.Errorf("freed %d", freed)
			}
			checkFiles(t, f)
		})
	}
	f, _ := gallery(t)
	if _, _, err := f.Images.Prune(t.Context(), image.PruneOptions{Filters: filter.Args{"reference": {"x"}}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("reference: %v", err)
	}
}

func sortedWords(s string) string {
	w := strings.Fields(s)
	slices.Sort(w)
	return strings.Join(w, " ")
}

func TestRemoveEvents(t *testing.T) {
	f := imagetest.New(t)
	f.Image(imagetest.Spec{Name: "x", Labels: map[string]string{"l": "1"}})
	if _, err := f.Images.Remove(t.Context(), "x", image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	past, _ := f.Events.Listen(t.Context())
	var got []string
	for _, e := range past {
		got = append(got, e.Action+" "+e.Attributes["l"])
	}
	if d := cmp.Diff([]string{"tag 1", "untag 1", "delete 1"}, got); d != "" {
		t.Error(d)
	}
}

// An image whose record is damaged can be listed, removed and brought again, and the rest of the store works on.
func TestDamagedRecord(t *testing.T) {
	f := imagetest.New(t)
	spec := imagetest.Spec{Name: "one", Layers: [][]byte{imagetest.Tar(t, "a", "a")}}
	one := f.Image(spec)
	two := f.Image(imagetest.Spec{Name: "two", Layers: [][]byte{imagetest.Tar(t, "b", "b")}, Hours: 1})
	f.Damage(one)
	if _, err := f.Images.Get(t.Context(), "one"); !errors.Is(err, errs.DataLoss) {
		t.Errorf("Get = %v, want class DataLoss", err)
	}
	if list, err := f.Images.List(t.Context(), image.ListOptions{}); err != nil || len(list) != 2 || list[1].ID != one {
		t.Errorf("List = %v, %v; want both images", list, err)
	}
	if again := f.Image(spec); again != one {
		t.Errorf("made again as %s, want %s", again, one)
	}
	if img, err := f.Images.Get(t.Context(), "one"); err != nil || len(img.Chain) != 1 {
		t.Errorf("Get after it was made again = %+v, %v", img, err)
	}
	f.Damage(one)
	got, err := f.Images.Remove(t.Context(), "one", image.RemoveOptions{})
	if err != nil || said(got, map[oci.ImageID]string{one: "one"}) != "-one:latest one" {
		t.Errorf("Remove = %v, %v", got, err)
	}
	if _, err := f.Store.Collect(t.Context()); err != nil {
		t.Errorf("Collect after the removal: %v", err)
	}
	if img, err := f.Images.Get(t.Context(), "two"); err != nil || img.ID != two {
		t.Errorf("the other image: %v, %v", img, err)
	}
}
