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

// wanted is one image of an archive, understood and checked as far as that goes without its layers' commit.
type wanted struct {
	id       oci.ImageID
	config   []byte
	chain    oci.Chain
	layers   []*file         // bottom first; nil where the archive has none and the store must
	paths    [][]string      // where in the archive each layer is, or will be
	tags     []oci.Reference // in the archive's order
	digests  []oci.Reference // proven
	exact    []exactManifest // the current one last
	original []string        // claimed repository@digest references
}

// exactManifest is a manifest to keep, with the index that lists it when that is in the archive too.
type exactManifest struct {
	desc  oci.Descriptor
	raw   []byte
	index *carried
}

// reading gathers the images of an archive.
type reading struct {
	in       *intake
	platform oci.Platform
	partial  bool // layers may still come
	list     []*wanted
	byID     map[oci.ImageID]*wanted
	byTag    map[string]oci.ImageID
	names    int
	skipped  []string // media types of artifacts, which are not images
}

// understand reads whichever layouts the archive has. Where several speak of one name they must agree. Partial is for an
// archive that has not come in completely: layers may be missing.
func (in *intake) understand(platform oci.Platform, partial bool) (*reading, error) {
	r := &reading{in: in, platform: platform, partial: partial, byID: map[oci.ImageID]*wanted{}, byTag: map[string]oci.ImageID{}}
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

// add puts an image on the list, or finds it there.
func (r *reading) add(config *file) (*wanted, error) {
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

// tag gives an image a name. A name that the archive gives to two images is refused.
func (r *reading) tag(w *wanted, text string) error {
	ref, err := oci.ParseReference(text)
	if err != nil {
		return errs.New(errs.Invalid, "archive: image %s: %w", w.id.Short(), err)
	}
	if ref.Digest() != "" {
		return errs.New(errs.Invalid, "archive: image %s: name %q has a digest where a tag belongs", w.id.Short(), clip(text))
	}
	ref = ref.WithDefaultTag()
	if ref.FamiliarName() == "sha256" {
		return errs.New(errs.Invalid, "archive: image %s: name %q could be taken for an ID", w.id.Short(), clip(text))
	}
	switch have := r.byTag[ref.String()]; have {
	case w.id:
		return nil
	case "":
	default:
		return errs.New(errs.Invalid, "archive: gives the name %s to two images, %s and %s", ref.Familiar(), have.Short(), w.id.Short())
	}
	if r.names++; r.names > r.in.a.opts.Limits.Names {
		return errs.New(errs.Invalid, "archive: has more than %d names", r.in.a.opts.Limits.Names)
	}
	r.byTag[ref.String()] = w.id
	w.tags = append(w.tags, ref)
	return nil
}

// setLayer gives an image its n-th layer and compares what can be compared by now.
func (w *wanted) setLayer(n int, f *file) error {
	if f == nil || w.layers[n] == f {
		return nil
	}
	if f.bad != nil {
		return errs.New(errs.Invalid, "archive: image %s: layer %s: %w", w.id.Short(), clip(f.name), f.bad)
	}
	diff := f.diffID
	if diff == "" { // in memory
		var err error
		if diff, err = diffOf(f.data); err != nil {
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

// addPath notes where the n-th layer is in the archive.
func (w *wanted) addPath(n int, name string) {
	if name, err := safepath.Clean(name); err == nil && !slices.Contains(w.paths[n], name) {
		w.paths[n] = append(w.paths[n], name)
	}
}

// docker reads manifest.json.
func (r *reading) docker(data []byte) error {
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
			return errs.New(errs.Invalid, "archive: config %s holds something else, %s", clip(d.Config), config.digest)
		}
		if err := r.checkName(d.Config, config); err != nil {
			return err
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
			if err := w.setLayer(n, f); err != nil {
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

// checkName compares content with a path that is a digest.
func (r *reading) checkName(name string, f *file) error {
	if hex, ok := strings.CutPrefix(strings.TrimPrefix(name, "./"), blobDir); ok && oci.IsHex64(hex) && f.digest.Hex() != hex {
		return errs.New(errs.Invalid, "archive: blob sha256:%s holds something else, %s", hex, f.digest)
	}
	return nil
}

// oci reads index.json.
func (r *reading) oci(data []byte) error {
	idx, err := oci.DecodeIndex(data, "")
	if err != nil {
		return errs.New(errs.Invalid, "archive: %s: %w", fileIndex, err)
	}
	for _, d := range r.choose(idx) {
		if err := r.descriptor(d, nil, 0, d.Annotations); err != nil {
			return err
		}
	}
	return nil
}

// choose leaves out attestations and, of entries that share a name, those for other platforms.
func (r *reading) choose(idx *oci.Index) []oci.Descriptor {
	groups := map[string][]oci.Descriptor{}
	var order []string
	for i, d := range idx.Manifests {
		if d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && d.Platform.OS == "unknown" {
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
				g = []oci.Descriptor{best}
			}
		}
		out = append(out, g...)
	}
	return out
}

// imageName finds a name in annotations: "" when there is only a bare tag, which names nothing.
func imageName(a map[string]string) string {
	if n := a[annotationName]; n != "" {
		return n
	}
	if n := a[annotationTag]; strings.ContainsAny(n, "/:") {
		return n
	}
	return ""
}

// descriptor follows index.json to an image. above is the index that lists d, when that is not index.json itself.
func (r *reading) descriptor(d oci.Descriptor, above *carried, depth int, notes map[string]string) error {
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
		best, err := idx.Choose(r.platform)
		if err != nil {
			return errs.New(errs.NotFound, "archive: %s: %w", d.Digest, err)
		}
		return r.descriptor(best, &carried{d, f.data}, depth+1, notes)
	}
	return r.manifest(d, f.data, above, notes)
}

// manifest reads one image of an OCI layout.
func (r *reading) manifest(d oci.Descriptor, raw []byte, above *carried, notes map[string]string) error {
	m, err := oci.DecodeManifest(raw, d.MediaType)
	if err != nil {
		return errs.New(errs.Invalid, "archive: %s: %w", d.Digest, err)
	}
	switch t := m.Config.MediaType; t {
	case oci.MediaTypeOCIConfig, oci.MediaTypeDockerConfig, "application/octet-stream":
	default:
		r.skipped = append(r.skipped, clip(t))
		return nil
	}
	config, err := r.in.blobFile(m.Config.Digest)
	if err != nil {
		return err
	}
	if config == nil || config.data == nil {
		return errs.New(errs.Invalid, "archive: manifest %s: config %s is not there", d.Digest, m.Config.Digest)
	}
	w, err := r.add(config)
	if err != nil {
		return err
	}
	if len(m.Layers) != len(w.chain) {
		return errs.New(errs.Invalid, "archive: manifest %s has %d layers, its config says %d", d.Digest, len(m.Layers), len(w.chain))
	}
	packed := len(m.Layers) > 0
	for n, l := range m.Layers {
		packed = packed && string(l.Digest) != string(w.chain[n])
		f, err := r.in.blobFile(l.Digest)
		if err != nil {
			return err
		}
		w.addPath(n, blobDir+l.Digest.Hex())
		if f != nil && f.size != l.Size {
			return errs.New(errs.Invalid, "archive: layer %s has %d bytes, its manifest says %d", l.Digest, f.size, l.Size)
		}
		if err := w.setLayer(n, f); err != nil {
			return err
		}
	}
	if err := r.exactOf(w, notes); err != nil {
		return err
	}
	if packed {
		// A manifest of plain tars was made for the archive; one of compressed layers came from a registry or goes to one.
		w.keep(exactManifest{d, raw, above})
	}
	w.original = append(w.original, strings.Fields(notes[annotationDigests])...)
	return r.named(w, notes)
}

// named applies the name an annotation gives; one with a digest must be proven like the others.
func (r *reading) named(w *wanted, notes map[string]string) error {
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

// keep notes an exact manifest; the last one kept is the current one.
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

// maxExact bounds how many manifests and references an image brings along.
const maxExact = 64

// exactOf finds the manifests that our own save put beside the one it generated.
func (r *reading) exactOf(w *wanted, notes map[string]string) error {
	list := strings.Fields(notes[annotationManifests])
	if len(list) > maxExact || len(strings.Fields(notes[annotationDigests])) > maxExact {
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
			if lists(c.raw, w.exact[i].desc.Digest) {
				w.exact[i].index = c
			}
		}
	}
	return nil
}

func lists(index []byte, d oci.Digest) bool {
	idx, err := oci.DecodeIndex(index, "")
	return err == nil && slices.ContainsFunc(idx.Manifests, func(m oci.Descriptor) bool { return m.Digest == d })
}

// prove keeps those claimed digest references whose digest leads, by bytes in the archive, to the image.
func (w *wanted) prove() {
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

// v1Config is what load needs of the oldest layout's json files.
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
