package archive

import (
	"context"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
)

// wantedIndex is an index of an archive with the images of it that the archive has.
type wantedIndex struct {
	carried
	images    []*wanted
	manifests []oci.Descriptor // with which it lists them
	artifacts []carried
	blobs     []*file
	tags      []oci.Reference
	digests   []oci.Reference
}

func (x *wantedIndex) has(ref oci.Reference) bool {
	return slices.ContainsFunc(x.tags, func(t oci.Reference) bool { return t.String() == ref.String() })
}

// keepIndex takes all images of an index, and reports false when the archive was asked for one platform, or has one of several images only.
func (r *parser) keepIndex(c *carried, idx *oci.Index, notes map[string]string) (bool, error) {
	if !r.all || r.single[c.desc.Digest] {
		return false, nil
	}
	x := r.indexOf(c.desc.Digest)
	if x == nil {
		x = &wantedIndex{carried: *c}
		listed := 0
		var here []oci.Descriptor
		for _, d := range listedImages(idx) {
			listed++
			ok, err := r.complete(d)
			if err != nil {
				return false, err
			}
			if ok {
				here = append(here, d)
			}
		}
		if len(here) == 0 || len(here) == 1 && listed > 1 {
			return false, nil
		}
		for _, d := range here {
			f, err := r.in.blobFile(d.Digest)
			if err != nil {
				return false, err
			}
			w, err := r.manifest(d, f.data, c)
			if err != nil {
				return false, err
			}
			w.part = true
			x.images, x.manifests = append(x.images, w), append(x.manifests, d)
		}
		if err := r.artifacts(x, idx); err != nil {
			return false, err
		}
		r.indexes = append(r.indexes, x)
	}
	return true, r.nameIndex(x, notes)
}

func (r *parser) indexOf(d oci.Digest) *wantedIndex {
	for _, x := range r.indexes {
		if x.desc.Digest == d {
			return x
		}
	}
	return nil
}

// listedImages returns the entries of an index that are images.
func listedImages(idx *oci.Index) (list []oci.Descriptor) {
	for _, d := range idx.Manifests {
		if oci.IsManifest(d.MediaType) && !isArtifact(d) {
			list = append(list, d)
		}
	}
	return list
}

func isArtifact(d oci.Descriptor) bool {
	return d.ArtifactType != "" || d.Annotations[oci.AnnotationReferenceType] != "" || d.Platform != nil && d.Platform.OS == "unknown"
}

// document returns the manifest of a descriptor; nil when the archive does not have it.
func (r *parser) document(d oci.Descriptor) (*file, *oci.Manifest, error) {
	f, err := r.in.blobFile(d.Digest)
	if err != nil || f == nil || f.data == nil {
		return nil, nil, err
	}
	if f.size != d.Size {
		return nil, nil, errs.New(errs.Invalid, "archive: manifest %s has %d bytes, its descriptor says %d", d.Digest, f.size, d.Size)
	}
	m, err := oci.DecodeManifest(f.data, d.MediaType)
	if err != nil {
		return nil, nil, errs.New(errs.Invalid, "archive: %s: %w", d.Digest, err)
	}
	return f, m, nil
}

// complete reports whether the archive has an image that an index lists and that can be kept here. A layer may be in the store instead.
func (r *parser) complete(d oci.Descriptor) (bool, error) {
	f, m, err := r.document(d)
	if err != nil || f == nil || !isConfig(m.Config.MediaType) {
		return false, err
	}
	config, err := r.in.blobFile(m.Config.Digest)
	if err != nil || config == nil || config.data == nil {
		return false, err
	}
	cfg, err := oci.DecodeConfig(config.data)
	if err == nil && !cfg.ForLinux() { // many indexes list such beside Linux; one that is asked for by itself is refused
		r.passed[m.Config.Digest] = true
		return false, nil
	}
	if r.partial {
		return true, nil
	}
	if err != nil || len(cfg.RootFS.DiffIDs) != len(m.Layers) {
		return true, nil //nolint:nilerr // the parser of the image returns a better error
	}
	for n, l := range m.Layers {
		f, err := r.in.find(blobDir + l.Digest.Hex())
		if err != nil {
			return false, err
		}
		if f != nil {
			continue
		}
		if _, err := r.in.a.st.Layers.Stat(context.Background(), cfg.RootFS.DiffIDs[:n+1]); err != nil {
			return false, nil //nolint:nilerr // the layer is nowhere
		}
	}
	return true, nil
}

// artifacts adds the attestations of an index that the archive has with all their documents.
func (r *parser) artifacts(x *wantedIndex, idx *oci.Index) error {
	for _, d := range idx.Manifests {
		if !oci.IsManifest(d.MediaType) || !isArtifact(d) {
			continue
		}
		f, m, err := r.document(d)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		var blobs []*file
		for _, l := range append([]oci.Descriptor{m.Config}, m.Layers...) {
			b, err := r.in.blobFile(l.Digest)
			if err != nil {
				return err
			}
			if b != nil && b.data != nil {
				blobs = append(blobs, b)
			}
		}
		if len(blobs) != len(m.Layers)+1 {
			continue
		}
		x.artifacts = append(x.artifacts, carried{d, f.data})
		for _, b := range blobs {
			if !slices.Contains(x.blobs, b) {
				x.blobs = append(x.blobs, b)
			}
		}
	}
	return nil
}

// nameIndex adds the name in the annotations, and the digest references that are of the index.
func (r *parser) nameIndex(x *wantedIndex, notes map[string]string) error {
	list := strings.Fields(notes[oci.AnnotationDigests])
	if len(list) > maxExact {
		return errs.New(errs.Invalid, "archive: index %s: more than %d digests", x.desc.Digest.Short(), maxExact)
	}
	name := imageName(notes)
	if strings.Contains(name, "@") {
		list, name = append(list, name), ""
	}
	for _, text := range list {
		if ref, err := oci.ParseReference(text); err == nil && ref.Digest() == x.desc.Digest {
			x.digests = append(x.digests, ref.Repository().WithDigest(ref.Digest()))
		}
	}
	if name == "" {
		return nil
	}
	ref, err := r.name(name, "index "+x.desc.Digest.Short())
	if err != nil || x.has(ref) {
		return err
	}
	for _, other := range r.indexes {
		if other.has(ref) {
			return errs.New(errs.Invalid, "archive: has two indexes with the name %s, %s and %s", ref.Familiar(), other.desc.Digest.Short(), x.desc.Digest.Short())
		}
	}
	if have := r.byTag[ref.String()]; have != "" {
		return errs.New(errs.Invalid, "archive: has an image and an index with the name %s, %s and %s", ref.Familiar(), have.Short(), x.desc.Digest.Short())
	}
	x.tags = append(x.tags, ref)
	return r.count()
}

// pass notes the configs of images that are not taken, so that manifest.json does not bring them in again.
func (r *parser) pass(list []oci.Descriptor) {
	for _, d := range list {
		if !oci.IsManifest(d.MediaType) {
			continue
		}
		if _, m, err := r.document(d); err == nil && m != nil {
			r.passed[m.Config.Digest] = true
		}
	}
}

// gathered takes the entries of index.json that together are an index, see annotationIndex, and returns the others.
func (r *parser) gathered(list []oci.Descriptor) (rest []oci.Descriptor, err error) {
	parts := map[string][]oci.Descriptor{}
	var order []string
	for _, d := range list {
		text := d.Annotations[annotationIndex]
		if text == "" || !r.all || !oci.IsManifest(d.MediaType) {
			rest = append(rest, d)
			continue
		}
		if parts[text] == nil {
			order = append(order, text)
		}
		parts[text] = append(parts[text], d)
	}
	for _, text := range order {
		kept, err := r.gather(text, parts[text])
		if err != nil {
			return nil, err
		}
		if !kept {
			rest = append(rest, parts[text]...)
		}
	}
	return rest, nil
}

func (r *parser) gather(text string, list []oci.Descriptor) (bool, error) {
	digest, err := oci.ParseDigest(text)
	if err != nil {
		return false, errs.New(errs.Invalid, "archive: %s: %w", fileIndex, err)
	}
	f, err := r.in.blobFile(digest)
	if err != nil || f == nil || f.data == nil {
		return false, err
	}
	idx, err := oci.DecodeIndex(f.data, "")
	if err != nil {
		return false, errs.New(errs.Invalid, "archive: %s: %w", digest, err)
	}
	x := &wantedIndex{carried: carried{oci.Descriptor{MediaType: idx.MediaType, Digest: digest, Size: f.size}, f.data}}
	seen := map[oci.Digest]bool{}
	for _, d := range list {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		entry, _, err := r.document(d)
		if err != nil {
			return false, err
		}
		if entry == nil {
			return false, errs.New(errs.Invalid, "archive: manifest %s is listed but not there", d.Digest)
		}
		w, err := r.manifest(d, entry.data, nil)
		if err != nil {
			return false, err
		}
		if w == nil {
			continue
		}
		if err := r.exactOf(w, d.Annotations); err != nil {
			return false, err
		}
		at := slices.IndexFunc(w.exact, func(m exactManifest) bool { return r.lists(&x.carried, m.desc.Digest) })
		if at < 0 {
			return false, errs.New(errs.Invalid, "archive: image %s: index %s does not list it", w.id.Short(), digest.Short())
		}
		w.part = true
		x.images, x.manifests = append(x.images, w), append(x.manifests, w.exact[at].desc)
	}
	if len(x.images) == 0 {
		return false, nil
	}
	if err := r.artifacts(x, idx); err != nil {
		return false, err
	}
	r.indexes = append(r.indexes, x)
	for _, d := range list {
		if err := r.nameIndex(x, d.Annotations); err != nil {
			return false, err
		}
	}
	return true, nil
}

// put returns what the store is told about an index, and the image that its name means where only one can be meant.
func (x *wantedIndex) put() (o image.PutIndexOptions, main oci.ImageID) {
	o = image.PutIndexOptions{Index: oci.Descriptor{MediaType: x.desc.MediaType, Digest: x.desc.Digest, Size: x.desc.Size}, Names: slices.Concat(x.tags, x.digests)}
	for i, w := range x.images {
		d := x.manifests[i]
		o.Images = append(o.Images, image.PutOptions{Config: w.config, Manifest: &oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}})
	}
	for _, a := range x.artifacts {
		o.Artifacts = append(o.Artifacts, oci.Descriptor{MediaType: a.desc.MediaType, Digest: a.desc.Digest, Size: a.desc.Size})
	}
	for _, b := range x.blobs {
		o.Blobs = append(o.Blobs, b.digest)
	}
	return o, o.Main()
}
