package push

import (
	"context"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
)

// index pushes an index with all that it lists: images first, then attestations, then the index itself.
func (p *push) index(ctx context.Context, ref oci.Reference, x *image.Index) error {
	list, err := oci.DecodeIndex(x.Raw, x.MediaType)
	if err != nil {
		return err
	}
	if err := p.complete(ctx, ref, x, list); err != nil {
		return err
	}
	lease := p.st.Lease()
	defer lease.Release()
	lease.Blob(x.Digest)
	lease.Blob(x.Blobs...)
	o := image.PutIndexOptions{Index: x.Descriptor, Artifacts: x.Artifacts, Blobs: x.Blobs, Names: []oci.Reference{ref.Repository().WithDigest(x.Digest)}}
	for _, id := range x.Images {
		img, err := p.listedImage(ctx, lease, id, list)
		if err != nil {
			return pushError(ref, err)
		}
		o.Images = append(o.Images, image.PutOptions{Config: img.Raw, Format: img.Format, Manifest: img.Manifest, Parent: img.Parent})
	}
	for _, d := range x.Blobs {
		data, err := p.st.Blobs.Bytes(d, oci.MaxAttestation)
		if err == nil {
			err = p.blob(ctx, d, data)
		}
		if err != nil {
			return pushError(ref, err)
		}
	}
	for _, a := range x.Artifacts {
		lease.Blob(a.Digest)
		data, err := p.st.Blobs.Bytes(a.Digest, oci.MaxManifest)
		if err == nil {
			err = p.put(ctx, string(a.Digest), a.MediaType, data)
		}
		if err != nil {
			return pushError(ref, err)
		}
	}
	if err := p.put(ctx, ref.Tag(), x.MediaType, x.Raw); err != nil {
		return pushError(ref, err)
	}
	p.progress(transfer.Progress{State: transfer.ManifestPushed, Ref: ref, Digest: x.Digest, Total: x.Size})
	ids, err := p.images.PutIndex(ctx, lease, o)
	if err != nil {
		return err
	}
	p.images.Publish("push", ids[0], ref.Familiar())
	return nil
}

// complete refuses an index of which a part is not here: a registry takes no index without its images.
func (p *push) complete(ctx context.Context, ref oci.Reference, x *image.Index, list *oci.Index) error {
	here := map[oci.Digest]bool{}
	for _, a := range x.Artifacts {
		here[a.Digest] = true
	}
	for _, id := range x.Images {
		img, err := p.images.Get(ctx, string(id))
		if err != nil {
			return err
		}
		for _, m := range img.Manifests {
			here[m.Digest] = true
		}
	}
	var absent []string
	for _, d := range list.Manifests {
		switch {
		case here[d.Digest]:
		case d.Platform != nil && d.Platform.OS != "unknown":
			absent = append(absent, d.Platform.String())
		default:
			absent = append(absent, "manifest "+d.Digest.Short())
		}
	}
	if len(absent) == 0 {
		return nil
	}
	return errs.New(errs.Precondition, "%s: its index lists what is not here: %s", ref.Familiar(), strings.Join(absent, ", ")).
		WithHint("Push one platform with --platform.")
}

func (p *push) put(ctx context.Context, ref, mediaType string, data []byte) error {
	return p.insist(ctx, func() error { return p.dst.PutManifest(ctx, ref, mediaType, data) })
}

// listedImage sends an image that an index lists, with the manifest that it lists.
func (p *push) listedImage(ctx context.Context, lease *store.Lease, id oci.ImageID, list *oci.Index) (*image.Image, error) {
	lease.Blob(oci.Digest(id))
	img, err := p.images.Get(ctx, string(id))
	if err != nil {
		return nil, err
	}
	lease.Layer(img.Config.RootFS.DiffIDs)
	at := slices.IndexFunc(img.Manifests, func(m oci.Descriptor) bool {
		return slices.ContainsFunc(list.Manifests, func(d oci.Descriptor) bool { return d.Digest == m.Digest })
	})
	if at < 0 {
		return nil, errs.New(errs.DataLoss, "image %s: the index does not list its manifest", id.Short()).WithHint("Build the image again.")
	}
	img.Manifest = &img.Manifests[at]
	exact, err := p.exact(lease, img)
	if err != nil {
		return nil, err
	}
	if exact == nil {
		return nil, errs.New(errs.DataLoss, "image %s: its manifest is lost", id.Short()).WithHint("Build the image again.")
	}
	descs, err := p.layers(ctx, img, exact)
	if err != nil {
		return nil, err
	}
	for i, d := range descs {
		if d.Digest != exact.manifest.Layers[i].Digest {
			return nil, errs.New(errs.DataLoss, "layer %s of image %s can not be had as the index lists it", d.Digest.Short(), id.Short()).WithHint("Build the image again.")
		}
	}
	if err := p.config(ctx, img); err != nil {
		return nil, err
	}
	return img, p.put(ctx, string(exact.Digest), exact.MediaType, exact.data)
}
