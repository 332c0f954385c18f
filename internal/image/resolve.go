package image

import (
	"errors"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// match is the image that a reference means.
type match struct {
	id   oci.ImageID
	name oci.Reference // the recorded name by which the image was found; zero = by an ID or a digest of a manifest
}

// notFound returns docker's error for an image that does not exist. A name in it has its default tag.
func notFound(ref string) error {
	if oci.IsHex64(ref) {
		ref = "sha256:" + ref
	} else if !isDigest(ref) {
		if r, err := oci.ParseReference(ref); err == nil {
			ref = r.WithDefaultTag().Familiar()
		}
	}
	return errs.New(errs.NotFound, "No such image: %s", ref)
}

func isDigest(s string) bool {
	_, err := oci.ParseDigest(s)
	return err == nil
}

// resolve finds the image that a reference means, as Get defines it. It reads records only, so that it also finds an image whose
// config is damaged, and by its ID one whose record is. errs.DataLoss for a name whose record is damaged; the match then has the
// name.
func resolve(tx *meta.Tx, ref string) (match, error) {
	if ref == "" {
		return match{}, errs.New(errs.Invalid, "invalid reference format: image name is empty")
	}
	if oci.IsHex64(ref) || isDigest(ref) {
		return resolveDigest(tx, ref)
	}
	parsed, parseErr := oci.ParseReference(ref)
	if parseErr == nil {
		key := nameKey(parsed)
		rec, err := tx.Names.Get(key.String())
		if err == nil && tx.Images.Has(rec.Image) {
			return match{id: rec.Image, name: key}, nil
		}
		if errors.Is(err, errs.DataLoss) {
			return match{name: key}, damagedName(err)
		}
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	if isHex(prefix) {
		id, err := resolvePrefix(tx, prefix)
		if err != nil || id != "" {
			return match{id: id}, err
		}
	}
	if parseErr != nil && !isHex(prefix) {
		return match{}, parseErr
	}
	return match{}, notFound(ref)
}

// nameKey returns the form in which a name is recorded: repository:tag or repository@digest.
func nameKey(r oci.Reference) oci.Reference {
	if d := r.Digest(); d != "" {
		return r.Repository().WithDigest(d)
	}
	return r.WithDefaultTag()
}

// resolveDigest finds an image by its ID, by the digest of one of its manifests or indexes, or by the chain ID of its layers.
func resolveDigest(tx *meta.Tx, ref string) (match, error) {
	d := oci.Digest("sha256:" + strings.TrimPrefix(ref, "sha256:"))
	if tx.Images.Has(oci.ImageID(d)) {
		return match{id: oci.ImageID(d)}, nil
	}
	var listed oci.ImageID
	for id, rec := range tx.Images.All() {
		for _, m := range rec.Value.Manifests {
			switch {
			case m.Digest != d:
			case oci.IsIndex(m.MediaType):
				listed = id
			default:
				return match{id: id}, nil
			}
		}
	}
	// Several images may have this index. A name with its digest refers to the image that was pulled last.
	for key, rec := range tx.Names.All() {
		if strings.HasSuffix(key, "@"+string(d)) && tx.Images.Has(rec.Value.Image) {
			return match{id: rec.Value.Image}, nil
		}
	}
	if listed != "" {
		return match{id: listed}, nil
	}
	if id, err := resolveStack(tx, d.Hex()); err != nil || id != "" {
		return match{id: id}, err
	}
	return match{}, notFound(ref)
}

// resolvePrefix finds an image by a prefix of its ID, else of the digest of one of its manifests, else of the chain ID of its layers. It returns "" when none matches.
func resolvePrefix(tx *meta.Tx, prefix string) (oci.ImageID, error) {
	var found oci.ImageID
	for id := range tx.Images.Prefix(oci.ImageID("sha256:" + prefix)) {
		if found != "" {
			return "", ambiguous(prefix)
		}
		found = id
	}
	if found != "" {
		return found, nil
	}
	var digest oci.Digest // the digest by which found was found
	for id, rec := range tx.Images.All() {
		for _, m := range rec.Value.Manifests {
			if !hasHexPrefix(string(m.Digest), prefix) || found == id {
				continue
			}
			if found != "" && digest == m.Digest {
				one, err := resolveDigest(tx, string(digest))
				return one.id, err
			}
			if found != "" {
				return "", ambiguous(prefix)
			}
			found, digest = id, m.Digest
		}
	}
	if found == "" {
		return resolveStack(tx, prefix)
	}
	return found, nil
}

func ambiguous(prefix string) error {
	return errs.New(errs.Invalid, "multiple IDs found with provided prefix: %s", prefix)
}

func isHex(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
