package export

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
)

// Names and annotations of a layout.
const (
	blobDir           = "blobs/sha256/"
	annotationTag     = "org.opencontainers.image.ref.name"
	annotationCreated = "org.opencontainers.image.created"
)

// dockerImage is an element of manifest.json.
type dockerImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// WriteArchive writes the content as a tar that is an OCI layout and, for the kind docker, an archive for `docker load` too. The same content, names and time give the
// same bytes. Errors: errs.DataLoss for a layer whose bytes are damaged; the tar is then not complete.
func (o *Output) WriteArchive(ctx context.Context, st *store.Store, c *Content, created time.Time, w io.Writer) error {
	if o.Kind == Docker && c.IsIndex() {
		return errs.New(errs.Invalid, "docker exporter does not currently support exporting manifest lists").
			WithHint("Use type=oci, or build without attestations and for one platform.")
	}
	a := &archive{tw: tar.NewWriter(w)}
	a.dir("blobs/")
	a.dir(blobDir)
	docs := slices.Concat(c.Blobs, c.Manifests(), []Document{c.Root})
	slices.SortStableFunc(docs, func(x, y Document) int { return len(x.Data) - len(y.Data) })
	for _, d := range docs {
		a.file(blobDir+d.Digest.Hex(), d.Data)
	}
	a.json("index.json", o.layoutIndex(c, created))
	if o.Kind == Docker {
		img := dockerImage{Config: blobDir + c.Configs[0].Hex(), Layers: []string{}}
		for _, n := range o.Names {
			img.RepoTags = append(img.RepoTags, n.Familiar())
		}
		var m oci.Manifest
		if err := json.Unmarshal(c.Root.Data, &m); err != nil {
			return errs.New(errs.Internal, "manifest: %w", err)
		}
		for _, l := range m.Layers {
			img.Layers = append(img.Layers, blobDir+l.Digest.Hex())
		}
		a.json("manifest.json", []dockerImage{img})
	}
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	for _, l := range c.Layers {
		a.layer(ctx, st, l)
	}
	if a.err != nil {
		return a.err
	}
	return a.tw.Close()
}

// BlobDir takes the blobs of a layout.
type BlobDir interface {
	// Write reads the whole blob, and does nothing when the directory has it.
	Write(ctx context.Context, d oci.Descriptor, r io.Reader) error
}

// WriteLayout writes the blobs of the content, the root last. The index of the layout is the client's. Errors are those of WriteArchive.
func WriteLayout(ctx context.Context, st *store.Store, c *Content, dir BlobDir) error {
	for _, l := range c.Layers {
		r, err := Open(ctx, st, l)
		if err != nil {
			return err
		}
		h := sha256.New()
		counted := &counter{r: &interruptible{ctx: ctx, r: io.TeeReader(io.LimitReader(r, l.Size+1), h)}}
		err = dir.Write(ctx, l.Descriptor, counted)
		if counted.n > l.Size || counted.n == l.Size && oci.DigestOfHash(h) != l.Digest {
			err = damaged(st, l)
		}
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	for _, d := range slices.Concat(c.Blobs, c.Manifests(), []Document{c.Root}) {
		if err := dir.Write(ctx, d.Descriptor, bytes.NewReader(d.Data)); err != nil {
			return err
		}
	}
	return nil
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// damaged returns the error for a layer whose bytes are not what its digest says, and lets the store make them again.
func damaged(st *store.Store, l Layer) error {
	_, err := st.Blobs.Repair(l.Digest)
	return errors.Join(errs.New(errs.DataLoss, "layer %s: its bytes are damaged on disk", l.Digest.Short()).WithHint("Build again."), err)
}

// layoutIndex returns index.json: an entry for each name.
func (o *Output) layoutIndex(c *Content, created time.Time) index {
	x := index{SchemaVersion: 2, MediaType: oci.MediaTypeOCIIndex}
	add := func(notes map[string]string) {
		d := describe(c.Root.Descriptor)
		d.Annotations = maps.Clone(d.Annotations)
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		if _, ok := d.Annotations[annotationCreated]; !ok {
			d.Annotations[annotationCreated] = created.UTC().Format(time.RFC3339)
		}
		maps.Copy(d.Annotations, notes)
		x.Manifests = append(x.Manifests, d)
	}
	for _, n := range o.Names {
		add(map[string]string{oci.AnnotationName: n.String(), annotationTag: n.Tag()})
	}
	if len(o.Names) == 0 {
		add(nil)
	}
	return x
}

// archive writes a tar and keeps the first error.
type archive struct {
	tw  *tar.Writer
	err error
}

func (a *archive) header(h *tar.Header) bool {
	if a.err != nil {
		return false
	}
	h.ModTime = time.Unix(0, 0).UTC()
	a.err = a.tw.WriteHeader(h)
	return a.err == nil
}

func (a *archive) dir(name string) {
	a.header(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755})
}

func (a *archive) file(name string, data []byte) {
	if a.header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: int64(len(data))}) {
		_, a.err = a.tw.Write(data)
	}
}

func (a *archive) json(name string, v any) {
	data, err := json.Marshal(v)
	if a.err == nil {
		a.err = err
	}
	a.file(name, data)
}

// layer writes a layer and compares its bytes with its digest.
func (a *archive) layer(ctx context.Context, st *store.Store, l Layer) {
	if a.err != nil {
		return
	}
	r, err := Open(ctx, st, l)
	if err != nil {
		a.err = err
		return
	}
	defer func() { a.err = errors.Join(a.err, r.Close()) }()
	if !a.header(&tar.Header{Typeflag: tar.TypeReg, Name: blobDir + l.Digest.Hex(), Mode: 0o444, Size: l.Size}) {
		return
	}
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(a.tw, h)}, &interruptible{ctx: ctx, r: io.LimitReader(r, l.Size+1)}, make([]byte, 256<<10))
	switch {
	case errors.Is(err, tar.ErrWriteTooLong), err == nil && (n != l.Size || oci.DigestOfHash(h) != l.Digest):
		a.err = damaged(st, l)
	case err != nil:
		a.err = err
	}
}
