package content

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"strings"

	"ply/internal/errs"
)

// Digest identifies content by its hash: the name of an algorithm, a colon and lower-case hex digits.
type Digest string

// Algorithm is a hash function that digests are made with.
type Algorithm string

// The algorithms of the image-spec that the registry accepts.
const (
	SHA256 Algorithm = "sha256"
	SHA512 Algorithm = "sha512"
)

// Algorithms lists the algorithms, the canonical one first.
var Algorithms = []Algorithm{SHA256, SHA512}

// ParseAlgorithm returns s as an algorithm; "" is SHA256. The error's class is errs.Invalid for an unknown one.
func ParseAlgorithm(s string) (Algorithm, error) {
	switch a := Algorithm(s); a {
	case "":
		return SHA256, nil
	case SHA256, SHA512:
		return a, nil
	}
	return "", errs.New(errs.Invalid, "digest algorithm %q is not supported: want sha256 or sha512", clip(s))
}

// New returns the hash function of a.
func (a Algorithm) New() hash.Hash {
	if a == SHA512 {
		return sha512.New()
	}
	return sha256.New()
}

// Sum returns the digest of what was written to h, a hash of a.
func (a Algorithm) Sum(h hash.Hash) Digest {
	return Digest(string(a) + ":" + hex.EncodeToString(h.Sum(nil)))
}

// Of returns the digest of b.
func (a Algorithm) Of(b []byte) Digest {
	h := a.New()
	h.Write(b)
	return a.Sum(h)
}

func (a Algorithm) hexLength() int {
	if a == SHA512 {
		return 2 * sha512.Size
	}
	return 2 * sha256.Size
}

// ParseDigest returns s as a digest. The error's class is errs.Invalid when it is not well formed or of an unknown algorithm.
func ParseDigest(s string) (Digest, error) {
	name, hex, ok := strings.Cut(s, ":")
	if !ok || name == "" {
		return "", errs.New(errs.Invalid, "invalid digest %q: want an algorithm, a colon and hex digits", clip(s))
	}
	a, err := ParseAlgorithm(name)
	if err != nil {
		return "", err
	}
	if len(hex) != a.hexLength() || !isHex(hex) {
		return "", errs.New(errs.Invalid, "invalid digest %q: want %d lower-case hex digits after %s:", clip(s), a.hexLength(), a)
	}
	return Digest(s), nil
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Algorithm returns the digest's algorithm.
func (d Digest) Algorithm() Algorithm {
	a, _, _ := strings.Cut(string(d), ":")
	return Algorithm(a)
}

// Hex returns the hex digits, which are a safe file name.
func (d Digest) Hex() string {
	_, h, _ := strings.Cut(string(d), ":")
	return h
}

func (d Digest) String() string { return string(d) }

// UnmarshalText fails with errs.Invalid for anything but a well-formed digest.
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	*d = v
	return err
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
