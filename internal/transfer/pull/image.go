package pull

import (
	"context"
	"errors"
	"slices"
	"sync"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// Pull fetches an image, or with AllTags every image of a repository, and records it under its name. A reference without a tag
// or digest means the tag latest. The order of the progress is docker's.
//
// Errors: errs.NotFound when the registry has no such repository, manifest or platform; errs.Unauthorized and errs.Forbidden
// when it refuses; errs.Unavailable when it does not answer; errs.Invalid when content does not match its digest, size or
// media type; errs.Precondition when it answers with http although https is required.
func (p *Puller) Pull(ctx context.Context, ref oci.Reference, opts transfer.PullOptions, progress transfer.Sink) error {
	if ref.IsZero() {
		return errs.New(errs.Invalid, "pull: no image is named")
	}
	err := p.run(ctx, ref, opts, progress)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		p.log.Info("pull cancelled", "image", ref.Familiar(), "cause", context.Cause(ctx))
	default:
		p.log.Warn("pull failed", "image", ref.Familiar(), "err", err)
	}
	return err
}

// run is Pull without the log.
func (p *Puller) run(ctx context.Context, ref oci.Reference, opts transfer.PullOptions, progress transfer.Sink) error {
	listener := transfer.NewRelay(progress)
	defer listener.Close()
	op := &pull{Puller: p, opts: opts, progress: listener.Send, src: p.remote.Session(ref, remote.Pull, opts.Credentials)}
	op.want = oci.HostPlatform()
	if opts.Platform != "" {
		var err error
		if op.want, err = oci.ParsePlatform(opts.Platform); err != nil {
			return err
		}
	}
	if !opts.AllTags {
		ref = ref.WithDefaultTag()
		fresh, err := op.one(ctx, ref)
		if err == nil {
			op.end(fresh, ref)
		}
		return err
	}
	var tags []string
	err := p.remote.Insist(ctx, func() (err error) {
		tags, err = op.src.Tags(ctx)
		return err
	})
	if err != nil {
		return pullError(ref.Repository(), err)
	}
	if len(tags) == 0 {
		return errs.New(errs.NotFound, "repository %s not found: it has no tags", ref.FamiliarName())
	}
	anyFresh := false
	for _, tag := range tags {
		tagged, err := ref.WithTag(tag)
		if err != nil {
			return err
		}
		fresh, err := op.one(ctx, tagged)
		if err != nil {
			return err
		}
		anyFresh = anyFresh || fresh
	}
	op.end(anyFresh, ref.Repository())
	return nil
}

// pull is one call of Pull.
type pull struct {
	*Puller
	opts     transfer.PullOptions
	want     oci.Platform
	src      *remote.Session
	progress transfer.Sink
}

func (p *pull) say(state transfer.State, ref oci.Reference) {
	p.progress(transfer.Progress{State: state, Ref: ref})
}

// end reports the last state: whether the name means another image than before.
func (p *pull) end(fresh bool, ref oci.Reference) {
	if fresh {
		p.say(transfer.Downloaded, ref)
	} else {
		p.say(transfer.UpToDate, ref)
	}
}

// one pulls one tag or digest. fresh is true when the name means another image than before.
func (p *pull) one(ctx context.Context, ref oci.Reference) (fresh bool, err error) {
	lease := p.st.Lease()
	defer lease.Release()

	if top, ok, err := p.current(ctx, ref, lease); err != nil {
		return false, err
	} else if ok {
		p.say(transfer.PullStarted, ref)
		p.progress(transfer.Progress{State: transfer.Resolved, Digest: top})
		return false, p.got(ctx, ref)
	}
	f, err := p.manifest(ctx, ref)
	if err != nil {
		return false, err
	}
	p.say(transfer.PullStarted, ref) // not earlier: when the registry does not know the name, the error is the only answer
	old, oldErr := p.images.Get(ctx, ref.String())
	got, err := p.image(ctx, lease, ref, f)
	if err != nil {
		return false, err
	}
	p.progress(transfer.Progress{State: transfer.Resolved, Digest: f.top})
	if p.opts.Got != nil {
		p.opts.Got(got)
	}
	fresh = oldErr != nil || old.ID != got
	p.log.Info("pulled", "image", ref.Familiar(), "digest", f.top, "from", f.Source)
	if fresh {
		p.images.Publish("pull", got, ref.Familiar())
	}
	return fresh, nil
}

// got reports the image that a name means already.
func (p *pull) got(ctx context.Context, ref oci.Reference) error {
	if p.opts.Got == nil {
		return nil
	}
	img, err := p.images.Get(ctx, ref.String())
	if err == nil {
		p.opts.Got(img.ID)
	}
	return err
}

// current reports whether the name means the same image here as in the registry, and whether that image is here, complete and
// undamaged. It sends at most one HEAD request. top is the digest that the name has in the registry.
func (p *pull) current(ctx context.Context, ref oci.Reference, lease *store.Lease) (top oci.Digest, ok bool, err error) {
	img, err := p.images.Get(ctx, ref.String())
	if err != nil {
		return "", false, nil //nolint:nilerr // the image is absent or damaged, so it is pulled
	}
	top = ref.Digest()
	if top == "" {
		err := p.remote.Insist(ctx, func() (err error) {
			top, err = p.src.Resolve(ctx, ref.Tag())
			return err
		})
		if err != nil && !errors.Is(err, errs.Unimplemented) {
			return "", false, pullError(ref, err)
		}
		if top == "" {
			return "", false, nil
		}
	}
	known := false
	for _, d := range img.Digests {
		known = known || d.Name() == ref.Name() && d.Digest() == top
	}
	if !known || !p.fits(img, top) {
		return "", false, nil
	}
	chain := img.Config.RootFS.DiffIDs
	lease.Layer(chain)
	if err := p.st.Health.Check(ctx, chain); err != nil {
		if errors.Is(err, errs.DataLoss) {
			p.log.Warn("image has a damaged layer", "image", ref.Familiar(), "err", err)
		}
		return "", false, ctx.Err()
	}
	return top, true, nil
}

// fits reports whether a pull of top would choose this image again. An earlier pull of top may have been for another platform.
func (p *pull) fits(img *image.Image, top oci.Digest) bool {
	if img.Manifest == nil {
		return false
	}
	if _, err := p.st.Blobs.Bytes(img.Manifest.Digest, oci.MaxManifest); err != nil {
		return false
	}
	got := img.Config.Platform()
	if img.Manifest.Digest == top && (p.opts.Platform == "" || got.Architecture == "") {
		return true // top is a manifest, not an index: there is no choice
	}
	return p.want.Matches(got)
}

// found is the manifest that a name leads to.
type found struct {
	*remote.Manifest
	top      oci.Digest       // what the name means: the digest of the index, or of the manifest when there is no index
	index    *remote.Manifest // the index that lists the manifest; nil when the name means the manifest itself
	platform oci.Platform     // what the image has to be for: the platform that the index states, else the wanted one
}

// manifest fetches the manifest that a reference names. From an index it fetches the manifest for the wanted platform.
func (p *pull) manifest(ctx context.Context, ref oci.Reference) (f found, err error) {
	err = p.remote.Insist(ctx, func() (err error) {
		f.Manifest, err = p.src.Manifest(ctx, ref.TagIn())
		return err
	})
	if err != nil {
		return f, manifestError(ref, err)
	}
	f.top, f.platform = f.Digest, p.want
	for depth := 0; oci.IsIndex(f.MediaType); depth++ {
		if depth == oci.MaxIndexDepth {
			return f, errs.New(errs.Invalid, "%s: indexes are nested deeper than %d", ref.Familiar(), oci.MaxIndexDepth)
		}
		f.index = f.Manifest
		index, err := oci.DecodeIndex(f.Data, f.MediaType)
		if err != nil {
			return f, errs.New(errs.Invalid, "%s: %w", ref.Familiar(), err)
		}
		d, err := index.Choose(p.want)
		if err != nil {
			return f, err
		}
		if d.Platform != nil && d.Platform.Architecture != "" {
			f.platform = *d.Platform
		}
		if f.Manifest, err = p.child(ctx, d); err != nil {
			return f, manifestError(ref, err)
		}
	}
	return f, nil
}

// child returns a manifest that an index lists: from the store when it is there, else from the registry.
func (p *pull) child(ctx context.Context, d oci.Descriptor) (*remote.Manifest, error) {
	if data, err := p.st.Blobs.Bytes(d.Digest, oci.MaxManifest); err == nil {
		if mediaType, err := oci.SniffManifest(data, d.MediaType); err == nil {
			return &remote.Manifest{Descriptor: oci.Descriptor{MediaType: mediaType, Digest: d.Digest, Size: int64(len(data))}, Data: data}, nil
		}
	}
	var m *remote.Manifest
	err := p.remote.Insist(ctx, func() (err error) {
		m, err = p.src.Manifest(ctx, string(d.Digest))
		return err
	})
	if err != nil {
		return nil, err
	}
	if m.Size != d.Size || m.MediaType != d.MediaType {
		return nil, errs.New(errs.Invalid, "manifest %s: is %d bytes of %s, the index says %d of %s", d.Digest, m.Size, m.MediaType, d.Size, d.MediaType)
	}
	return m, nil
}

// image fetches everything that a manifest names and records the image.
func (p *pull) image(ctx context.Context, lease *store.Lease, ref oci.Reference, f found) (oci.ImageID, error) {
	man, err := oci.DecodeManifest(f.Data, f.MediaType)
	if err != nil {
		return "", errs.New(errs.Invalid, "%s: %w", ref.Familiar(), err)
	}
	switch man.Config.MediaType {
	case oci.MediaTypeDockerConfig, oci.MediaTypeOCIConfig, "application/octet-stream":
	default:
		return "", errs.New(errs.Invalid, "%s: is not a container image: its config is %q", ref.Familiar(), man.Config.MediaType)
	}
	lease.Blob(f.Digest, man.Config.Digest)
	raw, err := p.small(ctx, p.src, man.Config, oci.MaxConfig)
	if err != nil {
		return "", pullError(ref, err)
	}
	cfg, err := oci.DecodeConfig(raw)
	if err != nil {
		return "", errs.New(errs.Invalid, "%s: %w", ref.Familiar(), err)
	}
	if err := p.check(ref, cfg, man, f.platform); err != nil {
		return "", err
	}
	lease.Layer(cfg.RootFS.DiffIDs)
	if err := p.layers(ctx, cfg.RootFS.DiffIDs, man.Layers); err != nil {
		return "", pullError(ref, err)
	}
	o := image.PutOptions{Config: raw, Manifest: &f.Descriptor, Names: []oci.Reference{ref.Repository().WithDigest(f.top)}}
	switch {
	case p.opts.Aside:
		o.Names = []oci.Reference{ref.Repository().WithDigest(f.Digest)}
	case ref.Digest() == "":
		o.Names = append(o.Names, ref)
	}
	blobs := [][]byte{f.Data, raw}
	if f.index != nil {
		lease.Blob(f.index.Digest)
		o.Index = &f.index.Descriptor
		blobs = append(blobs, f.index.Data)
	}
	for _, b := range blobs {
		if _, err := p.st.Blobs.Put(b); err != nil {
			return "", err
		}
	}
	return p.images.Put(ctx, lease, o)
}

// check compares the config with the manifest and with the platform that the image has to be for.
func (p *pull) check(ref oci.Reference, cfg *oci.Config, man *oci.Manifest, want oci.Platform) error {
	if !cfg.ForLinux() {
		return errs.New(errs.Invalid, "%s: image operating system %q cannot be used on this platform", ref.Familiar(), cfg.OS)
	}
	if len(cfg.RootFS.DiffIDs) != len(man.Layers) {
		return errs.New(errs.Invalid, "%s: the manifest has %d layers, the config %d", ref.Familiar(), len(man.Layers), len(cfg.RootFS.DiffIDs))
	}
	got := cfg.Platform()
	if p.opts.Platform != "" && cfg.Architecture != "" && !want.Matches(got) {
		return errs.New(errs.NotFound, "image with reference %s was found but does not match the specified platform: wanted %s, actual: %s", ref.Familiar(), want, got)
	}
	return nil
}

// small returns a small blob, such as a config: from the store when it is there and undamaged, else from the registry, of at most
// limit bytes and verified.
func (p *Puller) small(ctx context.Context, src *remote.Session, d oci.Descriptor, limit int64) ([]byte, error) {
	if data, err := p.st.Blobs.Bytes(d.Digest, limit); err == nil {
		return data, nil
	}
	var data []byte
	err := p.remote.Insist(ctx, func() (err error) {
		data, err = src.Bytes(ctx, d, limit)
		return err
	})
	return data, err
}

// layers fetches every layer that is missing or damaged, all at the same time. A flight that another pull started can fail for
// a reason that concerns only that pull, such as its credentials. Then a second round starts flights for this pull.
func (p *pull) layers(ctx context.Context, chain oci.Chain, descs []oci.Descriptor) error {
	shared, err := p.round(ctx, chain, descs)
	if err != nil && shared && ctx.Err() == nil {
		_, err = p.round(ctx, chain, descs)
	}
	return err
}

// round joins or starts one flight per layer and waits for all of them. shared is true when another pull started one of them.
func (p *pull) round(ctx context.Context, chain oci.Chain, descs []oci.Descriptor) (shared bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	var below *flight
	var flights []*flight
	for i, desc := range descs {
		sub := chain[:i+1]
		state := p.st.Health.State(ctx, sub)
		if state == store.LayerPresent {
			p.progress(transfer.Progress{State: transfer.LayerExists, Layer: desc.Digest.Short()})
			below = nil
			continue
		}
		p.progress(transfer.Progress{State: transfer.LayerQueued, Layer: desc.Digest.Short(), Size: desc.Size})
		f, started := p.join(flightKey{desc.Digest, sub.ID()}, desc, sub, below, p.src, state == store.LayerDamaged)
		defer p.leave(f) // only after all flights have ended, because those of the layers above need this one
		shared = shared || !started
		stopListening := f.feed.join(desc.Digest.Short(), p.progress)
		group.Go(func() {
			defer stopListening()
			if err := f.wait(ctx); err != nil {
				cancel(err)
			}
		})
		below = f
		flights = append(flights, f)
	}
	group.Wait()
	err = context.Cause(ctx)
	if errors.Is(err, errs.Unavailable) && slices.ContainsFunc(flights, func(f *flight) bool { return f.feed.hasBegun() }) {
		err = kept(err)
	}
	return shared, err
}
