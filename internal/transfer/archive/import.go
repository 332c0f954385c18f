package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/change"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
)

// Import makes an image of the tar of a root file system, plain or compressed. The uncompressed tar becomes its only layer, byte
// for byte. Changes are the instructions of package change. errs.Invalid when the stream is not a tar or has an entry that is
// refused, and for a malformed change or platform. After an error, nothing stays in the store.
func (a *Archive) Import(ctx context.Context, opts transfer.ImportOptions, progress transfer.Sink) (id oci.ImageID, err error) {
	platform := oci.HostPlatform()
	if opts.Platform != "" {
		if platform, err = oci.ParsePlatform(opts.Platform); err != nil {
			return "", err
		}
	}
	var run oci.RunConfig
	if err := change.Apply(&run, opts.Changes); err != nil {
		return "", err
	}
	message := opts.Message
	if message == "" {
		message = "Imported from " + transfer.WithoutSecrets(opts.From) // the history is pushed with the image
	}
	lease := a.st.Lease()
	var chain oci.Chain
	defer func() {
		lease.Release()
		if err != nil && chain != nil {
			_, rerr := a.st.Reclaim(context.WithoutCancel(ctx), []oci.Chain{chain}, nil)
			err = errors.Join(err, rerr)
		}
	}()
	diff, err := a.importLayer(ctx, lease, opts.Source, progress)
	if diff != "" {
		chain = oci.Chain{diff}
	}
	if err != nil {
		return "", fmt.Errorf("import: %w", err)
	}
	now := time.Now().UTC()
	id, err = a.images.Create(ctx, lease, image.CreateOptions{
		Config: oci.Config{
			Created: &now, Architecture: platform.Architecture, Variant: platform.Variant, OS: platform.OS,
			OSVersion: platform.OSVersion, OSFeatures: platform.OSFeatures,
			Config:  run,
			RootFS:  oci.RootFS{Type: "layers", DiffIDs: chain},
			History: []oci.History{{Created: &now, Comment: message}},
			Comment: message,
		},
		Format: opts.Format,
		Name:   opts.Name,
	})
	if err == nil {
		a.images.Publish("import", id, "")
	}
	return id, err
}

// importLayer stores the stream as a layer without layers below it.
func (a *Archive) importLayer(ctx context.Context, lease *store.Lease, r io.Reader, progress transfer.Sink) (oci.DiffID, error) {
	if r == nil {
		return "", errs.New(errs.Invalid, "no source")
	}
	done, err := a.limit.Acquire(ctx, func() {})
	if err != nil {
		return "", err
	}
	defer done()
	src := &faultReader{r: &interruptible{ctx, r}}
	zr, _, err := compress.NewReader(ctx, &progressReader{r: src, show: progress, state: transfer.LayerImporting, id: "-"})
	if err != nil {
		return "", err
	}
	defer zr.Close()
	w, err := a.st.Layers.Create(ctx)
	if err != nil {
		return "", err
	}
	guard := newGuard(a.st.Root, a.opts.Limits.Reserve)
	n, err := io.CopyBuffer(struct{ io.Writer }{guard.writer(w)}, io.LimitReader(zr, a.opts.Limits.Layer+1), make([]byte, 256<<10))
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case src.err != nil:
		err = src.err
	case err == nil && n > a.opts.Limits.Layer:
		err = errs.New(errs.Invalid, "the source unpacks to more than %d bytes", a.opts.Limits.Layer)
	}
	if err != nil {
		return "", errors.Join(err, w.Abort())
	}
	w.End()
	diff := w.DiffID()
	lease.Layer(oci.Chain{diff})
	info, err := w.Commit(ctx, nil, diff)
	if err != nil {
		return "", errors.Join(err, w.Abort())
	}
	return diff, a.st.RecordLayer(info, nil)
}
