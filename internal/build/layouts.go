package build

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/transfer"
)

// Loader records the images of archives; archive.Archive has it.
type Loader interface {
	Load(ctx context.Context, r io.Reader, opts transfer.LoadOptions, progress transfer.Sink) error
}

// Layouts is a Client that has OCI layouts in another way than as directories.
type Layouts interface {
	// Layout opens a layout of a session; "" is that of the build. The error's class is errs.NotFound when the client has none of that name.
	Layout(ctx context.Context, session, store string) (Blobs, error)
}

// Blobs are the blobs of an OCI layout.
type Blobs interface {
	// Open opens a blob. Its content is not checked. The error's class is errs.NotFound when it is not there.
	Open(ctx context.Context, d oci.Digest) (io.ReadCloser, error)
}

// directoryBlobs are the blobs of a layout that is a directory of the client.
type directoryBlobs struct{ *tree.Tree }

func (d directoryBlobs) Open(ctx context.Context, digest oci.Digest) (r io.ReadCloser, err error) {
	name := "/blobs/sha256/" + digest.Hex()
	err = d.Walk(name, tree.WalkOptions{Context: ctx}, func(e *tree.Entry) error {
		if r != nil || !e.Info.IsRegular() {
			return errs.New(errs.Invalid, "%s is not a file", name)
		}
		r, err = e.Open()
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		err = errs.New(errs.NotFound, "the layout has no blob %s", digest)
	}
	if err == nil && r == nil {
		err = errs.New(errs.NotFound, "the layout has no blob %s", digest)
	}
	return r, err
}

func (b *running) layout(ctx context.Context, session, store string) (Blobs, error) {
	if c, ok := b.req.Client.(Layouts); ok {
		return c.Layout(ctx, session, store)
	}
	t, err := b.req.Client.Local(ctx, &ops.Local{Name: store, Session: session})
	if err != nil {
		return nil, err
	}
	return directoryBlobs{t}, nil
}

// layoutImage returns an image of an OCI layout of the client. It is recorded without a name.
func (b *running) layoutImage(ctx context.Context, ref, session, store string, p oci.Platform) (*image.Image, error) {
	return b.onceImage(ctx, strings.Join([]string{"layout", session, store, ref, p.String()}, " "), func() (*image.Image, error) {
		img, err := b.findInLayout(ctx, ref, session, store, p)
		if err != nil {
			return nil, fmt.Errorf("OCI layout %s: %w", store, err)
		}
		return img, nil
	})
}

func (b *running) findInLayout(ctx context.Context, ref, session, store string, p oci.Platform) (*image.Image, error) {
	_, digest, ok := strings.Cut(ref, "@")
	root, err := oci.ParseDigest(digest)
	if !ok || err != nil {
		return nil, errs.New(errs.Invalid, "%.200q has no digest", ref)
	}
	blobs, err := b.layout(ctx, session, store)
	if err != nil {
		return nil, err
	}
	if p.Architecture == "" {
		p = oci.HostPlatform()
	}
	raw, err := readBlob(ctx, blobs, root, oci.MaxManifest)
	if err != nil {
		return nil, err
	}
	kind, err := oci.SniffManifest(raw, "")
	if err != nil {
		return nil, err
	}
	if oci.IsIndex(kind) {
		index, err := oci.DecodeIndex(raw, kind)
		if err != nil {
			return nil, err
		}
		d, err := index.Choose(p)
		if err != nil {
			return nil, err
		}
		if raw, err = readBlob(ctx, blobs, d.Digest, oci.MaxManifest); err != nil {
			return nil, err
		}
		kind = d.MediaType
	}
	m, err := oci.DecodeManifest(raw, kind)
	if err != nil {
		return nil, err
	}
	if img, err := b.s.o.Images.Get(ctx, string(m.Config.Digest)); err == nil {
		return img, nil
	}
	pr, pw := io.Pipe()
	go func() { _ = pw.CloseWithError(writeLayout(ctx, pw, blobs, raw, kind, m)) }() // never fails
	err = b.s.o.Loader.Load(ctx, pr, transfer.LoadOptions{Quiet: true, Platform: p.String()}, transfer.Discard)
	_ = pr.CloseWithError(err) // never fails
	if err != nil {
		return nil, err
	}
	return b.s.o.Images.Get(ctx, string(m.Config.Digest))
}

func readBlob(ctx context.Context, blobs Blobs, d oci.Digest, limit int64) ([]byte, error) {
	r, err := blobs.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errs.New(errs.Invalid, "blob %s has more than %d bytes", d, limit)
	}
	if oci.DigestOf(data) != d {
		return nil, errs.New(errs.Invalid, "blob %s has other content", d)
	}
	return data, nil
}

// writeLayout writes one image of a layout as an archive.
func writeLayout(ctx context.Context, w io.Writer, blobs Blobs, raw []byte, kind string, m *oci.Manifest) error {
	desc := oci.Descriptor{MediaType: kind, Digest: oci.DigestOf(raw), Size: int64(len(raw))}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []oci.Descriptor{desc}})
	if err != nil {
		return errs.New(errs.Internal, "index of a layout: %w", err)
	}
	tw := tar.NewWriter(w)
	file := func(name string, size int64, r io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}); err != nil {
			return err
		}
		_, err := io.Copy(tw, r)
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", index}, {"blobs/sha256/" + desc.Digest.Hex(), raw},
	} {
		if err := file(f.name, int64(len(f.data)), bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	done := map[oci.Digest]bool{}
	for _, d := range append([]oci.Descriptor{m.Config}, m.Layers...) {
		if done[d.Digest] {
			continue
		}
		done[d.Digest] = true
		r, err := blobs.Open(ctx, d.Digest)
		if err != nil {
			return err
		}
		h := sha256.New()
		err = file("blobs/sha256/"+d.Digest.Hex(), d.Size, io.TeeReader(io.LimitReader(r, d.Size), h))
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		if oci.DigestOfHash(h) != d.Digest {
			return errs.New(errs.Invalid, "blob %s has other content", d.Digest)
		}
	}
	return tw.Close()
}
