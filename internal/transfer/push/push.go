// Package push sends images to registries.
//
// A layer reaches the registry by the cheapest way that works: it is there already; the registry takes it from another of
// its repositories; it is sent as the compressed form that was kept here; compressed again with the recorded
// parameters; streamed from the registry that it came from; or compressed anew.
//
// Invariants: what was pulled is sent byte for byte as long as its layers can be had as they were; a digest that is
// reported is the digest of the bytes sent; a registry never keeps bytes of a layer whose digest was not checked.
package push

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// Images is what a push needs of the image service.
type Images interface {
	Put(ctx context.Context, lease *store.Lease, o image.PutOptions) (oci.ImageID, error)
	PutIndex(ctx context.Context, lease *store.Lease, o image.PutIndexOptions) ([]oci.ImageID, error)
	Get(ctx context.Context, ref string) (*image.Image, error)
	// GetFor is Get for a platform: of an index, the image for it.
	GetFor(ctx context.Context, ref, platform string) (*image.Image, error)
	// Index returns the index that a name means, or nil.
	Index(ref string) (*image.Index, error)
	// Publish tells listeners that an image was pushed.
	Publish(action string, id oci.ImageID, name string)
}

// Options of New. The zero value works.
type Options struct {
	Max int          // layers that are sent at a time; 0 = 5
	Log *slog.Logger // nil = none
}

// Pusher pushes images. Safe for concurrent use.
type Pusher struct {
	st     *store.Store
	images Images
	remote *remote.Client
	log    *slog.Logger
	limit  *transfer.Limiter
}

// New returns a pusher.
func New(st *store.Store, images Images, client *remote.Client, opts Options) *Pusher {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Pusher{st: st, images: images, remote: client, log: opts.Log, limit: transfer.NewLimiter(maxOrDefault(opts.Max))}
}

func maxOrDefault(n int) int {
	if n <= 0 {
		return 5
	}
	return n
}

// SetMax changes Options.Max. Layers under way count against the old number.
func (p *Pusher) SetMax(n int) { p.limit.SetMax(maxOrDefault(n)) }

// Push sends an image to the registry in its name, or with AllTags every tag of the repository. An image that was pulled is sent
// byte for byte, if its layers still exist in that form here or at a registry.
//
// Errors: errs.NotFound when there is no such image here; the others as Puller.Pull.
func (p *Pusher) Push(ctx context.Context, ref oci.Reference, opts transfer.PushOptions, progress transfer.Sink) error {
	if ref.IsZero() {
		return errs.New(errs.Invalid, "push: no image is named")
	}
	if ref.Digest() != "" {
		return errs.New(errs.Invalid, "cannot push a digest reference")
	}
	refs := []oci.Reference{ref.WithDefaultTag()}
	if opts.AllTags {
		var err error
		if refs, err = p.localTags(ref); err != nil {
			return err
		}
	}
	err := p.run(ctx, ref, refs, opts, progress)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		p.log.Info("push cancelled", "image", ref.Familiar(), "cause", context.Cause(ctx))
	default:
		p.log.Warn("push failed", "image", ref.Familiar(), "err", err)
	}
	return err
}

// run pushes the tags of a repository.
func (p *Pusher) run(ctx context.Context, ref oci.Reference, refs []oci.Reference, opts transfer.PushOptions, progress transfer.Sink) error {
	listener := transfer.NewRelay(progress)
	defer listener.Close()
	op := &push{Pusher: p, opts: opts, progress: listener.Send, dst: p.remote.Session(ref, remote.Push, opts.Credentials)}
	op.progress(transfer.Progress{State: transfer.PushStarted, Ref: ref.Repository()})
	for _, r := range refs {
		if err := op.one(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// localTags returns the tags that a repository has here.
func (p *Pusher) localTags(ref oci.Reference) ([]oci.Reference, error) {
	var refs []oci.Reference
	err := p.st.Meta.View(func(tx *meta.Tx) error {
		for name := range tx.Names.Prefix(ref.Name() + ":") {
			if r, err := oci.ParseReference(name); err == nil && r.Tag() != "" && r.Name() == ref.Name() {
				refs = append(refs, r)
			}
		}
		return nil
	})
	if err == nil && len(refs) == 0 {
		err = errs.New(errs.NotFound, "An image does not exist locally with the tag: %s", ref.FamiliarName())
	}
	return refs, err
}

// push is one call of Push.
type push struct {
	*Pusher
	opts     transfer.PushOptions
	dst      *remote.Session
	progress transfer.Sink
	answered atomic.Bool // the registry has answered a request of this push
}

// one pushes one tag.
func (p *push) one(ctx context.Context, ref oci.Reference) (err error) {
	img, err := p.images.Get(ctx, ref.String())
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.NotFound, "An image does not exist locally with the tag: %s", ref.FamiliarName())
	}
	if err != nil {
		return err
	}
	x, err := p.images.Index(ref.String())
	if err != nil {
		return err
	}
	if x != nil && p.opts.Platform == "" {
		return p.index(ctx, ref, x)
	}
	if p.opts.Platform != "" {
		if img, err = p.images.GetFor(ctx, ref.String(), p.opts.Platform); err != nil {
			return err
		}
	}
	lease := p.st.Lease()
	defer lease.Release()
	lease.Layer(img.Config.RootFS.DiffIDs)
	lease.Blob(oci.Digest(img.ID))
	exact, err := p.exact(lease, img)
	if err != nil {
		return err
	}
	descs, err := p.layers(ctx, img, exact)
	if err != nil {
		return pushError(ref, err)
	}
	if err := p.config(ctx, img); err != nil {
		return pushError(ref, err)
	}
	sent, err := p.manifest(ctx, lease, ref, img, exact, descs)
	if err != nil {
		return pushError(ref, err)
	}
	p.progress(transfer.Progress{State: transfer.ManifestPushed, Ref: ref, Digest: sent.Digest, Total: sent.Size})
	if err := p.record(ctx, lease, ref, img, sent); err != nil {
		return err
	}
	p.images.Publish("push", img.ID, ref.Familiar())
	return nil
}

// exactManifest is the manifest that an image came with.
type exactManifest struct {
	oci.Descriptor
	data     []byte
	manifest *oci.Manifest
}

// exact returns the manifest that the image came with, or nil when there is none or it is damaged.
func (p *push) exact(lease *store.Lease, img *image.Image) (*exactManifest, error) {
	if img.Manifest == nil {
		return nil, nil //nolint:nilnil // an image made here has none
	}
	lease.Blob(img.Manifest.Digest)
	data, err := p.st.Blobs.Bytes(img.Manifest.Digest, oci.MaxManifest)
	if err != nil {
		p.progress(transfer.Progress{State: transfer.ManifestLost, Digest: img.Manifest.Digest})
		return nil, nil //nolint:nilerr,nilnil // the progress reports it
	}
	m, err := oci.DecodeManifest(data, img.Manifest.MediaType)
	if err != nil {
		return nil, err
	}
	d := *img.Manifest
	d.Size = int64(len(data))
	return &exactManifest{d, data, m}, nil
}

// layers sends every layer and returns the descriptors, bottom layer first.
func (p *push) layers(ctx context.Context, img *image.Image, exact *exactManifest) ([]oci.Descriptor, error) {
	if exact == nil {
		return p.chain(ctx, img.Config.RootFS.DiffIDs, img.Format, nil, nil)
	}
	return p.chain(ctx, img.Config.RootFS.DiffIDs, oci.FormatOf(exact.MediaType), exact.manifest.Layers, p.origins(img, exact))
}

// chain sends every layer of a chain and returns the descriptors, bottom layer first. A layer that is in it twice is sent once. want are the forms that a manifest lists,
// nil for any, and from the repositories that may have them.
func (p *push) chain(ctx context.Context, chain oci.Chain, format oci.Format, want []oci.Descriptor, from []string) ([]oci.Descriptor, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	descs := make([]oci.Descriptor, len(chain))
	first := map[oci.DiffID]int{}
	var group sync.WaitGroup
	for i := len(chain) - 1; i >= 0; i-- {
		first[chain[i]] = i
	}
	for i := len(chain) - 1; i >= 0; i-- { // top layer first: docker lists them in this order
		if first[chain[i]] != i {
			continue
		}
		l := &layerPush{push: p, chain: chain[:i+1], format: format}
		if want != nil {
			l.want, l.from = &want[i], from
		}
		l.say(transfer.LayerPreparing, 0, 0)
		group.Go(func() {
			d, err := l.run(ctx)
			if err != nil {
				cancel(err)
				return
			}
			descs[i] = d
		})
	}
	group.Wait()
	for i, d := range chain {
		descs[i] = descs[first[d]]
		if want != nil && descs[i].Digest == want[i].Digest {
			descs[i] = want[i]
		}
	}
	return descs, context.Cause(ctx)
}

// origins returns the other repositories that are known to have had the image. Those from which the exact manifest came are last.
func (p *push) origins(img *image.Image, exact *exactManifest) (from []string) {
	var sure []string
	for _, d := range img.Digests {
		switch {
		case d.Name() == p.dst.Name().Name():
		case exact != nil && d.Digest() == exact.Digest:
			sure = append(sure, d.Name())
		default:
			from = append(from, d.Name())
		}
	}
	return append(from, sure...)
}

// insist repeats a small request. Once the registry has answered a request of this push, it outlasts an outage.
func (p *push) insist(ctx context.Context, do func() error) error {
	told := 0
	tell := func(seconds int) {
		if seconds > told || told == 0 { // a line per wait
			p.progress(transfer.Progress{State: transfer.Retrying, Current: int64(seconds)})
		}
		told = seconds
	}
	return p.remote.Persist(ctx, p.answered.Load, tell, do)
}

// config sends the config's exact bytes.
func (p *push) config(ctx context.Context, img *image.Image) error {
	return p.blob(ctx, oci.Digest(img.ID), img.Raw)
}

// blob sends a small blob, if the target repository does not have it.
func (p *push) blob(ctx context.Context, d oci.Digest, data []byte) error {
	if have, err := p.has(ctx, d); have || err != nil {
		return err
	}
	return p.insist(ctx, func() error {
		up, _, err := p.dst.StartUpload(ctx, "", oci.Reference{})
		if err != nil {
			return err
		}
		return up.Commit(ctx, d, data)
	})
}

// has reports whether the target repository has a blob. When the registry gives no clear answer it returns false: sending the blob
// again is slow but correct. It returns an error only when sending would fail with the same error.
func (p *push) has(ctx context.Context, d oci.Digest) (bool, error) {
	err := p.insist(ctx, func() error {
		_, err := p.dst.HasBlob(ctx, d)
		return err
	})
	switch {
	case err == nil:
		p.answered.Store(true)
		return true, nil
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case remote.Unreachable(err), errors.Is(err, errs.Unauthorized), errors.Is(err, errs.Precondition):
		return false, err
	case errors.Is(err, errs.NotFound):
		p.answered.Store(true)
	default:
		p.log.Debug("blob not found by HEAD", "blob", d, "err", err)
	}
	return false, nil
}

// manifest sends the exact manifest if the layers were sent in the form that it lists, else a new manifest that lists what was
// sent. A registry that refuses OCI's media types gets a schema 2 manifest. The bytes that the registry has are stored under
// the lease.
func (p *push) manifest(ctx context.Context, lease *store.Lease, ref oci.Reference, img *image.Image, exact *exactManifest, descs []oci.Descriptor) (oci.Descriptor, error) {
	data, mediaType := []byte(nil), ""
	if exact != nil && slices.EqualFunc(descs, exact.manifest.Layers, func(a, b oci.Descriptor) bool { return a.Digest == b.Digest }) {
		data, mediaType = exact.data, exact.MediaType
	} else {
		format := img.Format
		if exact != nil {
			format = oci.FormatOf(exact.MediaType)
		}
		var err error
		if data, mediaType, err = makeManifest(format, img, descs); err != nil {
			return oci.Descriptor{}, err
		}
		if exact != nil {
			p.progress(transfer.Progress{State: transfer.ManifestChanged, Digest: exact.Digest})
		}
	}
	err := p.insist(ctx, func() error { return p.dst.PutManifest(ctx, ref.Tag(), mediaType, data) })
	if refusesType(err) && oci.FormatOf(mediaType) == oci.FormatOCI {
		docker, dockerType, convErr := makeManifest(oci.FormatDocker, img, descs)
		if convErr != nil {
			return oci.Descriptor{}, errs.New(errs.Invalid, "the registry refuses OCI manifests, and this image has no other form: %w", errors.Join(err, convErr))
		}
		p.log.Info("registry refuses OCI manifests, docker's is sent", "image", ref.Familiar(), "err", err)
		data, mediaType = docker, dockerType
		err = p.insist(ctx, func() error { return p.dst.PutManifest(ctx, ref.Tag(), mediaType, data) })
	}
	if err != nil {
		return oci.Descriptor{}, err
	}
	sent := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestOf(data), Size: int64(len(data))}
	lease.Blob(sent.Digest)
	_, err = p.st.Blobs.Put(data)
	return sent, err
}

// refusesType reports whether a registry refused a manifest because of its media type.
func refusesType(err error) bool {
	e, ok := errors.AsType[*remote.Error](err)
	if !ok || e.Has("MANIFEST_BLOB_UNKNOWN") || e.Has("BLOB_UNKNOWN") || e.Has("NAME_INVALID") || e.Has("TAG_INVALID") {
		return false
	}
	return e.Status == 400 || e.Status == 405 || e.Status == 406 || e.Status == 415
}

// record records that the image has a manifest with this digest and is in the target repository.
func (p *push) record(ctx context.Context, lease *store.Lease, ref oci.Reference, img *image.Image, sent oci.Descriptor) error {
	_, err := p.images.Put(ctx, lease, image.PutOptions{
		Config: img.Raw, Format: img.Format, Manifest: &sent, Parent: img.Parent,
		Names: []oci.Reference{ref.Repository().WithDigest(sent.Digest)},
	})
	return err
}

// recordBlob records that the target repository has this form of a layer.
func (p *push) recordBlob(ctx context.Context, chain oci.Chain, b meta.LayerBlob) error {
	info, err := p.st.Layers.Stat(ctx, chain)
	if err != nil {
		return err
	}
	b.Repositories = []string{p.dst.Name().Name()}
	return p.st.RecordLayer(layer.Info{DiffID: chain.Top(), Size: info.Size, TarSize: info.TarSize}, &b)
}

// sameRegistry reports whether two full repository names are of one registry.
func sameRegistry(a, b string) bool {
	ha, _, _ := strings.Cut(a, "/")
	hb, _, _ := strings.Cut(b, "/")
	return ha == hb
}
