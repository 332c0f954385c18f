package solver

import (
	"context"
	"slices"

	"ply/internal/build/buildkitkey"
	"ply/internal/build/cachetransfer"
	"ply/internal/build/ops"
	"ply/internal/oci"
)

// Export returns what BuildKit's caches need to know of the roots of graphs that were solved and of all that they were made from. A layer that is in the
// store has its diffID only; one that an import has, and that the job did not need, has the import's descriptor and is in the second result.
// With all unset, the results of steps whose layers are not in the roots are left out.
func (j *Job) Export(ctx context.Context, roots []ops.Edge, all bool) (*cachetransfer.Writer, map[*cachetransfer.Result]*Import, error) {
	x := &export{j: j, ctx: ctx, all: all, w: cachetransfer.NewWriter(), done: map[foreignEdge][]int{}, elsewhere: map[*cachetransfer.Result]*Import{}, wanted: map[oci.DiffID]bool{}}
	for _, e := range roots {
		r, err := j.Solve(ctx, e)
		if err != nil {
			return nil, nil, err
		}
		if r != nil {
			for _, d := range r.Chain {
				x.wanted[d] = true
			}
		}
	}
	for _, e := range roots {
		if !e.IsZero() {
			x.edge(e)
		}
	}
	return x.w, x.elsewhere, context.Cause(ctx)
}

type export struct {
	j         *Job
	ctx       context.Context //nolint:containedctx // lives as long as one call
	all       bool
	w         *cachetransfer.Writer
	done      map[foreignEdge][]int
	elsewhere map[*cachetransfer.Result]*Import
	wanted    map[oci.DiffID]bool
}

// solved returns the result of an edge that the job has made; nil when it has not.
func (j *Job) solved(e ops.Edge) *Result {
	j.mu.Lock()
	t := j.tasks[e.Vertex.Digest]
	j.mu.Unlock()
	if t == nil {
		return nil
	}
	select {
	case <-t.done:
		return t.out[e.Index]
	default:
		return nil
	}
}

// edge adds the records of an output and of all that it depends on, and returns those that stand for it.
func (x *export) edge(e ops.Edge) (records []int) {
	key := foreignEdge{e.Vertex.Digest, e.Index}
	if records, ok := x.done[key]; ok {
		return records
	}
	defer func() { x.done[key] = records }()
	v, km := e.Vertex, x.j.keyMap(e.Vertex)
	if km == nil || x.ctx.Err() != nil {
		return nil
	}
	if isSource(v) {
		if r, err := x.j.Solve(x.ctx, e); err == nil && r != nil {
			for _, d := range r.Sources {
				records = append(records, x.w.Add(buildkitkey.Output(d, e.Index), nil, nil))
			}
		}
		return records
	}
	inputs := make([][]cachetransfer.Link, len(km.Deps))
	for i, d := range km.Deps {
		for _, n := range x.edge(d.Edge) {
			inputs[i] = append(inputs[i], cachetransfer.Link{Selector: d.Selector, Record: n})
		}
		// Content of a step is read again for a whole cache only: the link to the step's record finds the same result.
		if d.ByContent && (isSource(d.Edge.Vertex) || x.all && x.j.solved(d.Edge) != nil) && !x.isImage(d.Edge) {
			if sum := x.j.content(v, i); sum != "" {
				inputs[i] = append(inputs[i], cachetransfer.Link{Record: x.w.Add(sum, nil, nil)})
			}
		}
		if len(inputs[i]) == 0 {
			return nil // BuildKit could not find the record
		}
	}
	return []int{x.w.Add(buildkitkey.Output(km.Digest, e.Index), inputs, x.result(e))}
}

// isImage reports whether an edge is an image. What is copied from it is found by the link to its record.
func (x *export) isImage(e ops.Edge) bool {
	_, ok := e.Vertex.Op.(*ops.Image)
	return ok && !x.all
}

// result returns the layers of an output; nil when they are not exported.
func (x *export) result(e ops.Edge) *cachetransfer.Result {
	if may := e.Vertex.ExportCache; may != nil && !*may {
		return nil
	}
	if r := x.j.solved(e); r != nil {
		if r.Dir != nil || len(r.Chain) == 0 || !x.all && slices.ContainsFunc(r.Chain, func(d oci.DiffID) bool { return !x.wanted[d] }) {
			return nil
		}
		out := &cachetransfer.Result{Created: r.Created}
		for _, d := range r.Chain {
			out.Layers = append(out.Layers, oci.Descriptor{Annotations: map[string]string{cachetransfer.DiffID: string(d)}})
		}
		return out
	}
	if !x.all || len(x.j.imports()) == 0 {
		return nil
	}
	m := x.j.match(e)
	for i, imp := range x.j.imports() {
		if r := imp.Cache.Result(m.get(i)); r != nil && !x.j.isBad(r) {
			x.elsewhere[r] = imp
			return r
		}
	}
	return nil
}
