package docker

import (
	"errors"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/wire"
)

// addManifests adds to each image of a list what its name means: the images of all platforms, and attestations.
func (h imageHandlers) addManifests(c *call, images []*image.Image, list []wire.Image) error {
	users, err := h.users(c)
	if err != nil {
		return err
	}
	for i, img := range images {
		if img.Damaged != nil {
			continue
		}
		ref := img.ID.String()
		for _, n := range img.Names { // a name may mean an index, an ID does not
			x, err := h.images.Index(n.String())
			if err != nil {
				return err
			}
			if x != nil {
				ref = n.String()
				break
			}
		}
		list[i].Manifests, err = h.manifests(c, ref, users)
		if err != nil && !errors.Is(err, errs.NotFound) { // not one that was removed meanwhile
			return err
		}
		list[i].Size = max(list[i].Size, total(list[i].Manifests))
	}
	return nil
}

// total returns the bytes of the manifests that are here and of their images, each once. As with docker, it is the size of an image that is listed with its
// manifests: clients print those below it, and each of them has the size of its content and of its files.
func total(list []wire.ImageManifest) (n int64) {
	contents, images := map[string]bool{}, map[string]bool{}
	for _, m := range list {
		if !contents[m.ID] {
			contents[m.ID] = true
			n += m.Size.Content
		}
		if m.ImageData != nil && !images[m.ImageData.Image] {
			images[m.ImageData.Image] = true
			n += m.ImageData.Size.Unpacked
		}
	}
	return n
}

// users returns the containers of each image.
func (h imageHandlers) users(c *call) (map[oci.ImageID][]string, error) {
	list, err := h.containers.List(c.ctx(), container.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	users := map[oci.ImageID][]string{}
	for _, ctr := range list {
		users[ctr.Image] = append(users[ctr.Image], string(ctr.ID))
	}
	return users, nil
}

// manifests returns what a name means; users are the containers of each image, nil when they are not known yet.
func (h imageHandlers) manifests(c *call, ref string, users map[oci.ImageID][]string) ([]wire.ImageManifest, error) {
	if users == nil {
		var err error
		if users, err = h.users(c); err != nil {
			return nil, err
		}
	}
	platforms, err := h.images.Platforms(c.ctx(), ref)
	if err != nil {
		return nil, err
	}
	list := make([]wire.ImageManifest, 0, len(platforms))
	for _, p := range platforms {
		list = append(list, manifestOf(p, users))
	}
	return list, nil
}

func manifestOf(p image.Platform, users map[oci.ImageID][]string) wire.ImageManifest {
	m := wire.ImageManifest{ID: string(p.Descriptor.Digest), Descriptor: p.Descriptor, Available: p.Content > 0, Kind: "unknown"}
	m.Size.Content, m.Size.Total = p.Content, p.Content
	switch {
	case p.Image != nil:
		m.Kind = "image"
		m.ImageData = &wire.ImageManifestData{Platform: p.Image.Config.Platform(), Containers: users[p.Image.ID]}
		if m.ImageData.Containers == nil {
			m.ImageData.Containers = []string{}
		}
		m.ImageData.Size.Unpacked = p.Image.Size
		m.Size.Total += p.Image.Size
		m.ImageData.Image = p.Image.ID.String()
	case p.For != "":
		m.Kind, m.AttestationData = "attestation", &wire.AttestationData{For: p.For}
	case p.Descriptor.Platform != nil: // an image that is not here
		m.Kind, m.Available = "image", false
		m.ImageData = &wire.ImageManifestData{Platform: *p.Descriptor.Platform, Containers: []string{}}
	}
	return m
}
