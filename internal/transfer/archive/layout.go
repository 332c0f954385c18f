package archive

import (
	"encoding/json"
	"slices"
	"strings"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/safepath"
)

// wanted is one image of an archive. Everything was checked that can be checked before its layers are committed.
type wanted struct {
	id       oci.ImageID
	config   []byte
	chain    oci.Chain
	layers   []*file         // bottom layer first; nil for a layer that the archive does not have and the store must have
	paths    [][]string      // paths in the archive of each layer
	tags     []oci.Reference // in the order of the archive
	digests  []oci.Reference // repository@digest references that acceptDigests accepted
	exact    []exactManifest // the current one last
	original []string        // repository@digest references that the archive claims
	part     bool            // an index that is kept lists it
}

// exactManifest is a manifest to store, with the index that lists it if that is in the archive too.
type exactManifest struct {
	desc  oci.Descriptor
	raw   []byte
	index *carried
}

// parser collects the images of an archive.
type parser struct {
	in       *intake
	platform oci.Platform
	partial  bool // the archive was not read to its end: layers may be missing
	list     []*wanted
	all      bool // keep all images of an index, not only the one for the platform
	byID     map[oci.ImageID]*wanted
	byTag    map[string]oci.ImageID
	indexes  []*wantedIndex
	single   map[oci.Digest]bool                // indexes of which one image is taken
	passed   map[oci.Digest]bool                // configs of images for other platforms
	children map[oci.Digest]map[oci.Digest]bool // what indexes list
	names    int
	skipped  []string // media types of artifacts, which are not images
}

// parse reads the documents of all layouts that the archive has. If several of them have the same name, it must be of the same
// image. Of an index, parse takes all images, or with only, the one for the platform. partial says that the archive was not read to its end: layers may be missing.
func (in *intake) parse(platform oci.Platform, only, partial bool) (*parser, error) {
	r := &parser{in: in, platform: platform, partial: partial, all: !only, byID: map[oci.ImageID]*wanted{}, byTag: map[string]oci.ImageID{}, single: map[oci.Digest]bool{}, passed: map[oci.Digest]bool{}, children: map[oci.Digest]map[oci.Digest]bool{}}
	manifest, err := in.find(fileManifest)
	if err != nil {
		return nil, err
	}
	idx, err := in.find(fileIndex)
	if err != nil {
		return nil, err
	}
	if idx != nil {
		if err := r.oci(idx.data); err != nil {
			return nil, err
		}
	}
	if manifest != nil {
		if err := r.docker(manifest.data); err != nil {
			return nil, err
		}
	}
	if idx == nil && manifest == nil {
		if err := r.legacy(); err != nil {
			return nil, err
		}
	}
	if len(r.list) == 0 {
		e := errs.New(errs.Invalid, "archive: holds no image")
		if len(r.skipped) > 0 {
			return nil, e.WithHint("It holds an artifact of type %s.", strings.Join(r.skipped, ", an artifact of type "))
		}
		return nil, e.WithHint("To make an image of a root file system's tar, use `ply import`.")
	}
	return r, nil
}

// add returns the image with a config. It adds the image when it is new.
func (r *parser) add(config *file) (*wanted, error) {
	id := oci.ImageID(config.digest)
	if w := r.byID[id]; w != nil {
		return w, nil
	}
	if len(r.list) >= r.in.a.opts.Limits.Images {
		return nil, errs.New(errs.Invalid, "archive: has more than %d images", r.in.a.opts.Limits.Images)
	}
	cfg, err := image.CheckConfig(config.data)
	if err != nil {
		return nil, errs.New(errs.Invalid, "archive: %s: %w", clip(config.name), err)
	}
	n := len(cfg.RootFS.DiffIDs)
	w := &wanted{id: id, config: config.data, chain: cfg.RootFS.DiffIDs, layers: make([]*file, n), paths: make([][]string, n)}
	r.byID[id] = w
	r.list = append(r.list, w)
	return w, nil
}

// name reads a name that the archive has for what.
func (r *parser) name(text, what string) (oci.Reference, error) {
	ref, err := oci.ParseReference(text)
	if err != nil {
		return ref, errs.New(errs.Invalid, "archive: %s: %w", what, err)
	}
	if ref.Digest() != "" {
		return ref, errs.New(errs.Invalid, "archive: %s: name %q has a digest where a tag belongs", what, clip(text))
	}
	ref = ref.WithDefaultTag()
	if ref.FamiliarName() == "sha256" {
		return ref, errs.New(errs.Invalid, "archive: %s: name %q could be taken for an ID", what, clip(text))
	}
	return ref, nil
}

func (r *parser) count() error {
	if r.names++; r.names > r.in.a.opts.Limits.Names {
		return errs.New(errs.Invalid, "archive: has more than %d names", r.in.a.opts.Limits.Names)
	}
	return nil
}

// tag adds a name to an image. errs.Invalid when another image of the archive has the same name. The name of an index stays that of the index.
func (r *parser) tag(w *wanted, text string) error {
	ref, err := r.name(text, "image "+w.id.Short())
	if err != nil {
		return err
	}
	for _, x := range r.indexes {
		if x.has(ref) && slices.Contains(x.images, w) {
			return nil
		}
	}
	switch have := r.byTag[ref.String()]; have {
	case w.id:
		return nil
	case "":
	default:
		return errs.New(errs.Invalid, "archive: has two images with the name %s, %s and %s", ref.Familiar(), have.Short(), w.id.Short())
	}
	if err := r.count(); err != nil {
		return err
	}
	r.byTag[ref.String()] = w.id
	w.tags = append(w.tags, ref)
	return nil
}

// setLayer sets the n-th layer of an image and compares its diffID with the config.
func (r *parser) setLayer(w *wanted, n int, f *file) error {
	if f == nil || w.layers[n] == f {
		return nil
	}
	if f.bad != nil {
		return errs.New(errs.Invalid, "archive: image %s: layer %s: %w", w.id.Short(), clip(f.name), f.bad)
	}
	diff := f.diffID
	if diff == "" { // in memory
		var err error
		if diff, err = r.in.diffOf(f.data); err != nil {
			return errs.New(errs.Invalid, "archive: image %s: layer %s: %w", w.id.Short(), clip(f.name), err)
		}
		f.diffID = diff
	}
	if diff != w.chain[n] {
		return errs.New(errs.Invalid, "archive: image %s: layer %s unpacks to %s, the config says %s", w.id.Short(), clip(f.name), diff, w.chain[n])
	}
	if w.layers[n] == nil {
		w.layers[n] = f
	}
	return nil
}

// addPath adds a path in the archive of the n-th layer.
func (w *wanted) addPath(n int, name string) {
	if name, err := safepath.Clean(name); err == nil && !slices.Contains(w.paths[n], name) {
		w.paths[n] = append(w.paths[n], name)
	}
}

// docker parses manifest.json.
func (r *parser) docker(data []byte) error {
	var images []dockerImage
	if err := oci.DecodeJSON(data, &images); err != nil {
		return errs.New(errs.Invalid, "archive: %s: %w", fileManifest, err)
	}
	for i, d := range images {
		config, err := r.in.document(d.Config)
		if err != nil {
			return errs.New(errs.Invalid, "%s: image %d: config: %w", fileManifest, i, err)
		}
		if want, ok := strings.CutSuffix(d.Config, ".json"); ok && oci.IsHex64(want) && config.digest.Hex() != want {
			return errs.New(errs.Invalid, "archive: config %s has other content, %s", clip(d.Config), config.digest)
		}
		if err := r.checkName(d.Config, config); err != nil {
			return err
		}
		if r.passed[config.digest] && r.byID[oci.ImageID(config.digest)] == nil {
			continue // index.json has it for another platform
		}
		w, err := r.add(config)
		if err != nil {
			return err
		}
		if len(d.Layers) != len(w.chain) {
			return errs.New(errs.Invalid, "%s: image %s has %d layers, its config says %d", fileManifest, w.id.Short(), len(d.Layers), len(w.chain))
		}
		for n, l := range d.Layers {
			f, err := r.in.find(l)
			if err != nil {
				return err
			}
			w.addPath(n, l)
			if f == nil && w.layers[n] == nil && !r.partial {
				return errs.New(errs.Invalid, "archive: image %s: has no layer %q", w.id.Short(), clip(l))
			}
			if f != nil {
				if err := r.checkName(l, f); err != nil {
					return err
				}
			}
			if err := r.setLayer(w, n, f); err != nil {
				return err
			}
		}
		for _, t := range d.RepoTags {
			if err := r.tag(w, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkName compares the digest of a file with its path, if the path has a digest.
func (r *parser) checkName(name string, f *file) error {
	if hex, ok := strings.CutPrefix(strings.TrimPrefix(name, "./"), blobDir); ok && oci.IsHex64(hex) && f.digest.Hex() != hex {
		return errs.New(errs.Invalid, "archive: blob sha256:%s has other content, %s", hex, f.digest)
	}
	return nil
}

// oci parses index.json.
func (r *parser) oci(data []byte) error {
	idx, err := oci.DecodeIndex(data, "")
	if err != nil {
		return errs.New(errs.Invalid, "archive: %s: %w", fileIndex, err)
	}
	rest, err := r.gathered(idx.Manifests)
	if err != nil {
		return err
	}
	for _, d := range r.choose(rest) {
		if err := r.descriptor(d, nil, 0, d.Annotations); err != nil {
			return err
		}
	}
	return nil
}

// choose returns the entries of an index without attestations, and only one of several entries with the same name: that for the
// wanted platform.
func (r *parser) choose(list []oci.Descriptor) []oci.Descriptor {
	groups := map[string][]oci.Descriptor{}
	var order []string
	for i, d := range list {
		if d.Annotations[oci.AnnotationReferenceType] != "" || d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		key := imageName(d.Annotations)
		if key == "" {
			key = "\x00" + string(d.Digest) + string(rune(i))
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	var out []oci.Descriptor
	for _, key := range order {
		g := groups[key]
		if len(g) > 1 {
			if best, err := (&oci.Index{Manifests: g}).Choose(r.platform); err == nil {
				r.pass(g)
				g = []oci.Descriptor{best}
			}
		}
		out = append(out, g...)
	}
	return out
}

// imageName returns the name in annotations, or "". A tag without a repository is not a name.
func imageName(a map[string]string) string {
	if n := a[oci.AnnotationName]; n != "" {
		return n
	}
	if n := a[annotationTag]; strings.ContainsAny(n, "/:") {
		return n
	}
	return ""
}

// descriptor parses the manifest or index of a descriptor. above is the index that lists d; nil = index.json.
func (r *parser) descriptor(d oci.Descriptor, above *carried, depth int, notes map[string]string) error {
	if depth > oci.MaxIndexDepth {
		return errs.New(errs.Invalid, "archive: indexes are nested deeper than %d", oci.MaxIndexDepth)
	}
	f, err := r.in.blobFile(d.Digest)
	if err != nil {
		return err
	}
	if f == nil || f.data == nil {
		return errs.New(errs.Invalid, "archive: manifest %s is listed but not there", d.Digest)
	}
	if d.Size != f.size {
		return errs.New(errs.Invalid, "archive: manifest %s has %d bytes, its descriptor says %d", d.Digest, f.size, d.Size)
	}
	mediaType, err := oci.SniffManifest(f.data, d.MediaType)
	if err != nil {
		return errs.New(errs.Invalid, "archive: %s: %w", d.Digest, err)
	}
	d.MediaType = mediaType
	if oci.IsIndex(mediaType) {
		idx, err := oci.DecodeIndex(f.data, mediaType)
		if err != nil {
			return errs.New(errs.Invalid, "archive: %s: %w", d.Digest, err)
		}
		c := &carried{d, f.data}
		if kept, err := r.keepIndex(c, idx, notes); kept || err != nil {
			return err
		}
		best, err := idx.Choose(r.platform)
		if err != nil {
			return errs.New(errs.NotFound, "archive: %s: %w", d.Digest, err)
		}
		if !r.single[d.Digest] {
			r.single[d.Digest] = true
			r.pass(idx.Manifests)
		}
		return r.descriptor(best, c, depth+1, notes)
	}
	w, err := r.manifest(d, f.data, above)
	if err != nil || w == nil {
		return err
	}
	return r.noted(w, notes)
}

// manifest parses one image of an OCI layout. It returns nil for an artifact, which is skipped.
func (r *parser) manifest(d oci.Descriptor, raw []byte, above *carried) (*wanted, error) {
	m, err := oci.DecodeManifest(raw, d.MediaType)
	if err != nil {
		return nil, errs.New(errs.Invalid, "archive: %s: %w", d.Digest, err)
	}
	if t := m.Config.MediaType; !isConfig(t) {
		r.skipped = append(r.skipped, clip(t))
		return nil, nil //nolint:nilnil // it is noted
	}
	config, err := r.in.blobFile(m.Config.Digest)
	if err != nil {
		return nil, err
	}
	if config == nil || config.data == nil {
		return nil, errs.New(errs.Invalid, "archive: manifest %s: config %s is not there", d.Digest, m.Config.Digest)
	}
	w, err := r.add(config)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != len(w.chain) {
		return nil, errs.New(errs.Invalid, "archive: manifest %s has %d layers, its config says %d", d.Digest, len(m.Layers), len(w.chain))
	}
	packed := len(m.Layers) > 0
	for n, l := range m.Layers {
		packed = packed && string(l.Digest) != string(w.chain[n])
		f, err := r.in.blobFile(l.Digest)
		if err != nil {
			return nil, err
		}
		w.addPath(n, blobDir+l.Digest.Hex())
		if f != nil && f.size != l.Size {
			return nil, errs.New(errs.Invalid, "archive: layer %s has %d bytes, its manifest says %d", l.Digest, f.size, l.Size)
		}
		if err := r.setLayer(w, n, f); err != nil {
			return nil, err
		}
	}
	if packed || above != nil {
		// A manifest of uncompressed tars was made for the archive, unless an index lists it. One of compressed layers is that of a registry.
		w.keep(exactManifest{d, raw, above})
	}
	return w, nil
}

// isConfig reports whether a media type is that of the config of an image.
func isConfig(mediaType string) bool {
	return mediaType == oci.MediaTypeOCIConfig || mediaType == oci.MediaTypeDockerConfig || mediaType == "application/octet-stream"
}

// noted adds what index.json says about an image.
func (r *parser) noted(w *wanted, notes map[string]string) error {
	if err := r.exactOf(w, notes); err != nil {
		return err
	}
	w.original = append(w.original, strings.Fields(notes[oci.AnnotationDigests])...)
	return r.named(w, notes)
}

// named adds the name in the annotations. A name with a digest is a claim that acceptDigests checks.
func (r *parser) named(w *wanted, notes map[string]string) error {
	name := imageName(notes)
	if name == "" {
		return nil
	}
	if strings.Contains(name, "@") {
		w.original = append(w.original, name)
		return nil
	}
	return r.tag(w, name)
}

// keep adds an exact manifest, which becomes the current one.
func (w *wanted) keep(m exactManifest) {
	for i, have := range w.exact {
		if have.desc.Digest == m.desc.Digest {
			if m.index == nil {
				m.index = have.index
			}
			w.exact = slices.Delete(w.exact, i, i+1)
			break
		}
	}
	w.exact = append(w.exact, m)
}

// maxExact bounds the exact manifests and the digest references of an image.
const maxExact = 64

// exactOf adds the exact manifests that Save put beside the one that it made for the archive.
func (r *parser) exactOf(w *wanted, notes map[string]string) error {
	list := strings.Fields(notes[annotationManifests])
	if len(list) > maxExact || len(strings.Fields(notes[oci.AnnotationDigests])) > maxExact {
		return errs.New(errs.Invalid, "archive: image %s: more than %d manifests or digests", w.id.Short(), maxExact)
	}
	var indexes []*carried
	for _, text := range list {
		d, err := oci.ParseDigest(text)
		if err != nil {
			return errs.New(errs.Invalid, "archive: image %s: %w", w.id.Short(), err)
		}
		f, err := r.in.blobFile(d)
		if err != nil {
			return err
		}
		if f == nil || f.data == nil {
			continue
		}
		t, err := oci.SniffManifest(f.data, "")
		if err != nil {
			return errs.New(errs.Invalid, "archive: %s: %w", d, err)
		}
		desc := oci.Descriptor{MediaType: t, Digest: d, Size: f.size}
		if oci.IsIndex(t) {
			indexes = append(indexes, &carried{desc, f.data})
			continue
		}
		m, err := oci.DecodeManifest(f.data, t)
		if err != nil {
			return errs.New(errs.Invalid, "archive: %s: %w", d, err)
		}
		if m.Config.Digest != oci.Digest(w.id) || len(m.Layers) != len(w.chain) {
			return errs.New(errs.Invalid, "archive: manifest %s is not of image %s", d, w.id.Short())
		}
		w.keep(exactManifest{desc: desc, raw: f.data})
	}
	for i := range w.exact {
		for _, c := range indexes {
			if r.lists(c, w.exact[i].desc.Digest) {
				w.exact[i].index = c
			}
		}
	}
	return nil
}

// lists reports whether an index lists a manifest.
func (r *parser) lists(index *carried, d oci.Digest) bool {
	set, ok := r.children[index.desc.Digest]
	if !ok {
		set = map[oci.Digest]bool{}
		if idx, err := oci.DecodeIndex(index.raw, ""); err == nil {
			for _, m := range idx.Manifests {
				set[m.Digest] = true
			}
		}
		r.children[index.desc.Digest] = set
	}
	return set[d]
}

// acceptDigests accepts the claimed digest references whose digest is that of an exact manifest of the image, or of its index.
func (w *wanted) acceptDigests() {
	for _, text := range w.original {
		ref, err := oci.ParseReference(text)
		if err != nil || ref.Digest() == "" {
			continue
		}
		ref = ref.Repository().WithDigest(ref.Digest())
		for _, m := range w.exact {
			if ref.Digest() == m.desc.Digest || m.index != nil && ref.Digest() == m.index.desc.Digest {
				w.digests = append(w.digests, ref)
				break
			}
		}
	}
}

// v1Config has the fields of a v1 config that Load needs.
type v1Config struct {
	ID              string          `json:"id"`
	Parent          string          `json:"parent"`
	Created         json.RawMessage `json:"created"`
	Author          string          `json:"author"`
	Comment         string          `json:"comment"`
	ContainerConfig *struct {
		Cmd []string `json:"Cmd"`
	} `json:"container_config"`
}
