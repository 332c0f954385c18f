package oci

import (
	"strings"

	"github.com/distribution/reference"

	"ply/internal/errs"
)

// Reference is a repository with, perhaps, a tag and a digest, normalised as Docker does:
// "mysql" means library/mysql of the hub. The zero value is not valid.
type Reference struct {
	named reference.Named
}

// ParseReference normalises s. A 64-digit hex string is an ID, never a name.
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

// String is the full form: docker's canonical domain, path, tag, digest.
func (r Reference) String() string {
	if r.named == nil {
		return ""
	}
	return r.named.String()
}

// Familiar is the form that people type: without the hub's domain and library/.
func (r Reference) Familiar() string { return reference.FamiliarString(r.named) }

// FamiliarName is Familiar without tag and digest.
func (r Reference) FamiliarName() string { return reference.FamiliarName(r.named) }

// Name is the full repository: domain and path.
func (r Reference) Name() string { return r.named.Name() }

// Domain is the registry's host, perhaps with a port; the hub's for short names.
func (r Reference) Domain() string { return reference.Domain(r.named) }

// Path is the repository without its domain.
func (r Reference) Path() string { return reference.Path(r.named) }

// Tag is the tag or "".
func (r Reference) Tag() string {
	if t, ok := r.named.(reference.Tagged); ok {
		return t.Tag()
	}
	return ""
}

// Digest is the digest or "".
func (r Reference) Digest() Digest {
	if d, ok := r.named.(reference.Digested); ok {
		return Digest(d.Digest())
	}
	return ""
}

// Repository drops tag and digest.
func (r Reference) Repository() Reference { return Reference{reference.TrimNamed(r.named)} }

// WithDefaultTag adds "latest" where there is neither tag nor digest.
func (r Reference) WithDefaultTag() Reference { return Reference{reference.TagNameOnly(r.named)} }

// WithTag puts a tag (and drops the digest).
func (r Reference) WithTag(tag string) (Reference, error) {
	n, err := reference.WithTag(reference.TrimNamed(r.named), tag)
	if err != nil {
		return Reference{}, errs.New(errs.Invalid, "invalid tag %q: %w", clip(tag), err)
	}
	return Reference{n}, nil
}

// WithDigest puts a digest (and drops the tag).
func (r Reference) WithDigest(d Digest) Reference {
	n, err := ParseReference(r.named.Name() + "@" + string(d))
	if err != nil {
		return r
	}
	return n
}

// TagIn cuts a trailing tag or digest off for messages: "repo:tag" gives "tag", "repo@d" gives d.
func (r Reference) TagIn() string {
	if d := r.Digest(); d != "" {
		return string(d)
	}
	return r.Tag()
}

// MarshalText gives the full form.
func (r Reference) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText parses the full form.
func (r *Reference) UnmarshalText(b []byte) (err error) {
	*r, err = ParseReference(strings.TrimSpace(string(b)))
	return err
}
