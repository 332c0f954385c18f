package remote

import (
	"context"

	"ply/internal/oci"
	"ply/internal/transfer"
)

// Inspect returns what a registry has under a name, and the platforms of its images, without storing anything. A name without
// tag and digest means the tag latest.
func (c *Client) Inspect(ctx context.Context, name oci.Reference, cred transfer.Credentials) (transfer.Remote, error) {
	name = name.WithDefaultTag()
	ref := name.Tag()
	if name.Digest() != "" {
		ref = string(name.Digest())
	}
	s := c.Session(name, Pull, cred)
	m, err := s.Manifest(ctx, ref)
	if err != nil {
		return transfer.Remote{}, err
	}
	r := transfer.Remote{Descriptor: m.Descriptor}
	if oci.IsIndex(m.MediaType) {
		i, err := oci.DecodeIndex(m.Data, m.MediaType)
		if err != nil {
			return transfer.Remote{}, err
		}
		for _, d := range i.Manifests {
			if p := d.Platform; p != nil && p.OS != "unknown" { // attestations are for no platform
				r.Platforms = append(r.Platforms, *p)
			}
		}
		return r, nil
	}
	image, err := oci.DecodeManifest(m.Data, m.MediaType)
	if err != nil {
		return transfer.Remote{}, err
	}
	data, err := s.Bytes(ctx, image.Config, oci.MaxConfig)
	if err != nil {
		return transfer.Remote{}, err
	}
	if cfg, err := oci.DecodeConfig(data); err == nil { // an artifact has another config, and no platform
		r.Platforms = append(r.Platforms, cfg.Platform())
	}
	return r, nil
}
