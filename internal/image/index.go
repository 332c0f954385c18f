package image

import (
	"context"
	"errors"
	"slices"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
)

// Index is the index that a name means: the images of several platforms, or an image with its attestations.
type Index struct {
	oci.Descriptor
	Raw       []byte        // the exact bytes
	Images    []oci.ImageID // in the order of the index
	Artifacts []oci.Descriptor
	Blobs     []oci.Digest // what Artifacts list; the blob store has them
}

// PutIndexOptions are the options of PutIndex. The blob store has the bytes of all descriptors and blobs.
type PutIndexOptions struct {
	Index     oci.Descriptor
	Images    []PutOptions // with their manifests, without names
	Artifacts []oci.Descriptor
	Blobs     []oci.Digest
	Names     []oci.Reference
}

// Main returns the image that the names mean where only one can be meant: the one for this host, or else the first.
func (o *PutIndexOptions) Main() oci.ImageID {
	host, main := oci.HostPlatform(), o.Images[0].Config
	for _, p := range o.Images {
		if cfg, err := oci.DecodeConfig(p.Config); err == nil && host.Matches(cfg.Platform()) {
			main = p.Config
			break
		}
	}
	return oci.ImageID(oci.DigestOf(main))
}

// PutIndex records an index, the images that it lists and its names, in one transaction. Errors as Put.
func (s *Service) PutIndex(ctx context.Context, lease *store.Lease, o PutIndexOptions) (ids []oci.ImageID, err error) {
	r, err := prepareIndex(ctx, s, lease, o)
	if err != nil {
		return nil, err
	}
	if err := s.st.Meta.Update(r.write); err != nil {
		return nil, err
	}
	return r.rec.Images, nil
}

// putIndex is an index that was checked and can be written.
type putIndex struct {
	digest oci.Digest
	rec    meta.Index
	images []putRecord
}

func prepareIndex(ctx context.Context, s *Service, lease *store.Lease, o PutIndexOptions) (*putIndex, error) {
	if len(o.Images) == 0 {
		return nil, errs.New(errs.Invalid, "index %s: lists no image", o.Index.Digest.Short())
	}
	for _, d := range o.Artifacts {
		if _, err := s.st.Blobs.Stat(d.Digest); err != nil {
			return nil, errs.New(errs.Precondition, "index %s: manifest: %v", o.Index.Digest.Short(), err)
		}
	}
	for _, d := range o.Blobs {
		if _, err := s.st.Blobs.Stat(d); err != nil {
			return nil, errs.New(errs.Precondition, "index %s: attestation: %v", o.Index.Digest.Short(), err)
		}
	}
	r := &putIndex{
		digest: o.Index.Digest,
		rec:    meta.Index{MediaType: o.Index.MediaType, Size: o.Index.Size, Artifacts: o.Artifacts, Blobs: o.Blobs},
		images: make([]putRecord, len(o.Images)),
	}
	for i, p := range o.Images {
		p.Index = &o.Index
		var err error
		if r.images[i], err = s.prepare(ctx, lease, p); err != nil {
			return nil, err
		}
		r.rec.Images = append(r.rec.Images, r.images[i].id)
	}
	main := max(slices.Index(r.rec.Images, o.Main()), 0)
	for _, n := range o.Names {
		if n.IsZero() {
			return nil, errs.New(errs.Invalid, "index %s: empty name", o.Index.Digest.Short())
		}
		r.images[main].Names = append(r.images[main].Names, nameKey(n))
	}
	r.images[main].index = o.Index.Digest
	return r, nil
}

func (r *putIndex) write(tx *meta.Tx) error {
	if err := tx.Indexes.Put(r.digest, r.rec); err != nil {
		return err
	}
	for _, i := range r.images {
		if err := i.write(tx); err != nil {
			return err
		}
	}
	return nil
}

// Index returns the index that a reference means, and nil when it means an image only.
func (s *Service) Index(ref string) (*Index, error) {
	var out *Index
	err := view(context.Background(), s, ref, func(tx *meta.Tx) error {
		m, err := resolve(tx, ref)
		if err != nil || m.name.IsZero() {
			return err
		}
		name, err := tx.Names.Get(m.name.String())
		if err != nil || name.Index == "" {
			return err
		}
		rec, err := tx.Indexes.Get(name.Index)
		if errors.Is(err, errs.NotFound) {
			return nil // a repair has dropped a damaged record
		}
		if err != nil {
			return err
		}
		out = &Index{
			Descriptor: oci.Descriptor{MediaType: rec.MediaType, Digest: name.Index, Size: rec.Size},
			Images:     rec.Images, Artifacts: rec.Artifacts, Blobs: rec.Blobs,
		}
		return nil
	})
	if err != nil || out == nil {
		return nil, err
	}
	if out.Raw, err = s.st.Blobs.Bytes(out.Digest, oci.MaxManifest); err != nil {
		return nil, errs.New(errs.DataLoss, "index %s: %v", out.Digest.Short(), err).WithHint("Build the image again.")
	}
	return out, nil
}

// setName records a name. The index that it meant before is forgotten when no other name means it.
func setName(tx *meta.Tx, name string, rec meta.Name) error {
	old, err := tx.Names.Get(name)
	if err := tx.Names.Put(name, rec); err != nil {
		return err
	}
	if err == nil && old.Index != "" && old.Index != rec.Index {
		_, err := forgetIndex(tx, old.Index)
		return err
	}
	return nil
}

// forgetIndex deletes the record of an index that no name means any more, and returns what it was.
func forgetIndex(tx *meta.Tx, d oci.Digest) (*meta.Index, error) {
	for _, n := range tx.Names.All() {
		if n.Err != nil || n.Value.Index == d {
			return nil, nil //nolint:nilnil // it stays; a damaged name may mean it
		}
	}
	rec, err := tx.Indexes.Get(d)
	if errors.Is(err, errs.NotFound) {
		return nil, nil //nolint:nilnil // it is gone already
	}
	if err != nil {
		return nil, err
	}
	return &rec, tx.Indexes.Delete(d)
}

// listed returns the images without a name that an index lists.
func (c *catalog) listed(tx *meta.Tx) map[oci.ImageID]bool {
	m := map[oci.ImageID]bool{}
	for _, rec := range tx.Indexes.All() {
		for _, id := range rec.Value.Images {
			if c.names[id].count() == 0 {
				m[id] = true
			}
		}
	}
	return m
}

// withSiblings returns images and those that the same indexes list.
func withSiblings(tx *meta.Tx, ids []oci.ImageID) []oci.ImageID {
	out := slices.Clone(ids)
	for _, rec := range tx.Indexes.All() {
		if slices.ContainsFunc(rec.Value.Images, func(id oci.ImageID) bool { return slices.Contains(ids, id) }) {
			out = append(out, rec.Value.Images...)
		}
	}
	return out
}

// dropIndex forgets the index of a name that was removed, and notes the images that only it listed.
func (r *remover) dropIndex(d oci.Digest) error {
	rec, err := forgetIndex(r.tx, d)
	if err != nil || rec == nil {
		return err
	}
	r.orphans = append(r.orphans, rec.Images...)
	r.blobs = append(append(r.blobs, d), rec.Blobs...)
	for _, a := range rec.Artifacts {
		r.blobs = append(r.blobs, a.Digest)
	}
	return nil
}

// dropOrphans removes the images of indexes that were removed, as far as nothing needs them.
func (r *remover) dropOrphans() error {
	for _, id := range r.orphans {
		if r.c.names[id].count() > 0 {
			continue
		}
		if err := r.delete(id, false, false, true); err != nil {
			return err
		}
	}
	r.orphans = nil
	return nil
}
