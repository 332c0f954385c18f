package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ply/internal/build/cachetransfer"
	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
)

// CacheDirs is a Client that has directories with caches of the type local.
type CacheDirs interface {
	// CacheDir opens the directory that the attribute src or dest of a cache names.
	CacheDir(ctx context.Context, name string) (cachetransfer.Dir, error)
}

// cacheImport is a cache that results are taken from.
type cacheImport struct {
	ref    oci.Reference // of a registry
	dir    string        // of a client
	digest oci.Digest    // of the manifest in dir
}

func (i *cacheImport) name() string {
	if i.dir != "" {
		return i.dir
	}
	return i.ref.Familiar()
}

// cacheExport is a cache that results are written to.
type cacheExport struct {
	ref         oci.Reference
	dir         string
	inline      bool
	all         bool // mode=max
	format      cachetransfer.Format
	pack        *export.Output
	ignoreError bool
}

func (e *cacheExport) title() string {
	if e.dir != "" {
		return "exporting cache to client directory"
	}
	return "exporting cache to registry"
}

// attributes reads the attributes of a cache one by one.
type attributes struct {
	what string // "cache from type=registry"
	left map[string]string
	err  error
}

func (a *attributes) take(key string) string {
	v := a.left[key]
	delete(a.left, key)
	return v
}

func (a *attributes) flag(key string, def bool) bool {
	v := a.take(key)
	if v == "" {
		return def
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		a.fail(errs.New(errs.Invalid, "%s: %s=%s is neither true nor false", a.what, key, v))
	}
	return b
}

func (a *attributes) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// secure refuses an attribute that the engine decides about.
func (a *attributes) secure() {
	if a.flag("registry.insecure", false) {
		a.fail(errs.New(errs.Unimplemented, "%s: registry.insecure is not supported", a.what).WithHint("The engine's option insecure-registries says which registries may be insecure."))
	}
}

func (a *attributes) reference() (ref oci.Reference) {
	text := a.take("ref")
	if text == "" {
		a.fail(errs.New(errs.Invalid, "%s: ref is missing", a.what))
		return ref
	}
	ref, err := oci.ParseReference(text)
	if err != nil {
		a.fail(errs.New(errs.Invalid, "%s: %w", a.what, err))
		return ref
	}
	return ref.WithDefaultTag()
}

// end refuses what is left.
func (a *attributes) end() error {
	for _, k := range slices.Sorted(maps.Keys(a.left)) {
		a.fail(errs.New(errs.Invalid, "%s: unknown attribute %q", a.what, k))
	}
	return a.err
}

const cacheTypes = "Types: registry, local, inline."

// parseImports reads the caches that a request takes results from: those that it names, and those in the options of the front end.
func parseImports(req *Request) ([]cacheImport, error) {
	list := slices.Clone(req.CacheFrom)
	more, err := req.Front.CacheImports()
	if err != nil {
		return nil, err
	}
	for _, m := range more {
		list = append(list, CacheRef{Type: m.Type, Attrs: m.Attrs})
	}
	var out []cacheImport
	for _, c := range list {
		a := &attributes{what: "cache from type=" + c.Type, left: maps.Clone(c.Attrs)}
		var i cacheImport
		switch c.Type {
		case "registry":
			i.ref = a.reference()
			a.secure()
		case "local":
			i.dir = a.take("src")
			a.take("tag") // the client has found the digest by it
			if i.digest, err = oci.ParseDigest(a.take("digest")); err != nil || i.dir == "" {
				a.fail(errs.New(errs.Invalid, "%s: src or digest is missing", a.what))
			}
		default:
			return nil, errs.New(errs.Unimplemented, "cache from type=%.40s is not supported", c.Type).WithHint(cacheTypes)
		}
		if err := a.end(); err != nil {
			return nil, err
		}
		if !slices.Contains(out, i) {
			out = append(out, i)
		}
	}
	return out, nil
}

// packing are the attributes that say how layers are packed.
var packing = []string{"compression", "compression-level", "force-compression"}

// parseExports reads the caches that a request writes.
func parseExports(req *Request) ([]cacheExport, error) {
	list := slices.Clone(req.CacheTo)
	if on, _ := strconv.ParseBool(req.Front.Options["build-arg:BUILDKIT_INLINE_CACHE"]); on {
		list = append(list, CacheRef{Type: "inline"})
	}
	var out []cacheExport
	for _, c := range list {
		a := &attributes{what: "cache to type=" + c.Type, left: maps.Clone(c.Attrs)}
		var e cacheExport
		switch mode := a.take("mode"); mode {
		case "", "min":
		case "max":
			e.all = true
		default:
			a.fail(errs.New(errs.Invalid, "%s: unknown mode %.40q", a.what, mode).WithHint("Modes: min, max."))
		}
		e.ignoreError = a.flag("ignore-error", false)
		switch c.Type {
		case "inline":
			e.inline = true
			if e.all {
				a.fail(errs.New(errs.Invalid, "%s: an inline cache has the layers of the image only, so mode=max is not possible", a.what))
			}
		case "registry":
			e.ref = a.reference()
			a.secure()
		case "local":
			if e.dir = a.take("dest"); e.dir == "" {
				a.fail(errs.New(errs.Invalid, "%s: dest is missing", a.what))
			}
			a.take("tag") // the client's index has the tag
			a.take("reset")
		default:
			return nil, errs.New(errs.Unimplemented, "cache to type=%.40s is not supported", c.Type).WithHint(cacheTypes)
		}
		if !e.inline {
			oci := a.flag("oci-mediatypes", true)
			e.format = cachetransfer.Format{Docker: !oci, Index: !a.flag("image-manifest", oci)}
			attrs := map[string]string{"oci-mediatypes": strconv.FormatBool(oci)}
			for _, k := range packing {
				if v := a.take(k); v != "" {
					attrs[k] = v
				}
			}
			var err error
			if e.pack, err = export.Parse("image", attrs, nil); err != nil {
				a.fail(fmt.Errorf("%s: %w", a.what, err))
			}
			if _, _, err := e.format.Manifest(ociEmpty, nil); err != nil {
				a.fail(err)
			}
		}
		if err := a.end(); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

var ociEmpty oci.Descriptor

// step shows work of a build that is not in its graph.
func (b *running) step(name string, work func(v *ops.Vertex) error) error {
	v := &ops.Vertex{Digest: oci.DigestOf(fmt.Appendf(nil, "%s of %p", name, b)), Name: name}
	b.Start(v)
	start := time.Now()
	err := work(v)
	b.Done(v, solver.Outcome{Took: time.Since(start), Err: err})
	return err
}

// imports opens the caches that results are taken from. One that cannot be read is shown and left out.
func (b *running) imports(ctx context.Context, list []cacheImport) []*solver.Import {
	found := make([][]*solver.Import, len(list))
	var group sync.WaitGroup
	for i := range list {
		group.Go(func() {
			_ = b.step("importing cache manifest from "+list[i].name(), func(v *ops.Vertex) (err error) {
				found[i], err = b.open(ctx, &list[i])
				if err != nil && ctx.Err() == nil {
					b.Log(v, true, []byte("WARNING: the cache is not used: "+err.Error()+"\n"))
					return nil // shown above: a build goes on without the cache
				}
				return err
			})
		})
	}
	group.Wait()
	return slices.Concat(found...)
}

func (b *running) open(ctx context.Context, i *cacheImport) ([]*solver.Import, error) {
	var src cachetransfer.Source
	var manifest []byte
	var fetch func(context.Context, solver.Leaser, *cachetransfer.Result, func(solver.Status)) (oci.Chain, error)
	if i.dir != "" {
		dir, err := b.cacheDir(ctx, i.dir)
		if err != nil {
			return nil, err
		}
		d := &dirSource{dir}
		if manifest, err = d.Blob(ctx, oci.Descriptor{Digest: i.digest, Size: -1}, oci.MaxManifest); err != nil {
			return nil, err
		}
		src, fetch = d, func(ctx context.Context, l solver.Leaser, r *cachetransfer.Result, status func(solver.Status)) (oci.Chain, error) {
			return d.fetch(ctx, b.s, l, r, status)
		}
	} else {
		cred, err := b.req.Client.Credentials(ctx, i.ref.Domain())
		if err != nil {
			return nil, err
		}
		from := b.s.o.Puller.Source(i.ref, cred, transfer.Discard)
		defer from.Close()
		top, err := from.Top(ctx)
		if err != nil {
			return nil, err
		}
		src, manifest = from, top.Data
		fetch = func(ctx context.Context, l solver.Leaser, r *cachetransfer.Result, status func(solver.Status)) (oci.Chain, error) {
			from := b.s.o.Puller.Source(i.ref, cred, layerProgress(status))
			defer from.Close()
			chain := r.Chain()
			l.Layer(chain)
			return chain, from.Layers(ctx, chain, r.Layers)
		}
	}
	caches, err := cachetransfer.Read(ctx, src, manifest)
	if err != nil {
		return nil, err
	}
	var out []*solver.Import
	for _, c := range caches {
		out = append(out, &solver.Import{Name: i.name(), Cache: c, Fetch: fetch})
	}
	if len(out) == 0 {
		return nil, errs.New(errs.NotFound, "%s has no build cache", i.name()).WithHint("An image has one when it was built with --cache-to type=inline.")
	}
	return out, nil
}

// layerProgress shows the progress of layers as that of a vertex.
func layerProgress(status func(solver.Status)) transfer.Sink {
	return func(p transfer.Progress) {
		if p.Layer != "" && p.State != transfer.LayerExists {
			status(solver.Status{ID: p.Layer, Current: p.Current, Total: p.Total, Done: p.State == transfer.LayerPulled})
		}
	}
}

func (b *running) cacheDir(ctx context.Context, name string) (cachetransfer.Dir, error) {
	c, ok := b.req.Client.(CacheDirs)
	if !ok {
		return nil, errs.New(errs.Unimplemented, "this client has no directories for caches").WithHint("Use ply build or docker buildx build.")
	}
	return c.CacheDir(ctx, name)
}

// dirSource is a cache in a directory of a client.
type dirSource struct{ dir cachetransfer.Dir }

// Manifest implements cachetransfer.Source.
func (s *dirSource) Manifest(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	return s.Blob(ctx, d, oci.MaxManifest)
}

// Blob implements cachetransfer.Source. Size -1 means that it is not known.
func (s *dirSource) Blob(ctx context.Context, d oci.Descriptor, limit int64) (data []byte, err error) {
	r, err := s.dir.Open(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	defer errs.Close(&err, r)
	if data, err = io.ReadAll(io.LimitReader(r, limit+1)); err != nil {
		return nil, err
	}
	if int64(len(data)) > limit || d.Size >= 0 && int64(len(data)) != d.Size || oci.DigestOf(data) != d.Digest {
		return nil, errs.New(errs.Invalid, "blob %s: its content has another digest or size", d.Digest)
	}
	return data, nil
}

// fetch brings the layers of a result into the store, one after the other.
func (s *dirSource) fetch(ctx context.Context, b *Service, l solver.Leaser, r *cachetransfer.Result, status func(solver.Status)) (oci.Chain, error) {
	chain := r.Chain()
	l.Layer(chain)
	for i := range chain {
		if _, err := b.o.Store.Layers.Stat(ctx, chain[:i+1]); err == nil {
			continue
		}
		d := r.Layers[i]
		status(solver.Status{ID: d.Digest.Short(), Total: d.Size})
		if err := s.layer(ctx, b, chain[:i+1], d); err != nil {
			return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
		}
		status(solver.Status{ID: d.Digest.Short(), Current: d.Size, Total: d.Size, Done: true})
	}
	return chain, nil
}

// layer unpacks a blob as the top layer of a chain. Nothing is kept of a blob that has another digest, or that is not this layer.
func (s *dirSource) layer(ctx context.Context, b *Service, chain oci.Chain, d oci.Descriptor) (err error) {
	r, err := s.dir.Open(ctx, d.Digest)
	if err != nil {
		return err
	}
	defer errs.Close(&err, r)
	w, err := b.o.Store.Layers.Create(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	h := sha256.New()
	packed := io.TeeReader(io.LimitReader(r, d.Size+1), h)
	z, _, err := compress.NewReader(ctx, packed)
	if err != nil {
		return err
	}
	defer z.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(z, oci.MaxLayerSize+1), make([]byte, 512<<10))
	if err != nil {
		return err
	}
	if _, err = io.Copy(io.Discard, packed); err != nil {
		return err
	}
	if n > oci.MaxLayerSize || oci.DigestOfHash(h) != d.Digest {
		return errs.New(errs.Invalid, "its content has the digest %s, or is too large", oci.DigestOfHash(h))
	}
	info, err := w.Commit(ctx, chain.Parent(), chain.Top())
	if err != nil {
		return err
	}
	return b.o.Store.RecordLayer(info, nil)
}

// inlineCache returns what the config of an image says about its own steps; nil when no inline cache was asked for.
func (b *running) inlineCache(ctx context.Context, root ops.Edge, chain oci.Chain) ([]byte, error) {
	if !slices.ContainsFunc(b.cacheTo, func(e cacheExport) bool { return e.inline }) {
		return nil, nil
	}
	w, _, err := b.job.Export(ctx, []ops.Edge{root}, false)
	if err != nil {
		return nil, err
	}
	return w.EncodeInline(chain)
}

// exportCaches writes the caches after a build.
func (b *running) exportCaches(ctx context.Context, images []*made, res *Result) error {
	var roots []ops.Edge
	for _, m := range images {
		roots = append(roots, m.out.Graph.Root)
	}
	for i := range b.cacheTo {
		e := &b.cacheTo[i]
		if e.inline {
			continue
		}
		err := b.step(e.title(), func(v *ops.Vertex) error {
			err := b.exportCache(ctx, e, roots, v, res)
			if err != nil && e.ignoreError && ctx.Err() == nil {
				b.Log(v, true, []byte("WARNING: "+err.Error()+"\n"))
				return nil // as ignore-error asks
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", e.title(), err)
		}
	}
	return nil
}

// maxForBuildKit is how large a config BuildKit reads, in bytes.
const maxForBuildKit = 1 << 20

func (b *running) exportCache(ctx context.Context, e *cacheExport, roots []ops.Edge, v *ops.Vertex, res *Result) error {
	w, elsewhere, err := b.job.Export(ctx, roots, e.all)
	if err != nil {
		return err
	}
	var sink cacheSink
	if e.dir != "" {
		dir, err := b.cacheDir(ctx, e.dir)
		if err != nil {
			return err
		}
		sink = &dirSink{b: b, dir: dir, pack: e.pack}
	} else {
		cred, err := b.req.Client.Credentials(ctx, e.ref.Domain())
		if err != nil {
			return err
		}
		t := b.s.o.Pusher.Target(e.ref, cred, transfer.Discard)
		defer t.Close()
		sink = &registrySink{b: b, to: t, pack: e.pack, tag: e.ref.Tag()}
	}
	if err := b.place(ctx, e, w, elsewhere, sink, func(s solver.Status) { b.l.Status(v, s) }); err != nil {
		return err
	}
	data, layers, err := w.Encode()
	if err != nil {
		return err
	}
	if len(layers) == 0 {
		b.Log(v, true, []byte("the build has no layers that a cache could have\n"))
		return nil
	}
	if len(data) > maxForBuildKit {
		b.Log(v, true, fmt.Appendf(nil, "WARNING: the config of the cache has %d bytes; BuildKit reads at most %d\n", len(data), maxForBuildKit))
	}
	conf := oci.Descriptor{MediaType: cachetransfer.MediaType, Digest: oci.DigestOf(data), Size: int64(len(data))}
	manifest, desc, err := e.format.Manifest(conf, layers)
	if err != nil {
		return err
	}
	if err := sink.blob(ctx, conf, data); err != nil {
		return err
	}
	if err := sink.manifest(ctx, desc, manifest); err != nil {
		return err
	}
	res.Answers["cache.manifest"] = encodeDescriptor(desc)
	return nil
}

func encodeDescriptor(d oci.Descriptor) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType, d.Digest, d.Size)
}

// cacheSink takes the parts of a cache.
type cacheSink interface {
	// layers brings the layers of a chain there and returns the forms in which they are there.
	layers(ctx context.Context, chain oci.Chain, status func(solver.Status)) ([]oci.Descriptor, error)
	blob(ctx context.Context, d oci.Descriptor, data []byte) error
	manifest(ctx context.Context, d oci.Descriptor, data []byte) error
}

// place brings the layers of all results to a sink. Longer chains come first, because they have the layers of shorter ones.
func (b *running) place(ctx context.Context, e *cacheExport, w *cachetransfer.Writer, elsewhere map[*cachetransfer.Result]*solver.Import, sink cacheSink, status func(solver.Status)) error {
	list := w.Results()
	slices.SortStableFunc(list, func(a, b *cachetransfer.Result) int { return len(b.Layers) - len(a.Layers) })
	placed := map[oci.ChainID]oci.Descriptor{}
	for _, r := range list {
		chain := r.Chain()
		if imp := elsewhere[r]; imp != nil {
			if e.dir == "" && imp.Name == e.ref.Familiar() || e.dir != "" && imp.Name == e.dir {
				continue // it is there already
			}
			if _, err := imp.Fetch(ctx, b.lease, r, status); err != nil {
				return err
			}
		}
		if _, ok := placed[chain.ID()]; !ok {
			descs, err := sink.layers(ctx, chain, status)
			if err != nil {
				return err
			}
			for i, d := range descs {
				placed[chain[:i+1].ID()] = d
			}
		}
		layers := slices.Clone(r.Layers)
		for i := range layers {
			layers[i] = placed[chain[:i+1].ID()]
			layers[i].Annotations = cachetransfer.Annotate(chain[i], r.Created)
		}
		r.Layers = layers
	}
	return nil
}

// registrySink is a repository.
type registrySink struct {
	b    *running
	to   pushTarget
	pack *export.Output
	tag  string
}

// pushTarget is push.Target.
type pushTarget interface {
	Layers(ctx context.Context, chain oci.Chain, format oci.Format, want []oci.Descriptor) ([]oci.Descriptor, error)
	Blob(ctx context.Context, data []byte) error
	Manifest(ctx context.Context, tag, mediaType string, data []byte) error
}

func (s *registrySink) layers(ctx context.Context, chain oci.Chain, _ func(solver.Status)) (want []oci.Descriptor, err error) {
	if s.pack.Compression.Asked || s.pack.Compression.Force {
		if want, err = s.pack.Pack(ctx, s.b.s.o.Store, s.b.lease, chain, true); err != nil {
			return nil, err
		}
	}
	return s.to.Layers(ctx, chain, s.pack.Format, want)
}

func (s *registrySink) blob(ctx context.Context, _ oci.Descriptor, data []byte) error {
	return s.to.Blob(ctx, data)
}

func (s *registrySink) manifest(ctx context.Context, d oci.Descriptor, data []byte) error {
	return s.to.Manifest(ctx, s.tag, d.MediaType, data)
}

// dirSink is a directory of a client.
type dirSink struct {
	b    *running
	dir  cachetransfer.Dir
	pack *export.Output
}

func (s *dirSink) layers(ctx context.Context, chain oci.Chain, status func(solver.Status)) ([]oci.Descriptor, error) {
	descs, err := s.pack.Pack(ctx, s.b.s.o.Store, s.b.lease, chain, true)
	if err != nil {
		return nil, err
	}
	for i, d := range descs {
		status(solver.Status{ID: "writing " + d.Digest.Short(), Total: d.Size})
		r, err := export.Open(ctx, s.b.s.o.Store, export.Layer{Descriptor: d, Chain: chain[:i+1]})
		if err != nil {
			return nil, err
		}
		if err := errors.Join(s.dir.Write(ctx, d, r), r.Close()); err != nil {
			return nil, fmt.Errorf("layer %s: %w", d.Digest.Short(), err)
		}
		status(solver.Status{ID: "writing " + d.Digest.Short(), Current: d.Size, Total: d.Size, Done: true})
	}
	return descs, nil
}

func (s *dirSink) blob(ctx context.Context, d oci.Descriptor, data []byte) error {
	return s.dir.Write(ctx, d, strings.NewReader(string(data)))
}

func (s *dirSink) manifest(ctx context.Context, d oci.Descriptor, data []byte) error {
	return s.blob(ctx, d, data)
}
