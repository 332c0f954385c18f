package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/buildkitkey"
	"ply/internal/build/dockerfile"
	"ply/internal/build/history"
	"ply/internal/build/ops"
	"ply/internal/build/provenance"
	"ply/internal/build/solver"
	"ply/internal/build/source"
	"ply/internal/build/tree"
	"ply/internal/container/rootfs"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
)

// running is one build. It answers the front end (dockerfile.Solver) and the solver (solver.Client).
type running struct {
	s     *Service
	req   Request
	l     Listener
	lease *store.Lease
	job   *solver.Job

	fetches *source.Fetches

	mu      sync.Mutex
	images  map[string]*base
	hits    map[oci.Digest]bool   // vertices whose result was in the cache
	origins map[oci.Digest]string // what sources were resolved to: a commit, or a digest

	started time.Time
	attests attests

	cacheTo []cacheExport

	record *history.Build // nil for a question to the front end
	res    *Result        // set when the build ended
	failed error          // the same
}

// Start implements solver.Progress.
func (b *running) Start(v *ops.Vertex) {
	if b.record != nil {
		b.record.Start(v)
	}
	b.l.Start(v)
}

// Log implements solver.Progress.
func (b *running) Log(v *ops.Vertex, stderr bool, data []byte) {
	if b.record != nil {
		b.record.Log(v, stderr, data)
	}
	b.l.Log(v, stderr, data)
}

// Status implements solver.Progress.
func (b *running) Status(v *ops.Vertex, s solver.Status) { b.l.Status(v, s) }

// Done implements solver.Progress.
func (b *running) Done(v *ops.Vertex, o solver.Outcome) {
	if o.Cached {
		b.mu.Lock()
		b.hits[v.Digest] = true
		b.mu.Unlock()
	}
	if b.record != nil {
		b.record.Done(v, o)
	}
	b.l.Done(v, o)
}

// cached reports whether the result of a vertex that ended was in the cache.
func (b *running) cached(v *ops.Vertex) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.hits[v.Digest]
}

var (
	_ dockerfile.Solver = (*running)(nil)
	_ solver.Client     = (*running)(nil)
)

// base is an image that steps begin from. A name means the same image for the whole build.
type base struct {
	once sync.Once
	img  *image.Image
	err  error
}

// baseImage returns the image of a reference, which it pulls when it is not here.
func (b *running) baseImage(ctx context.Context, ref string, p oci.Platform, mode ops.ResolveMode, status func(solver.Status)) (*image.Image, error) {
	return b.onceImage(ctx, ref+" "+p.String(), func() (*image.Image, error) { return b.findImage(ctx, ref, p, mode, status) })
}

// onceImage returns the image of a key, which find looks for once per build.
func (b *running) onceImage(ctx context.Context, key string, find func() (*image.Image, error)) (*image.Image, error) {
	b.mu.Lock()
	e := b.images[key]
	if e == nil {
		e = &base{}
		b.images[key] = e
	}
	b.mu.Unlock()
	e.once.Do(func() {
		if e.img, e.err = find(); e.err == nil {
			b.lease.Blob(oci.Digest(e.img.ID))
			b.lease.Layer(e.img.Chain)
			e.img, e.err = b.s.o.Images.Get(ctx, string(e.img.ID)) // it may have been removed before the lease began
		}
	})
	if e.err != nil && ctx.Err() == nil && errors.Is(e.err, context.Canceled) {
		b.mu.Lock()
		delete(b.images, key) // another part of the build asked for it, and was cancelled
		b.mu.Unlock()
	}
	return e.img, e.err
}

func (b *running) findImage(ctx context.Context, ref string, p oci.Platform, mode ops.ResolveMode, status func(solver.Status)) (*image.Image, error) {
	want := p
	if want.Architecture == "" {
		want = oci.HostPlatform()
	}
	var other *image.Image // that the name means here, for another platform
	if mode != ops.ResolvePull && !b.req.Pull {
		img, err := b.s.o.Images.Get(ctx, ref)
		if err == nil {
			if want.Matches(img.Config.Platform()) {
				return img, nil
			}
			if s := b.sibling(ctx, ref, want); s != nil {
				return s, nil
			}
			other = img
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return nil, err
		}
	}
	name, err := oci.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	name = name.WithDefaultTag()
	cred, err := b.req.Client.Credentials(ctx, name.Domain())
	if err != nil {
		return nil, err
	}
	var got oci.ImageID
	o := transfer.PullOptions{Credentials: cred, Aside: !oci.HostPlatform().Matches(want), Got: func(id oci.ImageID) { got = id }}
	if p.Architecture != "" {
		o.Platform = p.String()
	}
	sink := transfer.Discard
	if status != nil {
		sink = func(p transfer.Progress) {
			if p.Layer != "" {
				status(solver.Status{ID: p.Layer, Current: p.Current, Total: p.Total, Done: p.State == transfer.LayerPulled || p.State == transfer.LayerExists})
			}
		}
	}
	if err := b.s.o.Puller.Pull(ctx, name, o, sink); err != nil {
		if other != nil {
			return nil, fmt.Errorf("%s is here for %s only, not for %s: %w", name.Familiar(), other.Config.Platform(), want, err)
		}
		return nil, err
	}
	return b.s.o.Images.Get(ctx, string(got))
}

// sibling returns the image for another platform from the index that ref means; nil when there is none.
func (b *running) sibling(ctx context.Context, ref string, want oci.Platform) *image.Image {
	index, err := b.s.o.Images.Index(ref)
	if err != nil || index == nil {
		return nil
	}
	for _, id := range index.Images {
		if img, err := b.s.o.Images.Get(ctx, string(id)); err == nil && want.Matches(img.Config.Platform()) {
			return img
		}
	}
	return nil
}

// ImageConfig implements dockerfile.Solver.
func (b *running) ImageConfig(ctx context.Context, ref string, opt dockerfile.ImageOptions) (string, oci.Digest, []byte, error) {
	var p oci.Platform
	if opt.Platform != nil {
		p = *opt.Platform
	}
	if l := opt.Layout; l != nil {
		img, err := b.layoutImage(ctx, ref, l.Session, l.Store, p)
		if err != nil {
			return "", "", nil, err
		}
		return ref, "", img.Raw, nil
	}
	if b.req.Policy != nil {
		name, err := oci.ParseReference(ref)
		if err == nil {
			err = b.req.Policy.Allow(ctx, "docker-image://"+name.WithDefaultTag().String(), nil, p)
		}
		if err != nil {
			return "", "", nil, err
		}
	}
	img, err := b.baseImage(ctx, ref, p, opt.Mode, nil)
	if err != nil {
		return "", "", nil, err
	}
	// Without a digest the front end goes on with the name, which means this image for the whole build.
	return ref, "", img.Raw, nil
}

// SourceTime implements dockerfile.Solver.
func (b *running) SourceTime(ctx context.Context, op ops.Op) (time.Time, error) {
	return b.fetches.Time(ctx, op)
}

// Warn implements dockerfile.Solver.
func (b *running) Warn(_ context.Context, w dockerfile.Warning) {
	if b.record != nil {
		b.record.Warn(w.String())
	}
	b.l.Warn(w)
}

// begin begins the record of the build.
func (b *running) begin() {
	o := b.req.Front.Options
	if _, question := o["requestid"]; question {
		return
	}
	r := history.Record{ID: b.req.ID, Target: o["target"], File: o["filename"]}
	for _, t := range b.req.Tags {
		r.Tags = append(r.Tags, t.Familiar())
	}
	for _, e := range b.req.Exports {
		if names := e.Attrs["name"]; names != "" && names != "*" {
			r.Tags = append(r.Tags, strings.Split(names, ",")...)
		}
	}
	if p := o["platform"]; p != "" {
		r.Platforms = strings.Split(p, ",")
	}
	r.Options = told(o)
	switch {
	case len(r.Tags) > 0:
		r.Name = r.Tags[0]
	case r.Target != "":
		r.Name = r.Target
	}
	b.record = b.s.history.Begin(r)
}

// maxTold is how much of the options of a build its record has, in bytes.
const maxTold = 64 << 10

// told returns the arguments and labels that the record of a build has: not those whose names say that they are secret, no proxies,
// and addresses without passwords.
func told(options map[string]string) map[string]string {
	out := map[string]string{}
	size := 0
	for _, k := range slices.Sorted(maps.Keys(options)) {
		name, isArg := strings.CutPrefix(k, "build-arg:")
		if !isArg && !strings.HasPrefix(k, "label:") || isArg && (provenance.IsSecret(name) || strings.HasSuffix(strings.ToUpper(name), "_PROXY")) {
			continue
		}
		if size += len(k) + len(options[k]); size > maxTold {
			break
		}
		out[k] = provenance.Redact(options[k])
	}
	return out
}

// Solve implements dockerfile.Solver.
func (b *running) Solve(ctx context.Context, g *ops.Graph) (dockerfile.Result, error) {
	if b.req.Policy != nil {
		for _, v := range g.Vertices {
			address, attrs, ok := v.Source()
			if !ok {
				continue
			}
			if err := b.req.Policy.Allow(ctx, address, attrs, v.Platform); err != nil {
				return nil, err
			}
		}
	}
	return &result{b: b, graph: g}, nil
}

// Source implements solver.Client.
func (b *running) Source(ctx context.Context, l solver.Leaser, v *ops.Vertex, status func(solver.Status)) (*solver.Result, error) {
	switch op := v.Op.(type) {
	case *ops.Image:
		img, err := b.baseImage(ctx, op.Ref, v.Platform, op.Mode, status)
		if err != nil {
			return nil, err
		}
		chain := img.Chain
		if op.LayerLimit > 0 && op.LayerLimit < len(chain) {
			chain = chain[:op.LayerLimit]
		}
		if op.Checksum != "" && (img.Manifest == nil || img.Manifest.Digest != op.Checksum) {
			return nil, errs.New(errs.Precondition, "image %s does not have the digest %s", op.Ref, op.Checksum)
		}
		r := &solver.Result{Chain: chain, Key: solver.SourceKey("layers", string(chain.ID())), Created: img.Created()}
		r.Sources = foreignSources(img, v.Platform, op.LayerLimit, chain)
		return r, nil
	case *ops.Layout:
		img, err := b.layoutImage(ctx, op.Ref, op.Session, op.Store, v.Platform)
		if err != nil {
			return nil, err
		}
		chain := img.Chain
		if op.LayerLimit > 0 && op.LayerLimit < len(chain) {
			chain = chain[:op.LayerLimit]
		}
		return &solver.Result{Chain: chain, Key: solver.SourceKey("layers", string(chain.ID())), Created: img.Created()}, nil
	case *ops.Local:
		t, err := b.req.Client.Local(ctx, op)
		if err != nil {
			return nil, err
		}
		return &solver.Result{Dir: t}, nil
	case *ops.HTTP:
		return b.fetched(v)(b.fetches.HTTP(ctx, op, status))
	case *ops.Git:
		return b.fetched(v)(b.fetches.Git(ctx, op, status))
	default:
		return nil, errs.New(errs.Unimplemented, "%s: this kind of source is not supported", v.Name)
	}
}

// fetched notes what a source was resolved to.
func (b *running) fetched(v *ops.Vertex) func(*solver.Result, error) (*solver.Result, error) {
	return func(r *solver.Result, err error) (*solver.Result, error) {
		if err == nil {
			b.mu.Lock()
			b.origins[v.Digest] = r.Origin
			b.mu.Unlock()
		}
		return r, err
	}
}

// Secret implements solver.Client.
func (b *running) Secret(ctx context.Context, id string) ([]byte, error) {
	return b.req.Client.Secret(ctx, id)
}

// Agent implements solver.Client.
func (b *running) Agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	return b.req.Client.Agent(ctx, id)
}

// Allowed implements solver.Client.
func (b *running) Allowed(e *ops.Exec) error {
	switch {
	case e.Network == ops.NetworkHost && b.s.o.NoHostNetwork:
		return errs.New(errs.Forbidden, "granting entitlement network.host is not allowed by build daemon configuration").WithHint("daemon.json allows it with builder.entitlements.network-host.")
	case e.Privileged && b.s.o.NoInsecure:
		return errs.New(errs.Forbidden, "granting entitlement security.insecure is not allowed by build daemon configuration").WithHint("daemon.json allows it with builder.entitlements.security-insecure.")
	case e.Network == ops.NetworkHost && !b.req.HostNetwork:
		return errs.New(errs.Forbidden, "granting entitlement network.host is not allowed by the client").WithHint("Allow it with --allow network.host.")
	case e.Privileged && !b.req.Insecure:
		return errs.New(errs.Forbidden, "granting entitlement security.insecure is not allowed by the client").WithHint("Allow it with --allow security.insecure.")
	}
	return nil
}

// result is a file system that the front end reads.
type result struct {
	b     *running
	graph *ops.Graph
}

func (r *result) Evaluate(ctx context.Context) error {
	_, err := r.b.job.Solve(ctx, r.graph.Root)
	return err
}

func (r *result) tree(ctx context.Context) (*tree.Tree, error) {
	res, err := r.b.job.Solve(ctx, r.graph.Root)
	if err != nil {
		return nil, err
	}
	t, err := r.b.job.Tree(ctx, res)
	if err == nil && t == nil {
		err = errs.New(errs.NotFound, "the file system is empty")
	}
	return t, err
}

func readError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return errs.New(errs.NotFound, "%v", err)
	}
	return err
}

func (r *result) ReadFile(ctx context.Context, name string, off, n int64) ([]byte, error) {
	t, err := r.tree(ctx)
	if err != nil {
		return nil, err
	}
	data, err := t.ReadFile(name, off, n)
	return data, readError(err)
}

func (r *result) Stat(ctx context.Context, name string) (dockerfile.FileInfo, error) {
	t, err := r.tree(ctx)
	if err != nil {
		return dockerfile.FileInfo{}, err
	}
	i, err := t.Stat(name, false)
	return fileInfo(path.Base(name), i), readError(err)
}

func (r *result) ReadDir(ctx context.Context, dir, include string) ([]dockerfile.FileInfo, error) {
	t, err := r.tree(ctx)
	if err != nil {
		return nil, err
	}
	names, infos, err := t.ReadDir(dir)
	var out []dockerfile.FileInfo
	for i, name := range names {
		if include != "" {
			if ok, err := path.Match(include, name); err != nil || !ok {
				continue
			}
		}
		out = append(out, fileInfo(name, infos[i]))
	}
	return out, readError(err)
}

func fileInfo(name string, i tree.Info) dockerfile.FileInfo {
	return dockerfile.FileInfo{Name: name, Mode: uint32(rootfs.FileMode(i.Mode)), UID: i.UID, GID: i.GID, Size: i.Size, ModTime: i.Time, Link: i.Link}
}

// decodeConfig reads the config that the front end made.
func decodeConfig(raw []byte) (c oci.Config, fields map[string]json.RawMessage, err error) {
	if err := errors.Join(json.Unmarshal(raw, &c), json.Unmarshal(raw, &fields)); err != nil {
		return c, nil, fmt.Errorf("config of the front end's result: %w", err)
	}
	return c, fields, nil
}

// foreignSources returns the digests under which the caches of BuildKit know an image: by the digest of its index or manifest, or by its layers.
func foreignSources(img *image.Image, p oci.Platform, limit int, chain oci.Chain) (list []oci.Digest) {
	for _, d := range img.Digests {
		list = append(list, buildkitkey.Image(d.Digest(), p, limit))
	}
	for _, m := range img.Manifests {
		list = append(list, buildkitkey.Image(m.Digest, p, limit))
	}
	list = append(list, buildkitkey.Source(string(chain.ID())))
	slices.Sort(list)
	return slices.Compact(list)
}
