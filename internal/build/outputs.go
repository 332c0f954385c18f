package build

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/transfer"
)

// parseOutputs reads the outputs of a request. Without any, an image goes into the store. An image without a name gets the tags.
func parseOutputs(req *Request) ([]*export.Output, error) {
	list := req.Exports
	if len(list) == 0 {
		list = []Export{{Type: "image"}}
	}
	var outs []*export.Output
	for _, e := range list {
		o, err := export.Parse(e.Type, e.Attrs, req.Tags)
		if err != nil {
			return nil, err
		}
		if _, ok := req.Client.(OutputLayouts); o.Layout && !ok {
			return nil, errs.New(errs.Unimplemented, "output type=oci: tar=false is not supported by this client: unpack the tar")
		}
		outs = append(outs, o)
	}
	return outs, nil
}

// exporting is the end of a build: what was made goes where the request says.
type exporting struct {
	*running
	images  []*made
	asIndex bool // the result is one for several platforms
	res     *Result

	predicates [][]attested // of each image
	invocation string
}

// export executes the outputs, one after the other.
func (b *running) export(ctx context.Context, outs []*export.Output, images []*made, asIndex bool) (*Result, error) {
	x := &exporting{running: b, images: images, asIndex: asIndex, res: &Result{Answers: map[string]string{}}, invocation: newInvocation()}
	if err := x.attest(ctx); err != nil {
		return nil, err
	}
	for i, o := range outs {
		title := o.Title()
		if len(outs) > 1 {
			title += fmt.Sprintf(" (%d of %d)", i+1, len(outs))
		}
		err := x.step(title, func(v *ops.Vertex) error {
			err := x.output(ctx, i, o, v)
			if err == nil {
				x.report(o, v)
			}
			return err
		})
		if err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("%s: %w", title, err)
		}
		if err != nil {
			return nil, err
		}
	}
	return x.res, nil
}

// report says what an output has made, as BuildKit does.
func (x *exporting) report(o *export.Output, v *ops.Vertex) {
	if o.Kind != export.Image {
		return
	}
	done := func(what string) { x.Status(v, solver.Status{ID: what, Done: true}) }
	if o.Store && len(x.res.Images) > 0 {
		done("writing image " + string(x.res.Images[len(x.res.Images)-1]))
	}
	if o.Store || o.Push {
		for _, n := range o.Names {
			done("naming to " + n.String())
		}
	}
}

func (x *exporting) output(ctx context.Context, i int, o *export.Output, v *ops.Vertex) error {
	if o.Kind == export.Image || o.Kind == export.OCI || o.Kind == export.Docker {
		var err error
		if x, err = x.transform(ctx, o); err != nil {
			return err
		}
	}
	switch o.Kind {
	case export.Image:
		return x.image(ctx, o, v)
	case export.OCI, export.Docker:
		c, err := x.pack(ctx, o, true)
		if err != nil {
			return err
		}
		if err := x.answer(o, c); err != nil {
			return err
		}
		if o.Layout {
			return x.layoutTo(ctx, c)
		}
		return x.send(ctx, i, func(ctx context.Context, w io.Writer) error {
			return o.WriteArchive(ctx, x.s.o.Store, c, x.created(o), w)
		})
	case export.Tar:
		files, err := x.files(ctx, o)
		if err != nil {
			return err
		}
		return x.send(ctx, i, func(ctx context.Context, w io.Writer) error { return export.WriteTar(ctx, files, w) })
	case export.Local:
		files, err := x.files(ctx, o)
		if err != nil {
			return err
		}
		return x.req.Client.OutputDir(ctx, i, files)
	}
	return nil
}

// OutputLayouts is a Client that takes an OCI layout as a directory.
type OutputLayouts interface {
	OutputLayout(ctx context.Context) (export.BlobDir, error)
}

func (x *exporting) layoutTo(ctx context.Context, c *export.Content) error {
	dir, err := x.req.Client.(OutputLayouts).OutputLayout(ctx) // parseOutputs has checked that it is one
	if err != nil {
		return err
	}
	return export.WriteLayout(ctx, x.s.o.Store, c, dir)
}

// send writes an output into a stream of the client, which learns when that fails.
func (x *exporting) send(ctx context.Context, i int, write func(context.Context, io.Writer) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w, err := x.req.Client.OutputTar(ctx, i, maps.Clone(x.res.Answers))
	if err != nil {
		return err
	}
	if err := write(ctx, w); err != nil {
		cancel(err)
		if closeErr := w.Close(); errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) {
			err = errors.Join(closeErr, err) // why the client has gone
		}
		return err
	}
	return w.Close()
}

// epoch returns the time that files and documents of a platform get; nil = the time at which they were made.
func (x *exporting) epoch(o *export.Output, m *made) *time.Time {
	if o.Epoch != nil {
		return o.Epoch
	}
	return m.out.Epoch
}

// created returns the time for documents about all platforms.
func (x *exporting) created(o *export.Output) time.Time {
	for _, m := range x.images {
		if t := x.epoch(o, m); t != nil {
			return *t
		}
	}
	return time.Now()
}

// files returns the file systems of the platforms.
func (x *exporting) files(ctx context.Context, o *export.Output) (export.Files, error) {
	var parts []export.Part
	for i, m := range x.images {
		t, err := x.tree(ctx, m)
		if err != nil {
			return nil, err
		}
		parts = append(parts, export.Part{Platform: m.out.Platform, Tree: t, Predicates: x.predicatesFor(o, i), Epoch: x.epoch(o, m)})
	}
	return o.Directory(ctx, parts, x.asIndex, time.Now().UTC().Truncate(time.Second))
}

func (x *exporting) tree(ctx context.Context, m *made) (*tree.Tree, error) {
	return x.job.Tree(ctx, &solver.Result{Chain: m.chain})
}

// predicatesFor returns what an output says about an image.
func (x *exporting) predicatesFor(o *export.Output, i int) []export.Predicate {
	var list []export.Predicate
	for _, p := range x.predicates[i] {
		if o.AttestInline || !p.inlineOnly {
			list = append(list, p.Predicate)
		}
	}
	return list
}

// built returns what an output makes images of.
func (x *exporting) built(o *export.Output) []export.Built {
	var list []export.Built
	for i, m := range x.images {
		list = append(list, export.Built{Platform: m.out.Platform, Config: m.raw, Chain: m.chain, Predicates: x.predicatesFor(o, i)})
	}
	return list
}

// pack makes the documents of an output. With bytes, the store has every layer in the form that they list.
func (x *exporting) pack(ctx context.Context, o *export.Output, bytes bool) (*export.Content, error) {
	list := x.built(o)
	var layers [][]oci.Descriptor
	for _, b := range list {
		descs, err := o.Pack(ctx, x.s.o.Store, x.lease, b.Chain, bytes)
		if err != nil {
			return nil, err
		}
		layers = append(layers, descs)
	}
	return o.Assemble(list, layers, x.asIndex)
}

// answer notes what an image says about itself.
func (x *exporting) answer(o *export.Output, c *export.Content) error {
	a := x.res.Answers
	a["containerimage.digest"] = string(c.Root.Digest)
	if len(c.Configs) == 1 && !c.IsIndex() {
		a["containerimage.config.digest"] = string(c.Configs[0])
	}
	desc, err := json.Marshal(c.Root.Descriptor)
	if err != nil {
		return errs.New(errs.Internal, "descriptor: %w", err)
	}
	a["containerimage.descriptor"] = base64.StdEncoding.EncodeToString(desc)
	x.nameAnswer(o)
	return nil
}

func (x *exporting) nameAnswer(o *export.Output) {
	var names []string
	for _, n := range o.Names {
		names = append(names, n.String())
	}
	if len(names) > 0 {
		x.res.Answers["image.name"] = strings.Join(names, ",")
	}
}

// image makes images in the store, at registries, or both. The registries come first: a name here does not mean an image that could not be pushed.
func (x *exporting) image(ctx context.Context, o *export.Output, v *ops.Vertex) error {
	list := x.built(o)
	if !x.asIndex && len(list) == 1 && len(list[0].Predicates) == 0 && !o.NeedsManifest() {
		return x.plain(ctx, o, list[0])
	}
	var c *export.Content
	var err error
	if o.Push {
		c, err = x.push(ctx, o, list, v)
	} else {
		c, err = x.pack(ctx, o, false)
	}
	if err != nil {
		return err
	}
	if err := x.answer(o, c); err != nil {
		return err
	}
	if !o.Store {
		return nil
	}
	return x.store(ctx, o, c)
}

// plain records an image that needs no manifest before it is pushed.
func (x *exporting) plain(ctx context.Context, o *export.Output, b export.Built) error {
	m := x.images[0]
	id, err := x.s.o.Images.Put(ctx, x.lease, image.PutOptions{Config: b.Config, Names: o.Names, Parent: m.parent, Format: m.format})
	if err != nil {
		return err
	}
	x.s.o.Images.Publish("create", id, "")
	for _, t := range o.Names {
		x.s.o.Images.Publish("tag", id, t.Familiar())
	}
	x.res.Images = append(x.res.Images, id)
	x.res.Answers["containerimage.digest"] = string(id)
	x.res.Answers["containerimage.config.digest"] = string(id)
	x.nameAnswer(o)
	return nil
}

// store records the images of an output with their documents.
func (x *exporting) store(ctx context.Context, o *export.Output, c *export.Content) error {
	st := x.s.o.Store
	for _, d := range slices.Concat(c.Blobs, c.Manifests(), []export.Document{c.Root}) {
		x.lease.Blob(d.Digest)
		if _, err := st.Blobs.Put(d.Data); err != nil {
			return err
		}
	}
	names := slices.Clone(o.Names)
	if o.PushByDigest {
		names = nil
	}
	if o.Canonical || o.PushByDigest || o.Push {
		for _, n := range o.Names {
			names = append(names, n.Repository().WithDigest(c.Root.Digest))
		}
	}
	var puts []image.PutOptions
	for i, m := range x.images {
		d := oci.Descriptor{MediaType: c.Images[i].MediaType, Digest: c.Images[i].Digest, Size: c.Images[i].Size}
		puts = append(puts, image.PutOptions{Config: m.raw, Manifest: &d, Parent: m.parent})
	}
	var ids []oci.ImageID
	var err error
	if c.IsIndex() {
		p := image.PutIndexOptions{
			Index:  oci.Descriptor{MediaType: c.Root.MediaType, Digest: c.Root.Digest, Size: c.Root.Size},
			Images: puts, Names: names,
		}
		for _, a := range c.Attests {
			p.Artifacts = append(p.Artifacts, a.Descriptor)
		}
		for _, b := range c.Blobs {
			if !slices.Contains(c.Configs, b.Digest) {
				p.Blobs = append(p.Blobs, b.Digest)
			}
		}
		ids, err = x.s.o.Images.PutIndex(ctx, x.lease, p)
	} else {
		puts[0].Names = names
		var id oci.ImageID
		id, err = x.s.o.Images.Put(ctx, x.lease, puts[0])
		ids = []oci.ImageID{id}
	}
	if err != nil {
		return err
	}
	x.res.Images = append(x.res.Images, ids...)
	x.s.o.Images.Publish("create", ids[0], "")
	for _, t := range o.Names {
		x.s.o.Images.Publish("tag", ids[0], t.Familiar())
	}
	return nil
}

// push sends the images of an output to the registries of its names. A layer that a registry has already in another form is not packed again, unless the output asks
// for a form.
func (x *exporting) push(ctx context.Context, o *export.Output, list []export.Built, v *ops.Vertex) (*export.Content, error) {
	var layers [][]oci.Descriptor
	if o.Compression.Asked || o.Compression.Force {
		for _, b := range list {
			descs, err := o.Pack(ctx, x.s.o.Store, x.lease, b.Chain, true)
			if err != nil {
				return nil, err
			}
			layers = append(layers, descs)
		}
	}
	var c *export.Content
	for _, name := range o.Names {
		var err error
		if layers, err = x.pushLayers(ctx, o, name, list, layers, v); err != nil {
			return nil, err
		}
		if c == nil {
			if c, err = o.Assemble(list, layers, x.asIndex); err != nil {
				return nil, err
			}
		}
		if err := x.pushDocuments(ctx, o, name, c); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (x *exporting) pushLayers(ctx context.Context, o *export.Output, name oci.Reference, list []export.Built, layers [][]oci.Descriptor, v *ops.Vertex) ([][]oci.Descriptor, error) {
	cred, err := x.req.Client.Credentials(ctx, name.Domain())
	if err != nil {
		return nil, err
	}
	t := x.s.o.Pusher.Target(name, cred, func(p transfer.Progress) {
		if p.Layer != "" {
			x.l.Status(v, solver.Status{ID: "pushing " + p.Layer, Current: p.Current, Total: p.Total, Done: p.State == transfer.LayerPushed || p.State == transfer.LayerPresent || p.State == transfer.LayerMounted})
		}
	})
	defer t.Close()
	sent := make([][]oci.Descriptor, len(list))
	for i, b := range list {
		var want []oci.Descriptor
		if layers != nil {
			want = layers[i]
		}
		if sent[i], err = t.Layers(ctx, b.Chain, o.Format, want); err != nil {
			return nil, err
		}
		for n, d := range sent[i] {
			if want != nil && d.Digest != want[n].Digest {
				return nil, errs.New(errs.DataLoss, "layer %s could not be sent in the form %s again", b.Chain[n].Short(), want[n].Digest.Short()).WithHint("Push to one registry at a time.")
			}
		}
	}
	return sent, nil
}

func (x *exporting) pushDocuments(ctx context.Context, o *export.Output, name oci.Reference, c *export.Content) error {
	cred, err := x.req.Client.Credentials(ctx, name.Domain())
	if err != nil {
		return err
	}
	t := x.s.o.Pusher.Target(name, cred, transfer.Discard)
	defer t.Close()
	for _, b := range c.Blobs {
		if err := t.Blob(ctx, b.Data); err != nil {
			return err
		}
	}
	for _, m := range c.Manifests() {
		if err := t.Manifest(ctx, "", m.MediaType, m.Data); err != nil {
			return err
		}
	}
	tag := name.Tag()
	if o.PushByDigest {
		tag = ""
	}
	return t.Manifest(ctx, tag, c.Root.MediaType, c.Root.Data)
}
