// Package oci has the types of images: digests, descriptors, references, platforms, manifests and configs, with strict and
// bounded decoding of untrusted bytes.
//
// Invariants: a Digest, DiffID, ChainID or ImageID from a parser of this package is well formed, so it can be used as a file
// name. Bytes that were read are never serialised again, because digests are over bytes. The package follows OCI image-spec 1.1.1
// and Docker's schema 2.
package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strings"

	"ply/internal/errs"
)

// Digest identifies content by its hash: "sha256:" and 64 lower-case hex digits. Other algorithms are refused: registries do not
// use them.
type Digest string

// DiffID is the digest of a layer's uncompressed tar.
type DiffID string

// ChainID identifies a stack of layers; see Chain.ID.
type ChainID string

// ImageID is the digest of an image's config.
type ImageID string

// ContainerID is 64 lower-case hex digits, chosen at random.
type ContainerID string

const digestPrefix = "sha256:"

// ParseDigest returns s as a digest. The error's class is errs.Invalid when it is not well formed.
func ParseDigest(s string) (Digest, error) {
	if err := checkDigest(s); err != nil {
		return "", err
	}
	return Digest(s), nil
}

func checkDigest(s string) error {
	rest, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || !IsHex64(rest) {
		return errs.New(errs.Invalid, "invalid digest %q: want sha256: and 64 lower-case hex digits", clip(s))
	}
	return nil
}

// IsHex64 reports whether s is 64 lower-case hex digits.
func IsHex64(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	h := sha256.Sum256(b)
	return Digest(digestPrefix + hex.EncodeToString(h[:]))
}

// DigestOfHash returns the digest of what was written to h, a SHA-256 hash.
func DigestOfHash(h hash.Hash) Digest {
	return Digest(digestPrefix + hex.EncodeToString(h.Sum(nil)))
}

func hexOf(s string) string { return strings.TrimPrefix(s, digestPrefix) }

func shortOf(s string) string {
	s = hexOf(s)
	if len(s) > 12 {
		return s[:12]
	}
	return s
}

// Hex returns the 64 hex digits, which are a safe file name.
func (d Digest) Hex() string { return hexOf(string(d)) }

// Short returns the first 12 hex digits.
func (d Digest) Short() string { return shortOf(string(d)) }

func (d Digest) String() string { return string(d) }

// UnmarshalText fails with errs.Invalid for anything but a well-formed digest.
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	*d = v
	return err
}

// Hex returns the 64 hex digits, which are a safe file name.
func (d DiffID) Hex() string { return hexOf(string(d)) }

// Short returns the first 12 hex digits.
func (d DiffID) Short() string { return shortOf(string(d)) }

func (d DiffID) String() string { return string(d) }

// UnmarshalText fails with errs.Invalid for anything but a well-formed digest.
func (d *DiffID) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	*d = DiffID(v)
	return err
}

// Hex returns the 64 hex digits, which are a safe file name.
func (c ChainID) Hex() string { return hexOf(string(c)) }

func (c ChainID) String() string { return string(c) }

// Hex returns the 64 hex digits, which are a safe file name.
func (i ImageID) Hex() string { return hexOf(string(i)) }

// Short returns the first 12 hex digits.
func (i ImageID) Short() string { return shortOf(string(i)) }

func (i ImageID) String() string { return string(i) }

// UnmarshalText fails with errs.Invalid for anything but a well-formed digest.
func (i *ImageID) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	*i = ImageID(v)
	return err
}

// Short returns the first 12 hex digits.
func (c ContainerID) Short() string { return shortOf(string(c)) }

func (c ContainerID) String() string { return string(c) }

// Chain is a stack of layers, bottom first.
type Chain []DiffID

// ID returns the chain's ID as the image-spec defines it: the ChainID of the first layer is its DiffID, that of each further
// layer is sha256(ChainID + " " + DiffID). The ID of an empty chain is "".
func (c Chain) ID() ChainID {
	var id ChainID
	for i, d := range c {
		if i == 0 {
			id = ChainID(d)
			continue
		}
		id = ChainID(DigestOf([]byte(string(id) + " " + string(d))))
	}
	return id
}

// IDs returns the ChainID of every prefix, shortest first.
func (c Chain) IDs() []ChainID {
	ids := make([]ChainID, len(c))
	for i, d := range c {
		if i == 0 {
			ids[i] = ChainID(d)
			continue
		}
		ids[i] = ChainID(DigestOf([]byte(string(ids[i-1]) + " " + string(d))))
	}
	return ids
}

// Parent returns the chain without its top layer.
func (c Chain) Parent() Chain {
	if len(c) == 0 {
		return nil
	}
	return c[:len(c)-1]
}

// Top returns the top layer. The chain must not be empty.
func (c Chain) Top() DiffID { return c[len(c)-1] }
