package oci

import (
	"strings"

	"ply/internal/errs"
)

// Reference is a repository, optionally with a tag and a digest, normalised as by Docker: "mysql" is library/mysql of the hub. The
// zero value is not valid. References are comparable.
//
// The grammar and the normalisation are those of github.com/distribution/reference, and the tests compare the two. That package compiles its
// expressions when a program starts, which takes longer than all else that the start of a short command consists of.
type Reference struct {
	domain string // empty for a first part that only looks like a host, such as a.b_c
	path   string
	tag    string
	digest Digest
}

const (
	hubDomain       = "docker.io"
	hubDomainBefore = "index.docker.io"
	officialPrefix  = "library/"
	defaultTag      = "latest"
	maxPath         = 255 // bytes
	maxTag          = 128 // bytes
)

// ParseReference parses and normalises s. The error's class is errs.Invalid, also for 64 hex digits, which are an ID.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, errs.New(errs.Invalid, "invalid reference %q: %w", clip(s), err)
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	if IsHex64(s) {
		return Reference{}, errs.New(errs.Invalid, "invalid repository name (%s), cannot specify 64-byte hexadecimal strings", s)
	}
	domain, rest := splitDomain(s)
	if name, _, _ := strings.Cut(rest, ":"); strings.ToLower(name) != name {
		return Reference{}, errs.New(errs.Invalid, "invalid reference format: repository name (%s) must be lowercase", clip(name))
	}
	r, ok := match(domain, rest)
	switch {
	case ok && len(r.path) > maxPath:
		return Reference{}, errs.New(errs.Invalid, "repository name must not be more than %d characters", maxPath)
	case ok && r.digest != "":
		return r, checkDigest(string(r.digest))
	case ok:
		return r, nil
	}
	if _, ok := match(strings.ToLower(domain), strings.ToLower(rest)); ok {
		return Reference{}, errs.New(errs.Invalid, "repository name must be lowercase")
	}
	return Reference{}, errs.New(errs.Invalid, "invalid reference format")
}

// splitDomain separates the registry from the rest and adds what a familiar name leaves out.
func splitDomain(s string) (domain, rest string) {
	first, rest, found := strings.Cut(s, "/")
	switch {
	case !found:
		return hubDomain, officialPrefix + s
	case first == hubDomainBefore:
		domain = hubDomain
	case first == "localhost", strings.ContainsAny(first, ".:"), strings.ToLower(first) != first:
		domain = first
	default:
		domain, rest = hubDomain, s
	}
	if domain == hubDomain && !strings.Contains(rest, "/") {
		rest = officialPrefix + rest
	}
	return domain, rest
}

// match takes path[:tag][@digest] apart and reports whether all parts are well formed; the digest is so as far as a reference goes.
func match(domain, rest string) (Reference, bool) {
	r := Reference{domain: domain}
	rest, digest, hasDigest := strings.Cut(rest, "@")
	r.path, r.digest = rest, Digest(digest)
	hasTag := false
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		r.path, r.tag, hasTag = rest[:i], rest[i+1:], true
	}
	if hasDigest && !isDigest(digest) || hasTag && !isTag(r.tag) {
		return Reference{}, false
	}
	if !isHost(r.domain) {
		r.domain, r.path = "", r.domain+"/"+r.path
	}
	return r, isPath(r.path)
}

// isHost reports whether s is a name, an IPv4 address or an IPv6 address in brackets, with or without a port.
func isHost(s string) bool {
	if addr, ok := strings.CutPrefix(s, "["); ok {
		addr, port, ok := strings.Cut(addr, "]")
		return ok && addr != "" && all(addr, func(c byte) bool { return isHex(c) || c == ':' }) && (port == "" || isPort(port))
	}
	if i := strings.IndexByte(s, ':'); i >= 0 {
		if !isPort(s[i:]) {
			return false
		}
		s = s[:i]
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' || !all(part, func(c byte) bool { return isAlnum(c) || c == '-' }) {
			return false
		}
	}
	return true
}

// isPort reports whether s is a colon and digits.
func isPort(s string) bool { return len(s) > 1 && s[0] == ':' && all(s[1:], isDigit) }

// isPath reports whether s is parts of lower-case letters and digits, separated by slashes, and inside them by one dot, one or two underscores or any
// number of dashes.
func isPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || !isLower(part[0]) || !isLower(part[len(part)-1]) {
			return false
		}
		for i := 0; i < len(part); {
			n := 1
			for i+n < len(part) && part[i+n] == part[i] && !isLower(part[i]) {
				n++
			}
			switch c := part[i]; {
			case isLower(c), c == '-', c == '.' && n == 1, c == '_' && n <= 2:
			default:
				return false
			}
			if i += n; !isLower(part[i-1]) && !isLower(part[i]) { // part ends with a letter or a digit
				return false
			}
		}
	}
	return true
}

// isTag reports whether s is a well-formed tag.
func isTag(s string) bool {
	word := func(c byte) bool { return isAlnum(c) || c == '_' }
	return s != "" && len(s) <= maxTag && word(s[0]) && all(s, func(c byte) bool { return word(c) || c == '.' || c == '-' })
}

// isDigest reports whether s has the form of a digest in a reference, of any algorithm.
func isDigest(s string) bool {
	algorithm, encoded, ok := strings.Cut(s, ":")
	if !ok || len(encoded) < 32 || !all(encoded, isHex) {
		return false
	}
	fresh := true // a part begins with a letter
	for i := range len(algorithm) {
		c := algorithm[i]
		switch {
		case fresh && !isAlnum(c), fresh && isDigit(c):
			return false
		case isAlnum(c):
			fresh = false
		case strings.IndexByte("-_+.", c) >= 0:
			fresh = true
		default:
			return false
		}
	}
	return !fresh
}

func all(s string, is func(byte) bool) bool {
	for i := range len(s) {
		if !is(s[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' || isDigit(c) }
func isAlnum(c byte) bool { return isLower(c) || 'A' <= c && c <= 'Z' }
func isHex(c byte) bool   { return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' }

// IsZero reports whether r was never parsed.
func (r Reference) IsZero() bool { return r.path == "" }

// String returns the full form: domain, path, tag and digest.
func (r Reference) String() string { return r.Name() + r.suffix() }

func (r Reference) suffix() (s string) {
	if r.tag != "" {
		s = ":" + r.tag
	}
	if r.digest != "" {
		s += "@" + string(r.digest)
	}
	return s
}

// Familiar returns the short form, without the hub's domain and library/.
func (r Reference) Familiar() string { return r.FamiliarName() + r.suffix() }

// FamiliarName returns the short form without tag and digest.
func (r Reference) FamiliarName() string {
	if r.domain != hubDomain {
		return r.Name()
	}
	if name, ok := strings.CutPrefix(r.path, officialPrefix); ok && !strings.Contains(name, "/") {
		return name
	}
	return r.path
}

// Name returns the full name of the repository: domain and path.
func (r Reference) Name() string {
	if r.domain == "" {
		return r.path
	}
	return r.domain + "/" + r.path
}

// Domain returns the registry's host with its port, if it has one.
func (r Reference) Domain() string { return r.domain }

// Path returns the repository without its domain.
func (r Reference) Path() string { return r.path }

// Tag returns the tag or "".
func (r Reference) Tag() string { return r.tag }

// Digest returns the digest or "".
func (r Reference) Digest() Digest { return r.digest }

// Repository returns r without tag and digest.
func (r Reference) Repository() Reference { return Reference{domain: r.domain, path: r.path} }

// WithDefaultTag returns r with the tag "latest" when it has neither tag nor digest.
func (r Reference) WithDefaultTag() Reference {
	if r.tag == "" && r.digest == "" {
		r.tag = defaultTag
	}
	return r
}

// WithTag returns r with this tag and without a digest.
func (r Reference) WithTag(tag string) (Reference, error) {
	if !isTag(tag) {
		return Reference{}, errs.New(errs.Invalid, "invalid tag %q: invalid tag format", clip(tag))
	}
	r.tag, r.digest = tag, ""
	return r, nil
}

// WithDigest returns r with this digest and without a tag. When d is not well formed it returns r.
func (r Reference) WithDigest(d Digest) Reference {
	if checkDigest(string(d)) != nil {
		return r
	}
	r.tag, r.digest = "", d
	return r
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
