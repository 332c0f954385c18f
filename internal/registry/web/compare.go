package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/registry/content"
)

const maxDifferences = 2000 // files that are shown

// setting is a part of the config of two images that differs.
type setting struct{ Name, Before, After string }

// difference is a file that differs between two images.
type difference struct {
	Path, What    string
	Before, After *entry
}

// compare shows what is different in another image of the repository.
func (v *visit) compare(m *manifest) error {
	reference := v.r.URL.Query().Get("with")
	if reference == "" {
		return errNoPage
	}
	other, err := v.resolve(m.Repo, reference)
	if err != nil {
		return err
	}
	data := map[string]any{"A": m, "B": other}
	if m, other, err = v.samePlatform(m, other); err != nil {
		return err
	}
	before, err := v.config(m)
	if err != nil {
		return noImage(err, m)
	}
	after, err := v.config(other)
	if err != nil {
		return noImage(err, other)
	}
	data["Platform"], data["Settings"] = before.Platform().String(), settings(before, after)
	common := 0
	a, b := m.Image.Layers, other.Image.Layers
	for common < len(a) && common < len(b) && a[common].Digest == b[common].Digest {
		common++
	}
	data["Common"], data["Before"], data["After"] = common, a[common:], b[common:]
	data["Sizes"] = [2]int64{m.size(), other.size()}
	files, cut, err := v.differences(m.Repo, a[common:], b[common:])
	switch {
	case errors.Is(err, errs.NotFound):
		data["NoFiles"] = "The bytes of a layer are not in this registry."
	case errors.Is(err, errs.Invalid):
		data["NoFiles"] = err.Error()
	case err != nil:
		return err
	}
	data["Total"] = len(files)
	if len(files) > maxDifferences {
		files = files[:maxDifferences]
	}
	data["Files"], data["Cut"] = files, cut
	v.show("compare", http.StatusOK, "What is different", data)
	return nil
}

func noImage(err error, m *manifest) error {
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.Conflict, "%s is no image whose config is in this registry", m.Reference)
	}
	return err
}

// samePlatform returns images of one platform, when one of the manifests is an index: that of the other, or the first.
func (v *visit) samePlatform(a, b *manifest) (*manifest, *manifest, error) {
	pick := func(m *manifest, want string) (*manifest, error) {
		for _, d := range m.Index.Manifests {
			if p := d.Platform; p != nil && p.OS != "unknown" && (want == "" || p.String() == want) {
				found, err := v.load(m.Repo, content.Digest(d.Digest))
				if err == nil {
					found.Reference = m.Reference
				}
				return found, err
			}
		}
		return nil, errs.New(errs.Conflict, "%s has no image for %s", m.Reference, want)
	}
	platform := func(m *manifest) string {
		if config, err := v.config(m); err == nil {
			return config.Platform().String()
		}
		return ""
	}
	var err error
	if a.Index != nil && b.Index == nil {
		a, err = pick(a, platform(b))
	} else if a.Index != nil {
		a, err = pick(a, v.r.URL.Query().Get("platform"))
	}
	if err == nil && b.Index != nil {
		b, err = pick(b, platform(a))
	}
	return a, b, err
}

// settings returns the parts of two configs that differ.
func settings(a, b *oci.Config) (list []setting) {
	values := func(c *oci.Config) map[string]string {
		all := map[string]string{}
		raw, err := json.Marshal(c.Config)
		var fields map[string]json.RawMessage
		if err != nil || json.Unmarshal(raw, &fields) != nil {
			return all
		}
		for name, v := range fields {
			all[name] = string(v)
		}
		delete(all, "Env")
		for _, e := range c.Config.Env {
			name, value, _ := strings.Cut(e, "=")
			all["Env "+name] = value
		}
		delete(all, "Labels")
		for name, value := range c.Config.Labels {
			all["Label "+name] = value
		}
		all["Platform"], all["Author"] = c.Platform().String(), c.Author
		return all
	}
	x, y := values(a), values(b)
	names := map[string]bool{}
	for _, m := range []map[string]string{x, y} {
		for name := range m {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if x[name] != y[name] {
			list = append(list, setting{name, x[name], y[name]})
		}
	}
	return list
}

// overlay has what a stack of layers does to what is below it.
type overlay struct {
	files  map[string]*entry
	hidden map[string]bool // paths; a directory that is replaced ends in a slash
	cut    bool
}

func (v *visit) overlay(repo content.Repository, layers []oci.Descriptor) (*overlay, error) {
	o := &overlay{files: map[string]*entry{}, hidden: map[string]bool{}}
	total := 0
	for _, l := range layers {
		t, err := v.h.trees.read(v.r.Context(), v.h.Repositories, repo, content.Digest(l.Digest))
		if err != nil {
			return nil, err
		}
		if total += len(t.entries); total > 2*maxEntries {
			return nil, errs.New(errs.Invalid, "the layers that differ have too many files")
		}
		o.cut = o.cut || t.cut
		o.hide(t)
		for i := range t.entries {
			if e := &t.entries[i]; e.Hides() == "" {
				o.files[e.Path] = e
			}
		}
	}
	return o, nil
}

// hide applies the whiteouts of a layer to what the layers below it made.
func (o *overlay) hide(t *tree) {
	gone := map[string]bool{}
	for i := range t.entries {
		if h := t.entries[i].Hides(); h != "" {
			gone[h], o.hidden[h] = true, true
		}
	}
	if len(gone) == 0 {
		return
	}
	for p := range o.files {
		for at := p; ; at = path.Dir(at) {
			if gone[at] || at != p && gone[at+"/"] {
				delete(o.files, p)
			}
			if at == "." {
				break
			}
		}
	}
}

// differences lists the files that the layers above the common ones change.
func (v *visit) differences(repo content.Repository, a, b []oci.Descriptor) (list []difference, cut bool, err error) {
	x, err := v.overlay(repo, a)
	if err != nil {
		return nil, false, err
	}
	y, err := v.overlay(repo, b)
	if err != nil {
		return nil, false, err
	}
	for p, after := range y.files {
		switch before := x.files[p]; {
		case before == nil && !after.Dir():
			list = append(list, difference{p, "added or changed", nil, after})
		case before != nil && !before.same(after):
			list = append(list, difference{p, "changed", before, after})
		}
	}
	for p, before := range x.files {
		if y.files[p] == nil && !before.Dir() {
			list = append(list, difference{p, "not there, or as in the layers below", before, nil})
		}
	}
	for p := range y.hidden {
		if !x.hidden[p] && y.files[p] == nil && x.files[p] == nil {
			list = append(list, difference{p, "removed", nil, nil})
		}
	}
	for p := range x.hidden {
		if !y.hidden[p] && x.files[p] == nil && y.files[p] == nil {
			list = append(list, difference{p, "not removed any more", nil, nil})
		}
	}
	slices.SortFunc(list, func(a, b difference) int { return strings.Compare(a.Path, b.Path) })
	return list, x.cut || y.cut, nil
}

// Sizes says how the size of the file differs.
func (d difference) Sizes() string {
	switch {
	case d.Before != nil && d.After != nil && d.Before.Size != d.After.Size:
		return fmt.Sprintf("%s, was %s", size(d.After.Size), size(d.Before.Size))
	case d.After != nil:
		return size(d.After.Size)
	case d.Before != nil:
		return "was " + size(d.Before.Size)
	}
	return ""
}
