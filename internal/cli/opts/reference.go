package opts

import (
	"errors"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Reference parses the name of an image. The error is docker's, which says what is wrong without repeating the name.
func Reference(s string) (oci.Reference, error) {
	ref, err := oci.ParseReference(s)
	if cause := errors.Unwrap(err); cause != nil {
		err = errs.New(errs.Invalid, "%w", cause)
	}
	return ref, err
}

// NewTag parses the name that a new tag gets. It returns the familiar form of the repository, and the tag, which is latest when
// s has none. A digest is refused.
func NewTag(s string) (repo, tag string, err error) {
	ref, err := Reference(s)
	if err != nil {
		return "", "", err
	}
	if ref.Digest() != "" {
		return "", "", errs.New(errs.Invalid, "refusing to create a tag with a digest reference")
	}
	ref = ref.WithDefaultTag()
	return ref.FamiliarName(), ref.Tag(), nil
}

// WithTag returns the familiar form of a name, with the tag latest when s has none. A name that does not parse is returned as
// it is.
func WithTag(s string) string {
	ref, err := oci.ParseReference(s)
	if err != nil {
		return s
	}
	return ref.WithDefaultTag().Familiar()
}
