package push

import (
	"context"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// Target is a repository that gets content piece by piece, without an image in the store: layers and blobs first, then the manifests that list them. The caller
// holds a lease on the layers.
type Target struct {
	push
	ref   oci.Reference
	relay *transfer.Relay
}

// Target begins to send to the repository of a reference. The caller closes it.
func (p *Pusher) Target(ref oci.Reference, creds transfer.Credentials, progress transfer.Sink) *Target {
	relay := transfer.NewRelay(progress)
	return &Target{
		push: push{Pusher: p, opts: transfer.PushOptions{Credentials: creds}, progress: relay.Send, dst: p.remote.Session(ref, remote.Push, creds)},
		ref:  ref, relay: relay,
	}
}

// Close delivers the progress that waits.
func (t *Target) Close() { t.relay.Close() }

// Layers sends the layers of a chain and returns the descriptors of what the repository has then, bottom layer first. want are the forms in which it must have them; nil
// means the cheapest.
func (t *Target) Layers(ctx context.Context, chain oci.Chain, format oci.Format, want []oci.Descriptor) ([]oci.Descriptor, error) {
	descs, err := t.chain(ctx, chain, format, want, nil)
	return descs, pushError(t.ref, err)
}

// Blob sends a config or another small blob.
func (t *Target) Blob(ctx context.Context, data []byte) error {
	return pushError(t.ref, t.blob(ctx, oci.DigestOf(data), data))
}

// Manifest sends a manifest or an index. Without a tag it gets none.
func (t *Target) Manifest(ctx context.Context, tag, mediaType string, data []byte) error {
	if tag == "" {
		tag = string(oci.DigestOf(data))
	}
	return pushError(t.ref, t.insist(ctx, func() error { return t.dst.PutManifest(ctx, tag, mediaType, data) }))
}
