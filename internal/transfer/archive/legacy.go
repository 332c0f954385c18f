package archive

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// legacy parses the layout without manifest.json: directories named after v1 IDs, and repositories. It makes a config from each v1
// chain, in the way in which Docker migrated its v1 images.
func (r *parser) legacy() error {
	var repos repositories
	f, err := r.in.find(fileRepositories)
	if err != nil {
		return err
	}
	if f != nil {
		if err := oci.DecodeJSON(f.data, &repos); err != nil {
			return errs.New(errs.Invalid, "archive: %s: %w", fileRepositories, err)
		}
	}
	all, err := r.v1Configs()
	if err != nil {
		return err
	}
	tops := map[string][]string{} // v1 ID → names
	var order []string
	for repo, tags := range repos {
		for tag, id := range tags {
			if tops[id] == nil {
				order = append(order, id)
			}
			tops[id] = append(tops[id], repo+":"+tag)
		}
	}
	if len(order) == 0 { // saved by ID: take the layers that are not the parent of another
		order = childless(all)
	}
	slices.Sort(order)
	for _, id := range order {
		w, err := r.v1Image(all, id)
		if err != nil {
			return err
		}
		names := tops[id]
		slices.Sort(names)
		for _, n := range names {
			if err := r.tag(w, n); err != nil {
				return err
			}
		}
	}
	return nil
}

type v1File struct {
	v1Config
	raw []byte
}

func (r *parser) v1Configs() (map[string]v1File, error) {
	all := map[string]v1File{}
	for name, f := range r.in.files {
		dir, base := path.Split(name)
		id := strings.TrimSuffix(dir, "/")
		if base != "json" || !oci.IsHex64(id) || f.data == nil {
			continue
		}
		v := v1File{raw: f.data}
		if err := oci.DecodeJSON(f.data, &v.v1Config); err != nil {
			return nil, errs.New(errs.Invalid, "archive: %s: %w", name, err)
		}
		if v.ID != "" && v.ID != id {
			return nil, errs.New(errs.Invalid, "archive: %s has the id %s", name, clip(v.ID))
		}
		all[id] = v
	}
	return all, nil
}

// childless returns the v1 IDs that are nobody's parent.
func childless(all map[string]v1File) []string {
	parents := map[string]bool{}
	for _, v := range all {
		parents[v.Parent] = true
	}
	var out []string
	for id := range all {
		if !parents[id] {
			out = append(out, id)
		}
	}
	return out
}

// v1Image follows the parents of a top layer and adds the image.
func (r *parser) v1Image(all map[string]v1File, top string) (*wanted, error) {
	var ids []string // top first
	seen := map[string]bool{}
	for id := top; id != ""; id = all[id].Parent {
		if _, ok := all[id]; !ok {
			return nil, errs.New(errs.Invalid, "archive: has no %s", clip(id)+"/json")
		}
		if seen[id] || len(ids) >= oci.MaxLayers {
			return nil, errs.New(errs.Invalid, "archive: layers of %s: too deep, or a parent of themselves", clip(top))
		}
		seen[id] = true
		ids = append(ids, id)
	}
	slices.Reverse(ids)
	files := make([]*file, len(ids))
	rootfs := oci.RootFS{Type: "layers"}
	var history []map[string]any
	for i, id := range ids {
		f, err := r.v1Layer(id)
		if err != nil {
			return nil, err
		}
		files[i] = f
		rootfs.DiffIDs = append(rootfs.DiffIDs, f.diffID)
		history = append(history, v1History(all[id].v1Config))
	}
	config, err := v1ToConfig(all[top].raw, rootfs, history)
	if err != nil {
		return nil, errs.New(errs.Invalid, "archive: %s: %w", clip(top)+"/json", err)
	}
	w, err := r.add(&file{name: top + "/json", data: config, digest: oci.DigestOf(config), size: int64(len(config))})
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		if err := r.setLayer(w, i, f); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (r *parser) v1Layer(id string) (*file, error) {
	f, err := r.in.find(id + "/layer.tar")
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, errs.New(errs.Invalid, "archive: has no %s/layer.tar", id)
	}
	if f.bad != nil {
		return nil, errs.New(errs.Invalid, "archive: %s/layer.tar: %w", id, f.bad)
	}
	if f.diffID == "" {
		if f.diffID, err = r.in.diffOf(f.data); err != nil {
			return nil, errs.New(errs.Invalid, "archive: %s/layer.tar: %w", id, err)
		}
	}
	return f, nil
}

func v1History(v v1Config) map[string]any {
	h := map[string]any{}
	if len(v.Created) > 0 {
		h["created"] = v.Created
	}
	if v.Author != "" {
		h["author"] = v.Author
	}
	if v.Comment != "" {
		h["comment"] = v.Comment
	}
	if v.ContainerConfig != nil && len(v.ContainerConfig.Cmd) > 0 {
		h["created_by"] = strings.Join(v.ContainerConfig.Cmd, " ")
	}
	return h
}

// v1ToConfig converts a v1 config: it removes the fields that only v1 has and adds rootfs, history and os.
func v1ToConfig(raw []byte, rootfs oci.RootFS, history []map[string]any) ([]byte, error) {
	var c map[string]json.RawMessage
	if err := oci.DecodeJSON(raw, &c); err != nil {
		return nil, err
	}
	for _, k := range []string{"id", "parent", "parent_id", "layer_id", "throwaway", "Size"} {
		delete(c, k)
	}
	c["rootfs"], c["history"] = marshal(rootfs), marshal(history)
	if _, ok := c["os"]; !ok {
		c["os"] = marshal("linux")
	}
	return marshal(c), nil
}
