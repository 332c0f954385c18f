package buildkit

import (
	"context"
	"errors"
	"io"

	content "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"ply/internal/build"
	"ply/internal/build/cachetransfer"
	"ply/internal/build/export"
	"ply/internal/errs"
	"ply/internal/oci"
)

var _ build.CacheDirs = (*Client)(nil)

// storeHeader says which of its directories a client is asked for.
const storeHeader = "buildkit-attachable-store-id"

// contentWrite is the method by which a client shows that it offers such directories.
const contentWrite = "/containerd.services.content.v1.Content/Write"

// CacheDir implements build.CacheDirs.
func (c *Client) CacheDir(ctx context.Context, name string) (cachetransfer.Dir, error) {
	s, err := c.session(ctx, "")
	if err != nil {
		return nil, err
	}
	if !s.offers(contentWrite) {
		return nil, errs.New(errs.NotFound, "the client offers no directory %s for a cache", clip(name))
	}
	return &cacheDir{client: content.NewContentClient(s.cc), store: "local:" + name}, nil
}

var _ build.Layouts = (*Client)(nil)

// contentRead is the method by which a client shows that it has layouts.
const contentRead = "/containerd.services.content.v1.Content/Read"

// Layout implements build.Layouts.
func (c *Client) Layout(ctx context.Context, session, store string) (build.Blobs, error) {
	s, err := c.session(ctx, session)
	if err != nil {
		return nil, err
	}
	if !s.offers(contentRead) {
		return nil, errs.New(errs.NotFound, "the client offers no OCI layout %s", clip(store))
	}
	return &cacheDir{client: content.NewContentClient(s.cc), store: "oci:" + store}, nil
}

var _ build.OutputLayouts = (*Client)(nil)

// outputStore is the name of the directory into which a client takes an output of the type oci.
const outputStore = "export"

// OutputLayout implements build.OutputLayouts. The client writes the index of the layout.
func (c *Client) OutputLayout(ctx context.Context) (export.BlobDir, error) {
	s, err := c.session(ctx, "")
	if err != nil {
		return nil, err
	}
	if !s.offers(contentWrite) {
		return nil, errs.New(errs.NotFound, "the client offers no directory for the output")
	}
	return &cacheDir{client: content.NewContentClient(s.cc), store: outputStore}, nil
}

// cacheDir is a directory of blobs that a client offers.
type cacheDir struct {
	client content.ContentClient
	store  string
}

func (d *cacheDir) choose(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, storeHeader, d.store)
}

// Open implements cachetransfer.Dir.
func (d *cacheDir) Open(ctx context.Context, digest oci.Digest) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(d.choose(ctx))
	stream, err := d.client.Read(ctx, &content.ReadContentRequest{Digest: string(digest)})
	if err != nil {
		cancel()
		return nil, named("blob "+digest.Short(), streamError(err))
	}
	r := &contentReader{stream: stream, cancel: cancel}
	if err := r.fill(); err != nil && !errors.Is(err, io.EOF) { // what is not there shows at the first message
		cancel()
		return nil, named("blob "+digest.Short(), err)
	}
	return r, nil
}

// contentReader reads a blob.
type contentReader struct {
	stream content.Content_ReadClient
	cancel context.CancelFunc
	rest   []byte
	end    error
}

func (r *contentReader) fill() error {
	for len(r.rest) == 0 && r.end == nil {
		m, err := r.stream.Recv()
		if err != nil {
			r.end = streamError(err)
			break
		}
		r.rest = m.Data
	}
	if len(r.rest) > 0 {
		return nil
	}
	return r.end
}

func (r *contentReader) Read(p []byte) (int, error) {
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *contentReader) Close() error {
	r.cancel()
	return nil
}

// contentChunk is how much of a blob is sent in a message, in bytes.
const contentChunk = 1 << 20

// Write implements cachetransfer.Dir.
func (d *cacheDir) Write(ctx context.Context, desc oci.Descriptor, r io.Reader) error {
	ctx, cancel := context.WithCancel(d.choose(ctx))
	defer cancel()
	if _, err := d.client.Info(ctx, &content.InfoRequest{Digest: string(desc.Digest)}); err == nil {
		return nil
	}
	stream, err := d.client.Write(ctx)
	if err != nil {
		return streamError(err)
	}
	ref := "ply-cache-" + string(desc.Digest)
	ask := func(m *content.WriteContentRequest) (int64, error) {
		m.Ref, m.Total, m.Expected = ref, desc.Size, string(desc.Digest)
		if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
			return 0, streamError(err) // after io.EOF Recv says why
		}
		answer, err := stream.Recv()
		if err != nil {
			return 0, err
		}
		return answer.Offset, nil
	}
	at, err := ask(&content.WriteContentRequest{Action: content.WriteAction_STAT})
	if status.Code(err) == codes.AlreadyExists {
		return nil
	}
	if err != nil {
		return streamError(err)
	}
	// The client has the beginning from an export that was interrupted.
	if _, err := io.CopyN(io.Discard, r, at); err != nil {
		return err
	}
	buf := make([]byte, contentChunk)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if _, err := ask(&content.WriteContentRequest{Action: content.WriteAction_WRITE, Offset: at, Data: buf[:n]}); err != nil {
				return streamError(err)
			}
			at += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if at != desc.Size {
		return errs.New(errs.DataLoss, "blob %s: has %d bytes, want %d", desc.Digest.Short(), at, desc.Size)
	}
	_, err = ask(&content.WriteContentRequest{Action: content.WriteAction_COMMIT, Offset: at})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		return streamError(err)
	}
	return nil
}
