package docker

import (
	"encoding/json"
	"strings"

	"ply/internal/errs"
	"ply/internal/image"
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

// platformParams reads a parameter that is a platform and may be there several times.
func platformParams(c *call, key string) (list []string, err error) {
	for _, text := range c.q[key] {
		p, err := platformParam(text)
		if err != nil {
			return nil, err
		}
		if p != "" {
			list = append(list, p)
		}
	}
	return list, nil
}

// image returns the image that a request names, for the platform that it names.
func (h imageHandlers) image(c *call) (*image.Image, error) {
	platform, err := platformParam(c.get("platform"))
	if err != nil {
		return nil, err
	}
	return h.images.GetFor(c.ctx(), c.vars["name"], platform)
}
