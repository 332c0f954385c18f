package docker

import (
	"encoding/json"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// platformParam reads a platform that is written as os/arch[/variant] or, since 1.46, as JSON. The answer is
// normalised; "" stays "".
func platformParam(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if strings.HasPrefix(s, "{") {
		var p oci.Platform
		if err := json.Unmarshal([]byte(s), &p); err != nil {
			return "", errs.New(errs.Invalid, "invalid platform %q: %w", clip(s), err)
		}
		s = platformText(p.OS, p.Architecture, p.Variant)
	}
	p, err := oci.ParsePlatform(s)
	if err != nil {
		return "", err
	}
	return p.String(), nil
}

// checkPlatform refuses an image that is not for the platform a request names; it keeps to the one platform an image has.
func (s *server) checkPlatform(c *call, ref string) error {
	want, err := platformParam(c.get("platform"))
	if err != nil || want == "" {
		return err
	}
	img, err := s.Images.Get(c.ctx(), ref)
	if err != nil {
		return err
	}
	if !platformFits(want, img.Config) {
		return errs.New(errs.NotFound, "image %s was found but does not match the specified platform: wanted %s, actual: %s",
			ref, want, platformText(img.Config.OS, img.Config.Architecture, img.Config.Variant))
	}
	return nil
}

func platformText(os, arch, variant string) string {
	text := os + "/" + arch
	if variant != "" {
		text += "/" + variant
	}
	return text
}

// platformFits reports whether an image is for a platform; a variant counts only when both name one.
func platformFits(want string, cfg oci.Config) bool {
	parts := strings.Split(want, "/")
	if len(parts) < 2 || parts[0] != cfg.OS || parts[1] != cfg.Architecture {
		return false
	}
	return len(parts) < 3 || cfg.Variant == "" || parts[2] == cfg.Variant
}
