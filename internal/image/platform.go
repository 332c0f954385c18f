package image

import (
	"context"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/blob"
)

// GetFor is Get for a platform, which is "" or os/arch[/variant]. Of a name that means an index, it returns the image for that platform. errs.NotFound when there is none;
// the error names the platforms that there are.
func (s *Service) GetFor(ctx context.Context, ref, platform string) (*Image, error) {
	if platform == "" {
		return s.Get(ctx, ref)
	}
	want, err := oci.ParsePlatform(platform)
	if err != nil {
		return nil, err
	}
	list, err := alternatives(ctx, s, ref)
	if err != nil {
		return nil, err
	}
	var best *Image
	var have []string
	for _, img := range list {
		got := img.Config.Platform()
		have = append(have, got.String())
		if want.Matches(got) && (best == nil || got.Variant == want.Variant && best.Config.Variant != want.Variant) {
			best = img
		}
	}
	if best == nil {
		return nil, errs.New(errs.NotFound, "image with reference %s was found but does not match the specified platform: wanted %s, actual: %s",
			ref, want, strings.Join(have, ", "))
	}
	return best, nil
}

// alternatives returns the images that a reference means: those of its index, or the one that it is.
func alternatives(ctx context.Context, s *Service, ref string) ([]*Image, error) {
	x, err := s.Index(ref)
	if err != nil {
		return nil, err
	}
	if x == nil {
		img, err := s.Get(ctx, ref)
		return []*Image{img}, err
	}
	var list []*Image
	for _, id := range x.Images {
		img, err := s.Get(ctx, string(id))
		if err != nil {
			return nil, err
		}
		list = append(list, img)
	}
	return list, nil
}

// Platform is what an image of an index, or an attestation in it, is in a list.
type Platform struct {
	Descriptor oci.Descriptor
	Image      *Image     // nil = an attestation, or an image that is not here
	For        oci.Digest // of an attestation: the manifest that it is about
	Content    int64      // bytes of the manifest, the config and the layers as the manifest lists them; of an attestation, of its documents. 0 = it is not here
}

// Platforms returns what an index lists, in its order, and of an image that no index lists the image. A manifest that is not known has the descriptor of the config in its
// place.
func (s *Service) Platforms(ctx context.Context, ref string) ([]Platform, error) {
	x, err := s.Index(ref)
	if err != nil {
		return nil, err
	}
	if x == nil {
		img, err := s.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		return []Platform{platformOf(s.st.Blobs, img, img.Manifest)}, nil
	}
	idx, err := oci.DecodeIndex(x.Raw, x.MediaType)
	if err != nil {
		return nil, errs.New(errs.DataLoss, "index %s: %v", x.Digest.Short(), err)
	}
	byManifest := map[oci.Digest]*Image{}
	for _, id := range x.Images {
		img, err := s.Get(ctx, string(id))
		if err != nil {
			return nil, err
		}
		for _, m := range img.Manifests {
			byManifest[m.Digest] = img
		}
	}
	var list []Platform
	for _, d := range idx.Manifests {
		if img := byManifest[d.Digest]; img != nil {
			list = append(list, platformOf(s.st.Blobs, img, &d))
			continue
		}
		p := Platform{Descriptor: d, For: oci.Digest(d.Annotations[oci.AnnotationReferenceDigest])}
		if raw, err := s.st.Blobs.Bytes(d.Digest, oci.MaxManifest); err == nil {
			p.Content = d.Size + contentOf(raw, d.MediaType)
		}
		list = append(list, p)
	}
	return list, nil
}

func platformOf(blobs *blob.Store, img *Image, manifest *oci.Descriptor) Platform {
	config := oci.Descriptor{MediaType: oci.MediaTypeOCIConfig, Digest: oci.Digest(img.ID)}
	if n, err := blobs.Stat(config.Digest); err == nil {
		config.Size = n
	}
	if img.Format == oci.FormatDocker {
		config.MediaType = oci.MediaTypeDockerConfig
	}
	if manifest == nil {
		return Platform{Descriptor: config, Image: img, Content: config.Size + img.Size}
	}
	p := Platform{Descriptor: *manifest, Image: img, Content: manifest.Size + config.Size + img.Size}
	if raw, err := blobs.Bytes(manifest.Digest, oci.MaxManifest); err == nil {
		if n := contentOf(raw, manifest.MediaType); n > 0 {
			p.Content = manifest.Size + n
		}
	}
	return p
}

// contentOf returns the bytes that a manifest lists; 0 when it is damaged.
func contentOf(raw []byte, mediaType string) int64 {
	m, err := oci.DecodeManifest(raw, mediaType)
	if err != nil {
		return 0
	}
	n := m.Config.Size
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}
