package pull

import (
	"context"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
)

// Source is a repository whose content is fetched piece by piece, without making an image of it.
type Source struct {
	pull
	ref   oci.Reference
	relay *transfer.Relay
}

// Source begins to fetch from the repository of a reference. The caller closes it.
func (p *Puller) Source(ref oci.Reference, creds transfer.Credentials, progress transfer.Sink) *Source {
	relay := transfer.NewRelay(progress)
	return &Source{
		pull: pull{Puller: p, opts: transfer.PullOptions{Credentials: creds}, progress: relay.Send, src: p.remote.Session(ref, remote.Pull, creds)},
		ref:  ref, relay: relay,
	}
}

// Close delivers the progress that waits.
func (s *Source) Close() { s.relay.Close() }

// Top returns the manifest or index that the reference names.
func (s *Source) Top(ctx context.Context) (m *remote.Manifest, err error) {
	err = s.remote.Insist(ctx, func() (err error) {
		m, err = s.src.Manifest(ctx, s.ref.TagIn())
		return err
	})
	if err != nil {
		return nil, manifestError(s.ref, err)
	}
	return m, nil
}

// Manifest returns a manifest that an index lists.
func (s *Source) Manifest(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	m, err := s.child(ctx, d)
	if err != nil {
		return nil, manifestError(s.ref, err)
	}
	return m.Data, nil
}

// Blob returns a small blob of at most limit bytes, verified.
func (s *Source) Blob(ctx context.Context, d oci.Descriptor, limit int64) ([]byte, error) {
	data, err := s.small(ctx, s.src, d, limit)
	if err != nil {
		return nil, pullError(s.ref, err)
	}
	return data, nil
}

// Layers brings the layers of a chain into the store, each from the blob of the same place. The caller has leased the chain. Errors: errs.Invalid when a blob is not
// the layer.
func (s *Source) Layers(ctx context.Context, chain oci.Chain, descs []oci.Descriptor) error {
	if err := s.layers(ctx, chain, descs); err != nil {
		return pullError(s.ref, err)
	}
	return nil
}
