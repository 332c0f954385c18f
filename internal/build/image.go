package build

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"time"

	"ply/internal/build/cachetransfer"
	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store/meta"
)

// making is the image of one platform while its steps end.
type making struct {
	b      *running
	out    *dockerfile.Image
	next   func() (oci.RunConfig, bool) // the config after the next instruction
	run    oci.RunConfig                // after the one that is executed
	config oci.Config                   // final, without layers
	fields map[string]json.RawMessage   // of the same config; unknown ones are kept

	chain   oci.Chain
	points  []point
	created time.Time   // of the last step
	times   []time.Time // of the entries of the history
	step    string      // meta.Image.Step for the image of the next step that changes the config only
	parent  oci.ImageID // the image after the step before
	format  oci.Format  // that of the base image
}

// made is the image of one platform, before the outputs of the build take it.
type made struct {
	out    *dockerfile.Image
	raw    []byte // its config
	chain  oci.Chain
	parent oci.ImageID // the image of the step before the last
	format oci.Format
	points []point // of the instructions
}

// image executes the graph of an image and records the image of every step on the way.
func (b *running) image(ctx context.Context, out *dockerfile.Image) (*made, error) {
	m := &making{b: b, out: out, step: meta.StepOfBase, format: b.s.o.Format}
	var err error
	if m.config, m.fields, err = decodeConfig(out.Config); err != nil {
		return nil, err
	}
	next, stop := iter.Pull(out.Configs())
	defer stop()
	m.next = next
	m.plan()
	if err := b.job.Permit(out.Graph.Root); err != nil {
		return nil, m.failed(ctx, err, nil)
	}
	// The whole graph is executed in parallel while the steps are reported in order.
	go func() { _, _ = b.job.Solve(ctx, out.Graph.Root) }() // its error is returned below
	for i := range out.Steps {
		if err := m.do(ctx, i); err != nil {
			return nil, err
		}
	}
	root, err := b.job.Solve(ctx, out.Graph.Root)
	if err != nil {
		return nil, m.failed(ctx, err, nil)
	}
	if root != nil {
		if root.Dir != nil {
			return nil, errs.New(errs.Internal, "the result of the build is a directory")
		}
		m.chain = root.Chain
		m.advance(root)
	}
	inline, err := b.inlineCache(ctx, out.Graph.Root, m.chain)
	if err != nil {
		return nil, err
	}
	if inline != nil {
		if m.fields[cachetransfer.InlineField], err = json.Marshal(inline); err != nil {
			return nil, errs.New(errs.Internal, "inline cache: %w", err)
		}
	}
	m.mark(len(m.config.History))
	raw, err := m.encode(nil, len(m.config.History))
	if err != nil {
		return nil, err
	}
	parent := m.parent
	if id := oci.ImageID(oci.DigestOf(raw)); parent == id && len(out.Steps) > 0 {
		parent = "" // the last step has recorded it with its parent
	}
	return &made{out: out, raw: raw, chain: m.chain, parent: parent, format: m.format, points: m.points}, nil
}

// plan tells the listener which instructions the image has.
func (m *making) plan() {
	p, ok := m.b.l.(Planner)
	if !ok {
		return
	}
	list := make([]StepInfo, len(m.out.Steps))
	for i := range list {
		v := m.out.Steps[i].Vertex
		list[i] = StepInfo{Step: m.out.Steps[i], Index: i + 1, Total: len(list), Executed: v != nil, Vertex: v}
	}
	p.Plan(list)
}

// do waits for one instruction and records the image after it.
func (m *making) do(ctx context.Context, i int) error {
	v := m.out.Steps[i].Vertex
	st := StepInfo{Step: m.out.Steps[i], Index: i + 1, Total: len(m.out.Steps), Executed: v != nil, Vertex: v, Cached: true}
	m.b.l.Step(st)
	var ok bool
	if m.run, ok = m.next(); !ok {
		return errs.New(errs.Internal, "the step of line %d has no config", st.Start)
	}
	from := st.Name == "FROM"
	if v != nil {
		r, err := m.b.job.Solve(ctx, m.out.Steps[i].Result)
		if err != nil {
			return m.failed(ctx, err, &st)
		}
		if r.Dir == nil {
			m.chain = r.Chain
		}
		m.advance(r)
		if r.Step != "" {
			m.step = string(r.Step)
		}
	}
	here := point{stage: st.Stage, chain: m.chain}
	if from && v != nil {
		if op, ok := v.Op.(*ops.Image); ok {
			here.ref = op.Ref
		}
	}
	m.points = append(m.points, here)
	if from {
		m.mark(m.out.Steps[i].History)
		m.parent = ""
		if v != nil {
			var img *image.Image
			err := error(errs.New(errs.NotFound, "not an image"))
			switch op := v.Op.(type) {
			case *ops.Image:
				img, err = m.b.baseImage(ctx, op.Ref, v.Platform, op.Mode, nil)
			case *ops.Layout:
				img, err = m.b.layoutImage(ctx, op.Ref, op.Session, op.Store, v.Platform)
			}
			if err == nil {
				m.parent, m.format = img.ID, img.Format
			}
		}
		st.Image = m.parent
		m.b.l.StepDone(st)
		return nil
	}
	if v != nil {
		st.Cached = m.b.cached(v)
	}
	m.mark(m.out.Steps[i].History)
	raw, err := m.encode(&m.out.Steps[i], m.out.Steps[i].History)
	if err != nil {
		return err
	}
	id := oci.ImageID(oci.DigestOf(raw))
	have := false // by exactly this ID: the service would look for another meaning of it in all images
	if err := m.b.s.o.Store.Meta.View(func(tx *meta.Tx) error { have = tx.Images.Has(id); return nil }); err != nil {
		return err
	}
	if !have {
		if id, err = m.b.s.o.Images.Put(ctx, m.b.lease, image.PutOptions{Config: raw, Parent: m.parent, Step: m.step, Format: m.format}); err != nil {
			return err
		}
		if v == nil {
			st.Cached = false
		}
	}
	m.parent, st.Image = id, id
	m.b.l.StepDone(st)
	return nil
}

// advance takes over when a result was made. The time of an image is that of its last step that did something.
func (m *making) advance(r *solver.Result) {
	if r.Created.After(m.created) {
		m.created = r.Created
	}
}

// mark gives the entries of the history up to n, as far as they have no time yet, that of the last step.
func (m *making) mark(n int) {
	for len(m.times) < n {
		m.times = append(m.times, m.created)
	}
}

// encode returns the config of the image after a step, or of the final image for nil, with n entries of the history.
func (m *making) encode(st *dockerfile.Step, n int) ([]byte, error) {
	c := m.config
	c.History = slices.Clone(c.History[:min(n, len(c.History))])
	created := m.created
	if m.out.Epoch != nil {
		created = *m.out.Epoch
	}
	for i := range c.History {
		h := &c.History[i]
		switch {
		case m.out.Epoch != nil && (h.Created == nil || h.Created.After(created)):
			h.Created = &created
		case h.Created == nil && i < len(m.times) && !m.times[i].IsZero():
			h.Created = &m.times[i]
		}
	}
	if st != nil {
		c.Config, c.Author = m.run, st.Author
	}
	c.RootFS = oci.RootFS{Type: "layers", DiffIDs: m.chain}
	if !created.IsZero() {
		c.Created = &created
	}
	flat, err := image.EncodeConfig(c)
	if err != nil {
		return nil, err
	}
	if !m.hasMore(c) {
		return flat, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(flat, &fields); err != nil {
		return nil, errs.New(errs.Internal, "image config: %w", err)
	}
	for k, v := range m.fields {
		if _, ok := fields[k]; !ok && !ours[k] {
			fields[k] = v
		}
	}
	return json.Marshal(fields)
}

// hasMore reports whether the config that the image began with has fields that c does not have. Most have none, and a config of many steps is long.
func (m *making) hasMore(c oci.Config) bool {
	c.Config, c.History, c.RootFS = oci.RunConfig{}, nil, oci.RootFS{}
	short, err := json.Marshal(c)
	if err != nil {
		return true
	}
	var has map[string]json.RawMessage
	if json.Unmarshal(short, &has) != nil {
		return true
	}
	for k := range m.fields {
		if _, ok := has[k]; !ok && !ours[k] {
			return true
		}
	}
	return false
}

// ours are the fields of a config that encode decides about, also when it leaves them out.
var ours = map[string]bool{"created": true, "author": true, "config": true, "rootfs": true, "history": true}

// failed turns the error of a vertex into that of an instruction, and records the file system that a failed command left.
func (m *making) failed(ctx context.Context, err error, st *StepInfo) error {
	var ve *solver.VertexError
	if !errors.As(err, &ve) {
		return err
	}
	e := &StepError{Err: dockerfile.Wrap(ve.Err, m.out.Graph, ve.Vertex)}
	var exit *solver.ExitError
	if !errors.As(ve.Err, &exit) {
		return e
	}
	e.Code = exit.Code
	if exit.Failed == nil {
		return e
	}
	conf := m.config.Config
	if st != nil {
		conf = m.run
	}
	cfg := oci.Config{
		OS: m.config.OS, Architecture: m.config.Architecture, Variant: m.config.Variant, Config: conf,
		RootFS: oci.RootFS{Type: "layers", DiffIDs: exit.Failed},
	}
	now := time.Now().UTC()
	cfg.Created = &now
	cfg.History = []oci.History{{Created: &now, CreatedBy: ve.Vertex.Name, Comment: "the file system after a build step that failed"}}
	raw, encErr := image.EncodeConfig(cfg)
	if encErr == nil {
		e.Image, encErr = m.b.s.o.Images.Put(context.WithoutCancel(ctx), m.b.lease, image.PutOptions{Config: raw, Step: meta.StepFailed, Format: m.format})
	}
	if encErr != nil {
		m.b.s.log.Warn("the state of a failed step was not kept", "step", ve.Vertex.Name, "err", encErr)
	}
	return e
}
