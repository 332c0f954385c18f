package oci

import (
	"strings"

	"github.com/containerd/platforms"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"ply/internal/errs"
)

// Annotations of an entry of an index that is no image but says something about one: what it is, and the digest of the image's manifest.
const (
	AnnotationReferenceType   = "vnd.docker.reference.type"
	AnnotationReferenceDigest = "vnd.docker.reference.digest"
)

// Annotations of an entry of the index of an archive.
const (
	// AnnotationName is defined by containerd: the full reference of an image.
	AnnotationName = "io.containerd.image.name"
	// AnnotationDigests is defined here: repository@digest references of the image, separated by blanks. Load accepts those whose
	// digest is that of a manifest or index in the archive that leads to the image.
	AnnotationDigests = "io.ply.image.digests"
)

// HostPlatform returns the platform that this process runs on, normalised: amd64 and arm64 without the variants v1 and v8.
func HostPlatform() Platform { return fromSpec(platforms.DefaultSpec()) }

// ParsePlatform parses "os/arch[/variant]", "arch" or "os". The error's class is errs.Invalid.
func ParsePlatform(s string) (Platform, error) {
	p, err := platforms.Parse(s)
	if err != nil {
		return Platform{}, errs.New(errs.Invalid, "platform %q: %w", clip(s), err)
	}
	return fromSpec(p), nil
}

func fromSpec(p specs.Platform) Platform {
	p = platforms.Normalize(p)
	return Platform{Architecture: p.Architecture, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures, Variant: p.Variant}
}

func (p Platform) spec() specs.Platform {
	return specs.Platform{Architecture: p.Architecture, OS: p.OS, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures, Variant: p.Variant}
}

// String returns "os/arch" or "os/arch/variant".
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// Matches reports whether an image for the given platform satisfies a request for p: operating system and architecture are the
// same, and so is the variant unless one of the two names none. Spellings are normalised: amd64/v1 is amd64, arm64/v8 is arm64,
// and an image without an operating system is for that of this host. Matches does not accept images of lower variants; Choose
// does, because it sees all images that there are.
func (p Platform) Matches(image Platform) bool {
	a, b := platforms.Normalize(p.spec()), platforms.Normalize(image.spec())
	return a.OS == b.OS && a.Architecture == b.Architecture && (p.Variant == "" || image.Variant == "" || a.Variant == b.Variant)
}

// ForLinux reports whether the image is for Linux, which is meant where a config names no operating system.
func (c *Config) ForLinux() bool { return c.OS == "" || c.OS == "linux" }

// Platform returns the platform that the image is for.
func (c *Config) Platform() Platform {
	return Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
}

// Choose returns the entry that fits want best: first the one of the same variant, then those of lower variants (arm v8, v7, v6;
// amd64 v3, v2, v1). It skips attestations (unknown/unknown) and artifacts. An entry without a platform is chosen only when it is
// the only one. The error's class is errs.NotFound, and its text Docker's, when none fits.
func (i *Index) Choose(want Platform) (Descriptor, error) {
	matcher := platforms.Only(want.spec())
	var best *Descriptor
	var bare []Descriptor
	var offered []string
	for n := range i.Manifests {
		d := &i.Manifests[n]
		if d.ArtifactType != "" || d.Annotations[AnnotationReferenceType] != "" || (!IsManifest(d.MediaType) && !IsIndex(d.MediaType)) {
			continue
		}
		if d.Platform == nil || (d.Platform.OS == "" && d.Platform.Architecture == "") {
			bare = append(bare, *d)
			continue
		}
		if d.Platform.OS == "unknown" {
			continue
		}
		offered = append(offered, d.Platform.String())
		p := platforms.Normalize(d.Platform.spec())
		if !matcher.Match(p) {
			continue
		}
		if best == nil || matcher.Less(p, platforms.Normalize(best.Platform.spec())) {
			best = d
		}
	}
	if best != nil {
		return *best, nil
	}
	if len(offered) == 0 && len(bare) == 1 {
		return bare[0], nil
	}
	e := errs.New(errs.NotFound, "no matching manifest for %s in the manifest list entries", want)
	if len(offered) > 0 {
		if len(offered) > 12 {
			offered = append(offered[:12], "…")
		}
		return Descriptor{}, e.WithHint("It has: %s. Choose one with --platform.", strings.Join(offered, ", "))
	}
	return Descriptor{}, e
}
