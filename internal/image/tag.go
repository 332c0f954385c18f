package image

import (
	"context"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// Find returns the ID of the image that a reference means, without reading the image, and the recorded name by which it was
// found; the zero name when it was found by its ID or a digest. Errors as Get.
func (s *Service) Find(ref string) (id oci.ImageID, name oci.Reference, err error) {
	err = view(context.Background(), s, ref, func(tx *meta.Tx) error {
		m, err := resolve(tx, ref)
		id, name = m.id, m.name
		return err
	})
	return id, name, err
}

// Lookup is Find without the name.
func (s *Service) Lookup(ref string) (oci.ImageID, error) {
	id, _, err := s.Find(ref)
	return id, err
}

// Tags returns the names with a tag of a repository, sorted. It is no error when there are none.
func (s *Service) Tags(repository oci.Reference) (names []oci.Reference, err error) {
	err = s.st.Meta.View(func(tx *meta.Tx) error {
		for key, rec := range tx.Names.Prefix(repository.Name() + ":") {
			r, err := oci.ParseReference(key)
			if err != nil || r.Digest() != "" || r.Name() != repository.Name() {
				continue
			}
			if rec.Err != nil {
				return damagedName(rec.Err)
			}
			if tx.Images.Has(rec.Value.Image) {
				names = append(names, r)
			}
		}
		return nil
	})
	return names, err
}

// Tag adds a name to an image. Another image that has the name loses it. A name without a tag gets the tag latest. errs.Invalid
// for a name with a digest.
func (s *Service) Tag(ctx context.Context, ref string, name oci.Reference) error {
	name, err := tagName(name)
	if err != nil {
		return err
	}
	if err := view(ctx, s, ref, func(tx *meta.Tx) error { _, err := resolve(tx, ref); return err }); err != nil {
		return err
	}
	var id oci.ImageID
	err = s.st.Meta.Update(func(tx *meta.Tx) error {
		m, err := resolve(tx, ref)
		if err != nil {
			return err
		}
		id = m.id
		rec := meta.Name{Image: id, Updated: time.Now().UTC()}
		if from, err := tx.Names.Get(m.name.String()); err == nil && !m.name.IsZero() {
			rec.Index = from.Index
		}
		return setName(tx, name.String(), rec)
	})
	if err != nil {
		return err
	}
	s.Publish("tag", id, name.Familiar())
	return nil
}

func tagName(name oci.Reference) (oci.Reference, error) {
	switch {
	case name.IsZero():
		return name, errs.New(errs.Invalid, "invalid reference format: repository name must have at least one component")
	case name.Digest() != "":
		return name, errs.New(errs.Invalid, "refusing to create a tag with a digest reference")
	case name.FamiliarName() == "sha256":
		return name, errs.New(errs.Invalid, "refusing to create an ambiguous tag using digest algorithm as name")
	}
	return name.WithDefaultTag(), nil
}
