package docker

import (
	"encoding/json"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// platformParam reads a platform that is written as os/arch[/variant] or, since 1.46, as JSON. It returns the normalised
// platform, or "" for "".
func platformParam(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	if strings.HasPrefix(s, "{") {
		var p oci.Platform
		if err := json.Unmarshal([]byte(s), &p); err != nil {
			return "", errs.New(errs.Invalid, "invalid platform %q: %w", clip(s), err)
		}
		s = p.String()
	}
	p, err := oci.ParsePlatform(s)
	if err != nil {
		return "", err
	}
	return p.String(), nil
}

// checkPlatform refuses an image that is not for the platform that a request names.
func checkPlatform(c *call, images imageGetter, ref string) error {
	text, err := platformParam(c.get("platform"))
	if err != nil || text == "" {
		return err
	}
	want, err := oci.ParsePlatform(text)
	if err != nil {
		return err
	}
	img, err := images.Get(c.ctx(), ref)
	if err != nil {
		return err
	}
	if got := img.Config.Platform(); !want.Matches(got) {
		return errs.New(errs.NotFound, "image %s was found but does not match the specified platform: wanted %s, actual: %s",
			ref, want, got)
	}
	return nil
}
