package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
)

var archPattern = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)

// Put records an image whose layers are in the store: its config, its manifest if it has one, and its names, in one transaction. An
// image that is recorded already keeps its names and manifests and gets the new ones. Put publishes no event.
//
// Put checks the config, that the blob store has the manifest, that the manifest lists this config and as many layers, and that
// the driver has every layer. errs.Invalid for malformed or inconsistent content, errs.Precondition for a missing layer or blob.
//
// The lease protects the layers and blobs. With nil, Put uses a lease of its own for the config.
func (s *Service) Put(ctx context.Context, lease *store.Lease, o PutOptions) (oci.ImageID, error) {
	ids, err := s.PutAll(ctx, lease, []PutOptions{o})
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

// PutAll is Put for several images, or for several manifests of one image, and PutIndex for several indexes, in one transaction. It returns the IDs of all.
func (s *Service) PutAll(ctx context.Context, lease *store.Lease, all []PutOptions, indexes ...PutIndexOptions) (ids []oci.ImageID, err error) {
	if lease == nil {
		lease = s.st.Lease()
		defer lease.Release()
	}
	records := make([]putRecord, len(all))
	for i, o := range all {
		if records[i], err = s.prepare(ctx, lease, o); err != nil {
			return nil, err
		}
		ids = append(ids, records[i].id)
	}
	lists := make([]*putIndex, len(indexes))
	for i, o := range indexes {
		if lists[i], err = prepareIndex(ctx, s, lease, o); err != nil {
			return nil, err
		}
	}
	err = s.st.Meta.Update(func(tx *meta.Tx) error {
		for _, r := range records {
			if err := r.write(tx); err != nil {
				return err
			}
		}
		for _, x := range lists {
			if err := x.write(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

// putRecord is a PutOptions that was checked.
type putRecord struct {
	PutOptions
	id    oci.ImageID
	chain oci.Chain
	infos []layer.Info
	index oci.Digest // what the names mean besides the image; "" = nothing
}

func (s *Service) prepare(ctx context.Context, lease *store.Lease, o PutOptions) (r putRecord, err error) {
	cfg, err := CheckConfig(o.Config)
	if err != nil {
		return r, err
	}
	r = putRecord{PutOptions: o, id: oci.ImageID(oci.DigestOf(o.Config)), chain: cfg.RootFS.DiffIDs}
	if err := s.storeConfig(lease, r.id, o.Config); err != nil {
		return r, err
	}
	if err := s.checkManifest(r.id, cfg, &r.PutOptions); err != nil {
		return r, err
	}
	r.Names = make([]oci.Reference, len(o.Names))
	for i, n := range o.Names {
		if n.IsZero() {
			return r, errs.New(errs.Invalid, "image %s: empty name", r.id.Short())
		}
		r.Names[i] = nameKey(n)
	}
	if r.infos, err = s.checkLayers(ctx, r.chain); err != nil {
		return r, fmt.Errorf("image %s: %w", r.id.Short(), err)
	}
	return r, nil
}

// CheckConfig decodes a config. errs.Invalid when it is malformed or for a platform that the engine cannot run.
func CheckConfig(raw []byte) (*oci.Config, error) {
	cfg, err := oci.DecodeConfig(raw)
	if err != nil {
		return nil, err
	}
	return cfg, checkPlatform(cfg)
}

func checkPlatform(cfg *oci.Config) error {
	if !cfg.ForLinux() {
		return errs.New(errs.Invalid, "image operating system %q cannot be used on this platform", clip(cfg.OS))
	}
	if cfg.Architecture != "" && !archPattern.MatchString(cfg.Architecture) {
		return errs.New(errs.Invalid, "image architecture %q is not well formed", clip(cfg.Architecture))
	}
	return nil
}

// storeConfig stores the config, unless the blob store has it undamaged.
func (s *Service) storeConfig(lease *store.Lease, id oci.ImageID, raw []byte) error {
	lease.Blob(oci.Digest(id))
	if have, err := s.st.Blobs.Bytes(oci.Digest(id), oci.MaxConfig); err == nil && bytes.Equal(have, raw) {
		return nil
	}
	_, err := s.st.Blobs.Put(raw)
	return err
}

// checkManifest compares the manifest, if there is one, with the config. It sets o.Format.
func (s *Service) checkManifest(id oci.ImageID, cfg *oci.Config, o *PutOptions) error {
	if o.Manifest == nil {
		if o.Index != nil {
			return errs.New(errs.Invalid, "image %s: an index without a manifest", id.Short())
		}
		if o.Format == "" {
			o.Format = oci.FormatOCI
		}
		return nil
	}
	d := o.Manifest
	raw, err := s.st.Blobs.Bytes(d.Digest, oci.MaxManifest)
	if err != nil {
		return errs.New(errs.Precondition, "image %s: manifest: %v", id.Short(), err)
	}
	m, err := oci.DecodeManifest(raw, d.MediaType)
	if err != nil {
		return errs.New(errs.Invalid, "image %s: %w", id.Short(), err)
	}
	switch {
	case int64(len(raw)) != d.Size:
		return errs.New(errs.Invalid, "image %s: manifest %s has %d bytes, its descriptor says %d", id.Short(), d.Digest, len(raw), d.Size)
	case m.Config.Digest != oci.Digest(id):
		return errs.New(errs.Invalid, "image %s: manifest %s is of another image, %s", id.Short(), d.Digest, m.Config.Digest.Short())
	case len(m.Layers) != len(cfg.RootFS.DiffIDs):
		return errs.New(errs.Invalid, "image %s: manifest has %d layers, config has %d", id.Short(), len(m.Layers), len(cfg.RootFS.DiffIDs))
	}
	if o.Format == "" {
		o.Format = oci.FormatOf(m.MediaType)
	}
	return s.checkIndex(id, o)
}

// checkIndex checks that the index lists the manifest.
func (s *Service) checkIndex(id oci.ImageID, o *PutOptions) error {
	if o.Index == nil {
		return nil
	}
	raw, err := s.st.Blobs.Bytes(o.Index.Digest, oci.MaxManifest)
	if err != nil {
		return errs.New(errs.Precondition, "image %s: index: %v", id.Short(), err)
	}
	index, err := oci.DecodeIndex(raw, o.Index.MediaType)
	if err != nil {
		return errs.New(errs.Invalid, "image %s: %w", id.Short(), err)
	}
	for _, d := range index.Manifests {
		if d.Digest == o.Manifest.Digest {
			return nil
		}
	}
	return errs.New(errs.Invalid, "image %s: index %s does not list manifest %s", id.Short(), o.Index.Digest, o.Manifest.Digest)
}

// checkLayers checks that the driver has every layer of a chain.
func (s *Service) checkLayers(ctx context.Context, chain oci.Chain) ([]layer.Info, error) {
	infos := make([]layer.Info, len(chain))
	for i := range chain {
		info, err := s.st.Layers.Stat(ctx, chain[:i+1])
		if errors.Is(err, errs.NotFound) {
			return nil, errs.New(errs.Precondition, "layer %s (%d of %d): %v", chain[i].Short(), i+1, len(chain), err)
		}
		if err != nil {
			return nil, fmt.Errorf("layer %s (%d of %d): %w", chain[i].Short(), i+1, len(chain), err)
		}
		infos[i] = info
	}
	return infos, nil
}

// write records the image. If it is recorded already, write adds what is new.
func (r *putRecord) write(tx *meta.Tx) error {
	now := time.Now().UTC()
	rec, err := tx.Images.Get(r.id)
	if err != nil { // the image is new, or its record is damaged
		rec = meta.Image{Format: r.Format, Created: now, LastUsed: now, Step: r.Step}
	}
	if r.Step == "" {
		rec.Step = ""
	}
	rec.Chain = r.chain
	if rec.Format == "" {
		rec.Format = r.Format
	}
	if r.Parent != "" && r.Parent != r.id && r.Parent != rec.Parent && tx.Images.Has(r.Parent) && !descends(tx, r.Parent, r.id) {
		rec.Parent = r.Parent
	}
	for _, d := range []*oci.Descriptor{r.Index, r.Manifest} {
		if d == nil {
			continue
		}
		rec.Format = oci.FormatOf(d.MediaType)
		rec.Manifests = slices.DeleteFunc(rec.Manifests, func(have oci.Descriptor) bool { return have.Digest == d.Digest })
		rec.Manifests = append(rec.Manifests, *d) // the last one is current
	}
	if err := tx.Images.Put(r.id, rec); err != nil {
		return err
	}
	for i, info := range r.infos {
		if _, err := tx.Layers.Get(r.chain[i]); err != nil { // the record is absent or damaged
			if err := tx.Layers.Put(r.chain[i], meta.Layer{Size: info.Size, TarSize: info.TarSize}); err != nil {
				return err
			}
		}
	}
	for _, n := range r.Names {
		if err := setName(tx, n.String(), meta.Name{Image: r.id, Updated: now, Index: r.index}); err != nil {
			return err
		}
	}
	return nil
}

// descends reports whether ancestor is id or one of its ancestors.
func descends(tx *meta.Tx, id, ancestor oci.ImageID) bool {
	images := meta.Raw(tx.Images)
	seen := map[oci.ImageID]bool{}
	for id != "" && !seen[id] {
		if id == ancestor {
			return true
		}
		seen[id] = true
		raw, err := images.Get(id)
		if err != nil {
			break
		}
		id = parentOf(raw)
	}
	return false
}

// parentOf reads the parent in a stored record, and stops there: an image that was built has as many ancestors as steps, and each has a long chain.
func parentOf(raw json.RawMessage) oci.ImageID {
	d := json.NewDecoder(bytes.NewReader(raw))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return ""
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return ""
		}
		if key == "parent" {
			var id oci.ImageID
			if d.Decode(&id) != nil {
				return ""
			}
			return id
		}
		var other json.RawMessage
		if d.Decode(&other) != nil {
			return ""
		}
	}
	return ""
}

// Create encodes a config, records an image with it and names the image. The layers are in the store. The same config gives the
// same image. Errors as Put; errs.NotFound for an unknown parent.
func (s *Service) Create(ctx context.Context, lease *store.Lease, o CreateOptions) (oci.ImageID, error) {
	cfg := o.Config
	if cfg.Created == nil {
		now := time.Now().UTC()
		cfg.Created = &now
	}
	cfg.RootFS.Type = "layers"
	cfg.History = slices.Clone(cfg.History)
	if o.Message != "" {
		if cfg.Comment == "" {
			cfg.Comment = o.Message
		}
		if n := len(cfg.History); n > 0 && cfg.History[n-1].Comment == "" {
			cfg.History[n-1].Comment = o.Message
		}
	}
	if cfg.OS == "" {
		cfg.OS = "linux"
	}
	if cfg.Architecture == "" {
		p := oci.HostPlatform()
		cfg.Architecture, cfg.Variant = p.Architecture, p.Variant
	}
	put := PutOptions{Format: o.Format, Parent: o.Parent}
	if put.Format == "" {
		put.Format = s.opts.Format
	}
	if o.Parent != "" {
		err := s.st.Meta.View(func(tx *meta.Tx) error {
			rec, err := tx.Images.Get(o.Parent)
			if errors.Is(err, errs.NotFound) {
				return notFound(string(o.Parent))
			}
			if o.Format == "" && rec.Format != "" {
				put.Format = rec.Format
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	if !o.Name.IsZero() {
		name, err := tagName(o.Name)
		if err != nil {
			return "", err
		}
		put.Names = []oci.Reference{name}
	}
	raw, err := EncodeConfig(cfg)
	if err != nil {
		return "", err
	}
	put.Config = raw
	id, err := s.Put(ctx, lease, put)
	if err == nil && len(put.Names) > 0 {
		s.Publish("tag", id, put.Names[0].Familiar())
	}
	return id, err
}

// EncodeConfig encodes a config as docker does: without white space, the keys of the outer object sorted, those of the inner
// objects in docker's order. The same config gives the same bytes.
func EncodeConfig(cfg oci.Config) ([]byte, error) {
	if cfg.RootFS.DiffIDs == nil {
		cfg.RootFS.DiffIDs = oci.Chain{} // some readers do not accept null
	}
	flat, err := json.Marshal(cfg)
	if err != nil {
		return nil, errs.New(errs.Invalid, "image config: %w", err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(flat, &fields); err != nil {
		return nil, errs.New(errs.Internal, "image config: %w", err)
	}
	out, err := json.Marshal(fields)
	if err != nil {
		return nil, errs.New(errs.Internal, "image config: %w", err)
	}
	if len(out) > oci.MaxConfig {
		return nil, errs.New(errs.Invalid, "image config: is %d bytes, the limit is %d", len(out), oci.MaxConfig)
	}
	return out, nil
}

// clip shortens text of an image for an error.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
