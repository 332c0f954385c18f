package export

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Kind is what an output makes.
type Kind string

// The kinds.
const (
	Image  Kind = "image"     // an image in the store, at a registry, or both
	Local  Kind = "local"     // files in a directory of the client
	Tar    Kind = "tar"       // a tar of the files
	OCI    Kind = "oci"       // an OCI layout
	Docker Kind = "docker"    // an archive as `docker save` writes it
	None   Kind = "cacheonly" // nothing
)

// Output is what one output of a build is to be.
type Output struct {
	Kind  Kind
	Names []oci.Reference // with a tag; with none if PushByDigest is set

	// Of an image.
	Store        bool // record it
	Push         bool // send it to the registries in Names
	PushByDigest bool // without a tag
	Canonical    bool // record repository@digest for each name, too

	// Of images in any form.
	Format       oci.Format // of the manifests
	Artifact     bool       // attestations are OCI artifacts with a subject
	Compression  Compression
	Epoch        *time.Time // of files and documents; nil = as the build says
	Rewrite      bool       // no file in a new layer is younger than the epoch
	Squash       string     // new layers become one: "" = no, SquashNew, or the name of a stage or image after which they do
	Annotations  []Annotation
	AttestInline bool // attestations that are meant for images in registries are added

	Layout bool // of the kind oci: a directory of the client, and not a tar

	// Of files.
	Split  *bool  // a directory for each platform; nil = when there are several
	Prefix string // of the names of attestations
}

// Title says what happens, as progress shows it.
func (o *Output) Title() string {
	switch o.Kind {
	case Local:
		return "exporting to client directory"
	case Tar:
		return "exporting to client tarball"
	case OCI, Docker:
		return "exporting to " + string(o.Kind) + " image format"
	case None:
		return "exporting nothing"
	}
	return "exporting to image"
}

// Compression says how layers are packed.
type Compression struct {
	compress.Params
	Force bool // also layers that are there in another form
	Asked bool // a form was asked for
}

// Annotation is an annotation of a document, or of its descriptor.
type Annotation struct {
	On       Place
	Platform *oci.Platform // nil = of all
	Key      string
	Value    string
}

// Place is what has an annotation.
type Place string

// The places.
const (
	OnManifest           Place = "manifest"
	OnManifestDescriptor Place = "manifest-descriptor"
	OnIndex              Place = "index"
	OnIndexDescriptor    Place = "index-descriptor"
)

// NeedsManifest reports whether the output is more than a config and layers, so that its manifest must be made with the image.
func (o *Output) NeedsManifest() bool {
	return o.Kind == OCI || o.Kind == Docker || o.Push || o.Canonical || len(o.Annotations) > 0 || o.Compression.Asked
}

// Parse reads an output with BuildKit's types and attributes. The type moby is docker's word for an image in the engine's store, registry that for an image that is
// only pushed. Errors: errs.Invalid for what is unknown or malformed, errs.Unimplemented for what BuildKit has and ply does not.
//
// An image without a name gets those of tags.
func Parse(typ string, attrs map[string]string, tags []oci.Reference) (*Output, error) {
	o := &Output{Format: oci.FormatOCI, Compression: Compression{Params: compress.FastGzip()}}
	p := parser{o: o, typ: typ, left: maps.Clone(attrs)}
	switch typ {
	case "image", "moby":
		o.Kind, o.Store, o.AttestInline = Image, true, true
	case "registry":
		o.Kind, o.Push, o.AttestInline = Image, true, true
	case "local":
		o.Kind = Local
	case "tar":
		o.Kind = Tar
	case "oci":
		o.Kind = OCI
	case "docker":
		o.Kind = Docker
	case "cacheonly":
		o.Kind = None
	default:
		return nil, errs.New(errs.Invalid, "unknown output type %q", clip(typ)).WithHint("Types: image, registry, local, tar, oci, docker, cacheonly.")
	}
	switch o.Kind {
	case Image, OCI, Docker:
		p.image()
	case Local, Tar:
		p.files()
	}
	if o.Kind != Image {
		p.take("dest") // where the client puts it
	}
	if len(o.Names) == 0 && (o.Kind == Image || o.Kind == OCI || o.Kind == Docker) {
		o.Names = tags
	}
	for _, k := range slices.Sorted(maps.Keys(p.left)) {
		p.fail(errs.New(errs.Invalid, "output type=%s: unknown attribute %q", typ, clip(k)))
	}
	if p.err != nil {
		return nil, p.err
	}
	return o, p.check()
}

// parser takes the attributes one by one and keeps the first error.
type parser struct {
	o    *Output
	typ  string
	left map[string]string
	err  error
}

func (p *parser) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

func (p *parser) take(key string) (string, bool) {
	v, ok := p.left[key]
	delete(p.left, key)
	return v, ok
}

// flag takes a boolean; an attribute without a value is true.
func (p *parser) flag(key string, into *bool) bool {
	v, ok := p.take(key)
	if !ok {
		return false
	}
	b := true
	if v != "" {
		var err error
		if b, err = strconv.ParseBool(v); err != nil {
			p.fail(errs.New(errs.Invalid, "output type=%s: %s=%s is not a boolean", p.typ, key, clip(v)))
		}
	}
	*into = b
	return true
}

// refuse takes a flag that must not be set.
func (p *parser) refuse(key, why string) {
	var set bool
	if p.flag(key, &set); set {
		p.fail(errs.New(errs.Unimplemented, "output type=%s: %s is not supported: %s", p.typ, key, why))
	}
}

func (p *parser) epoch() {
	v, ok := p.take("source-date-epoch")
	if !ok || v == "" {
		return
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > maxEpoch {
		p.fail(errs.New(errs.Invalid, "output type=%s: source-date-epoch=%s is not a number of seconds", p.typ, clip(v)))
		return
	}
	t := time.Unix(n, 0).UTC()
	p.o.Epoch = &t
}

const maxEpoch = 1<<33 - 1 // what a tar can have in octal

// squash takes the attribute squash, which is ply's own.
func (p *parser) squash() {
	v, ok := p.take("squash")
	switch {
	case !ok || v == "false" || v == "0":
	case v == "" || v == "true" || v == "1":
		p.o.Squash = SquashNew
	default:
		p.o.Squash = v
	}
}

// SquashNew squashes all layers above the base image.
const SquashNew = "true"

func (p *parser) files() {
	p.epoch()
	p.squash() // files are the same in one layer
	var split bool
	if p.flag("platform-split", &split) {
		p.o.Split = &split
	}
	p.o.Prefix, _ = p.take("attestation-prefix")
	if strings.ContainsAny(p.o.Prefix, "/\x00") {
		p.fail(errs.New(errs.Invalid, "output type=%s: attestation-prefix=%q is not the beginning of a file name", p.typ, clip(p.o.Prefix)))
	}
	// The client removes what is left of an earlier export.
	if v, ok := p.take("mode"); ok && (v != "" && v != "copy" && v != "delete" || p.o.Kind != Local) {
		p.fail(errs.New(errs.Invalid, "output type=%s: unknown mode %q", p.typ, clip(v)))
	}
}

func (p *parser) image() {
	o := p.o
	names, _ := p.take("name")
	p.epoch()
	p.flag("rewrite-timestamp", &o.Rewrite)
	p.squash()
	p.flag("attestation-inline", &o.AttestInline)
	p.refuse("prefer-nondist-layers", "layers are always distributable")
	types := true
	if p.flag("oci-mediatypes", &types); !types {
		o.Format = oci.FormatDocker
	}
	o.Artifact = o.Format == oci.FormatOCI
	p.flag("oci-artifact", &o.Artifact)
	p.compression()
	p.annotations()
	switch o.Kind {
	case Image:
		p.flag("push", &o.Push)
		p.flag("push-by-digest", &o.PushByDigest)
		p.flag("name-canonical", &o.Canonical)
		p.flag("store", &o.Store)
		p.refuse("registry.insecure", "the engine's option insecure-registries says which registries may be insecure")
		// These are about containerd's image store. There, layers of an image are unpacked only if unpack says so, and an image without a name is lost, so that
		// dangling-name-prefix makes one. Here both have nothing to change: layers are always unpacked, and an image without a name is kept under its ID. The second
		// spelling of the flag is the one that BuildKit reads.
		var none bool
		p.flag("unpack", &none)
		p.flag("dangling-name-empty-only", &none)
		p.flag("danging-name-empty-only", &none)
		if v, ok := p.take("dangling-name-prefix"); ok {
			if _, err := oci.ParseReference(v); err != nil {
				p.fail(errs.New(errs.Invalid, "output type=%s: dangling-name-prefix: %w", p.typ, err))
			}
		}
		if p.typ == "registry" {
			o.Push = true
		}
	default:
		tar := true
		if p.flag("tar", &tar); !tar && o.Kind == OCI {
			o.Layout = true
		} else if !tar {
			p.fail(errs.New(errs.Unimplemented, "output type=%s: tar=false is not supported: unpack the tar", p.typ))
		}
	}
	p.names(names)
}

func (p *parser) names(list string) {
	if list == "" || list == "*" { // * is the name that a front end chooses, and ours chooses none
		return
	}
	for text := range strings.SplitSeq(list, ",") {
		ref, err := oci.ParseReference(strings.TrimSpace(text))
		switch {
		case err != nil:
			p.fail(errs.New(errs.Invalid, "output type=%s: name: %w", p.typ, err))
			return
		case ref.Digest() != "":
			p.fail(errs.New(errs.Invalid, "output type=%s: name %s has a digest", p.typ, clip(text)))
			return
		case p.o.PushByDigest && ref.Tag() != "":
			p.fail(errs.New(errs.Invalid, "output type=%s: can't push tagged ref %s by digest", p.typ, clip(text)))
			return
		}
		if !p.o.PushByDigest {
			ref = ref.WithDefaultTag()
		}
		p.o.Names = append(p.o.Names, ref)
	}
}

func (p *parser) compression() {
	c := &p.o.Compression
	v, ok := p.take("compression")
	c.Asked = ok && v != ""
	switch v {
	case "", "gzip":
	case "uncompressed":
		c.Params = compress.Params{Codec: compress.None}
	case "zstd":
		c.Params = compress.Params{Codec: compress.Zstd}
	case "estargz":
		p.fail(errs.New(errs.Unimplemented, "output type=%s: compression=estargz is not supported", p.typ).WithHint("Use gzip, zstd or uncompressed."))
	default:
		p.fail(errs.New(errs.Invalid, "output type=%s: unknown compression %q", p.typ, clip(v)))
	}
	p.flag("force-compression", &c.Force)
	level, ok := p.take("compression-level")
	if !ok || level == "" {
		return
	}
	c.Asked = true
	n, err := strconv.Atoi(level)
	highest := map[compress.Codec]int{compress.Gzip: 9, compress.Zstd: 22}[c.Codec]
	if err != nil || n < 1 || n > highest {
		p.fail(errs.New(errs.Invalid, "output type=%s: compression-level=%s: the levels of %s are 1 to %d", p.typ, clip(level), c.Codec, highest))
		return
	}
	if c.Codec == compress.Gzip {
		c.Engine = compress.EngineGo
	}
	c.Level = n
}

// annotationKey is the form of the attribute: annotation.KEY, annotation-PLACE.KEY, annotation-PLACE[PLATFORM].KEY.
var annotationKey = regexp.MustCompile(`^annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)$`)

func (p *parser) annotations() {
	for _, k := range slices.Sorted(maps.Keys(p.left)) {
		if !strings.HasPrefix(k, "annotation") {
			continue
		}
		v, _ := p.take(k)
		a, err := parseAnnotation(k, v)
		if err != nil {
			p.fail(fmt.Errorf("output type=%s: %w", p.typ, err))
			return
		}
		p.o.Annotations = append(p.o.Annotations, a)
	}
}

func parseAnnotation(k, v string) (a Annotation, err error) {
	m := annotationKey.FindStringSubmatch(k)
	if m == nil {
		return a, errs.New(errs.Invalid, "unknown attribute %q", clip(k)).WithHint("Annotations are annotation-manifest.KEY=VALUE, and the same with index, manifest-descriptor and index-descriptor.")
	}
	a = Annotation{On: Place(m[1]), Key: m[3], Value: v}
	switch a.On {
	case "":
		a.On = OnManifest
	case OnManifest, OnManifestDescriptor, OnIndex, OnIndexDescriptor:
	default:
		return a, errs.New(errs.Invalid, "%s: an index or a manifest has annotations, or a descriptor of one, not %q", clip(k), clip(m[1]))
	}
	if m[2] != "" {
		pf, err := oci.ParsePlatform(m[2])
		if err != nil {
			return a, err
		}
		a.Platform = &pf
	}
	return a, nil
}

// check refuses attributes that contradict each other.
func (p *parser) check() error {
	o := p.o
	clash := func(a, b string) error {
		return errs.New(errs.Invalid, "output type=%s: %s conflicts with %s", p.typ, a, b)
	}
	switch {
	case o.PushByDigest && slices.ContainsFunc(o.Names, func(n oci.Reference) bool { return n.Tag() != "" }):
		return errs.New(errs.Invalid, "output type=%s: can't push tagged ref %s by digest", p.typ, o.Names[0].Familiar())
	case o.Push && len(o.Names) == 0:
		return errs.New(errs.Invalid, "output type=%s: tag is needed when pushing to registry", p.typ).WithHint("Name the image with -t or with the attribute name.")
	case o.PushByDigest && !o.Push:
		return clash("push-by-digest=true", "push=false")
	case o.Kind == Image && !o.Store && !o.Push:
		return clash("store=false", "push=false")
	case o.Format == oci.FormatDocker && o.Compression.Codec == compress.Zstd:
		return clash("compression=zstd", "oci-mediatypes=false")
	case o.Format == oci.FormatDocker && o.Artifact:
		return clash("oci-artifact=true", "oci-mediatypes=false")
	case o.Format == oci.FormatDocker && len(o.Annotations) > 0:
		return clash("an annotation", "oci-mediatypes=false")
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
