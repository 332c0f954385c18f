package oci

import (
	"strings"

	"github.com/distribution/reference"

	"ply/internal/errs"
)

// Reference is a repository, optionally with a tag and a digest, normalised as by Docker: "mysql" is library/mysql of the hub. The
// zero value is not valid.
type Reference struct {
	named reference.Named
}

// ParseReference parses and normalises s. The error's class is errs.Invalid, also for 64 hex digits, which are an ID.
func ParseReference(s string) (Reference, error) {
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, errs.New(errs.Invalid, "invalid reference %q: %w", clip(s), err)
	}
	if d, ok := n.(reference.Digested); ok {
		if err := checkDigest(d.Digest().String()); err != nil {
			return Reference{}, errs.New(errs.Invalid, "invalid reference %q: %w", clip(s), err)
		}
	}
	return Reference{n}, nil
}

// IsZero reports whether r was never parsed.
func (r Reference) IsZero() bool { return r.named == nil }

// String returns the full form: domain, path, tag and digest.
func (r Reference) String() string {
	if r.named == nil {
		return ""
	}
	return r.named.String()
}

// Familiar returns the short form, without the hub's domain and library/.
func (r Reference) Familiar() string { return reference.FamiliarString(r.named) }

// FamiliarName returns the short form without tag and digest.
func (r Reference) FamiliarName() string { return reference.FamiliarName(r.named) }

// Name returns the full name of the repository: domain and path.
func (r Reference) Name() string { return r.named.Name() }

// Domain returns the registry's host with its port, if it has one.
func (r Reference) Domain() string { return reference.Domain(r.named) }

// Path returns the repository without its domain.
func (r Reference) Path() string { return reference.Path(r.named) }

// Tag returns the tag or "".
func (r Reference) Tag() string {
	if t, ok := r.named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// Digest returns the digest or "".
func (r Reference) Digest() Digest {
	if d, ok := r.named.(reference.Digested); ok {
		return Digest(d.Digest())
	}
	return ""
}

// Repository returns r without tag and digest.
func (r Reference) Repository() Reference { return Reference{reference.TrimNamed(r.named)} }

// WithDefaultTag returns r with the tag "latest" when it has neither tag nor digest.
func (r Reference) WithDefaultTag() Reference { return Reference{reference.TagNameOnly(r.named)} }

// WithTag returns r with this tag and without a digest.
func (r Reference) WithTag(tag string) (Reference, error) {
	n, err := reference.WithTag(reference.TrimNamed(r.named), tag)
	if err != nil {
		return Reference{}, errs.New(errs.Invalid, "invalid tag %q: %w", clip(tag), err)
	}
	return Reference{n}, nil
}

// WithDigest returns r with this digest and without a tag. When d is not well formed it returns r.
func (r Reference) WithDigest(d Digest) Reference {
	n, err := ParseReference(r.named.Name() + "@" + string(d))
	if err != nil {
		return r
	}
	return n
}

// TagIn returns the digest or else the tag, for messages.
func (r Reference) TagIn() string {
	if d := r.Digest(); d != "" {
		return string(d)
	}
	return r.Tag()
}

// MarshalText returns the full form.
func (r Reference) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText parses the full form.
func (r *Reference) UnmarshalText(b []byte) (err error) {
	*r, err = ParseReference(strings.TrimSpace(string(b)))
	return err
}
