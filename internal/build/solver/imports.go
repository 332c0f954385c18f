package solver

import (
	"context"
	"slices"
	"sync"
	"time"

	"ply/internal/build/buildkitkey"
	"ply/internal/build/cachetransfer"
	"ply/internal/build/ops"
	"ply/internal/oci"
)

// Import is a cache of another builder that a job takes results from when its own cache has none.
type Import struct {
	Name  string // for people
	Cache *cachetransfer.Cache
	// Fetch brings the layers of a result into the store and leases them. Everything that the digests of the layers say is checked.
	Fetch func(ctx context.Context, l Leaser, r *cachetransfer.Result, status func(Status)) (oci.Chain, error)
}

// foreign is what BuildKit's caches know of a graph. A vertex is looked for before its inputs are made, because a result that an import has makes them
// needless; then its inputs count by their keys only, and sources also by content. When the inputs were made, they count by content as well.
type foreign struct {
	mu    sync.Mutex
	edges map[foreignEdge]*matched
	maps  map[oci.Digest]*keyMap
	sums  map[foreignSum]*contentSum
	bad   map[*cachetransfer.Result]bool // could not be fetched, or are not what they claim
}

// imports waits for the caches of other builders.
func (j *Job) imports() []*Import {
	if j.o.Imports == nil {
		return nil
	}
	return j.o.Imports()
}

type foreignEdge struct {
	vertex oci.Digest
	index  int
}

type foreignSum struct {
	vertex oci.Digest
	input  int
}

type keyMap struct {
	once sync.Once
	m    *buildkitkey.Map // nil = BuildKit has no key for it
}

type contentSum struct {
	once sync.Once
	sum  oci.Digest // "" = it cannot be computed
}

// matched are the records that stand for an output of a vertex.
type matched struct {
	once sync.Once

	mu      sync.Mutex
	records [][]int // for every import
}

func newForeign() foreign {
	return foreign{edges: map[foreignEdge]*matched{}, maps: map[oci.Digest]*keyMap{}, sums: map[foreignSum]*contentSum{}, bad: map[*cachetransfer.Result]bool{}}
}

// isSource reports whether a vertex has no operation to execute.
func isSource(v *ops.Vertex) bool {
	switch v.Op.(type) {
	case *ops.Exec, *ops.Files, *ops.Merge, *ops.Diff:
		return false
	}
	return true
}

// keyMap returns how BuildKit knows a vertex; nil when it does not.
func (j *Job) keyMap(v *ops.Vertex) *buildkitkey.Map {
	f := &j.foreign
	f.mu.Lock()
	k := f.maps[v.Digest]
	if k == nil {
		k = &keyMap{}
		f.maps[v.Digest] = k
	}
	f.mu.Unlock()
	k.once.Do(func() {
		if m, err := buildkitkey.Of(v); err == nil {
			k.m = m
		}
	})
	return k.m
}

// content returns the digest of what a vertex reads of an input, which is made if it was not; "" when it has none.
func (j *Job) content(v *ops.Vertex, input int) oci.Digest {
	f := &j.foreign
	f.mu.Lock()
	key := foreignSum{v.Digest, input}
	s := f.sums[key]
	if s == nil {
		s = &contentSum{}
		f.sums[key] = s
	}
	f.mu.Unlock()
	s.once.Do(func() {
		dep := j.keyMap(v).Deps[input]
		r, err := j.Solve(j.ctx, dep.Edge)
		if err != nil {
			return // it is reported where the input is needed
		}
		t, err := j.Tree(j.ctx, r)
		if err != nil {
			return
		}
		sum, err := buildkitkey.Content(j.ctx, buildkitkey.Files{Tree: t, Sent: r != nil && r.Dir != nil && r.Key == ""}, dep.Content)
		if err == nil { // a file that is missing is reported by the step
			s.sum = sum
		}
	})
	return s.sum
}

// match returns the records of an output that are known before anything is executed.
func (j *Job) match(e ops.Edge) *matched {
	f := &j.foreign
	f.mu.Lock()
	key := foreignEdge{e.Vertex.Digest, e.Index}
	m := f.edges[key]
	if m == nil {
		m = &matched{records: make([][]int, len(j.imports()))}
		f.edges[key] = m
	}
	f.mu.Unlock()
	m.once.Do(func() { j.look(e, m, false) })
	return m
}

// get returns the records of one import.
func (m *matched) get(imp int) []int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.records[imp])
}

// put adds records.
func (m *matched) put(imp int, found []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range found {
		if !slices.Contains(m.records[imp], n) {
			m.records[imp] = append(m.records[imp], n)
		}
	}
}

// look looks for the records of an output. With made set the inputs of the vertex were made, so that their content can count.
func (j *Job) look(e ops.Edge, m *matched, made bool) {
	v := e.Vertex
	km := j.keyMap(v)
	if km == nil {
		return
	}
	if isSource(v) {
		if _, ok := v.Op.(*ops.Local); ok {
			return // a directory of a client has content only
		}
		r, err := j.Solve(j.ctx, e)
		if err != nil || r == nil {
			return
		}
		for i, imp := range j.imports() {
			for _, d := range r.Sources {
				if found, err := imp.Cache.Match(buildkitkey.Output(d, e.Index), nil); err == nil {
					m.put(i, found)
				}
			}
		}
		return
	}
	output := buildkitkey.Output(km.Digest, e.Index)
	below := make([]*matched, len(km.Deps))
	for i, d := range km.Deps {
		below[i] = j.match(d.Edge)
	}
	for n, imp := range j.imports() {
		inputs := make([]cachetransfer.Input, len(km.Deps))
		for i, d := range km.Deps {
			inputs[i] = cachetransfer.Input{Records: below[i].get(n), Selector: d.Selector}
			if d.ByContent && (made || isSource(d.Edge.Vertex)) {
				inputs[i].Content = func() (oci.Digest, error) { return j.content(v, i), nil }
			}
		}
		if found, err := imp.Cache.Match(output, inputs); err == nil {
			m.put(n, found)
		}
	}
}

// importable is a vertex whose outputs an import has.
type importable struct {
	imp     *Import
	results map[int]*cachetransfer.Result
}

// imported returns what an import has of a vertex; nil when no import has all outputs.
func (j *Job) imported(v *ops.Vertex, made bool) *importable {
	if j.o.NoCache || v.IgnoreCache || isSource(v) || len(j.imports()) == 0 {
		return nil
	}
	found := make([]*importable, len(j.imports()))
	for i := range found {
		found[i] = &importable{imp: j.imports()[i], results: map[int]*cachetransfer.Result{}}
	}
	for index := range v.Outputs() {
		e := ops.Edge{Vertex: v, Index: index}
		m := j.match(e)
		if made {
			j.look(e, m, true)
		}
		for i := range found {
			if found[i] == nil {
				continue
			}
			r := found[i].imp.Cache.Result(m.get(i))
			if r == nil || j.isBad(r) {
				found[i] = nil
				continue
			}
			found[i].results[index] = r
		}
	}
	for _, f := range found {
		if f != nil && len(f.results) > 0 {
			return f
		}
	}
	return nil
}

func (j *Job) isBad(r *cachetransfer.Result) bool {
	j.foreign.mu.Lock()
	defer j.foreign.mu.Unlock()
	return j.foreign.bad[r]
}

// chain returns the layers of an import's single result; nil when it has several.
func (i *importable) chain() oci.Chain {
	if len(i.results) != 1 || i.results[0] == nil {
		return nil
	}
	return i.results[0].Chain()
}

// covers reports whether the inputs of a vertex are sources, or come with the layers of its imported result. Then they are solved first, so that the result
// gets the key that it has when it is made here.
func (j *Job) covers(v *ops.Vertex, f *importable) bool {
	chain := f.chain()
	for _, in := range v.Inputs {
		if in.IsZero() || isSource(in.Vertex) || len(in.Vertex.Inputs) == 0 {
			continue // a file with text from the Dockerfile is made at once
		}
		below := j.imported(in.Vertex, false)
		if below == nil || chain == nil || below.chain() == nil {
			return false
		}
		for _, d := range below.chain() {
			if !slices.Contains(chain, d) {
				return false
			}
		}
	}
	return true
}

// fetch brings the outputs of an import. When it fails, the import is not asked for them again in this job.
func (j *Job) fetch(ctx context.Context, v *ops.Vertex, f *importable) (map[int]oci.Chain, error) {
	out := map[int]oci.Chain{}
	for index, r := range f.results {
		chain, err := f.imp.Fetch(ctx, j.o.Lease, r, func(s Status) { j.o.Progress.Status(v, s) })
		if err != nil {
			if ctx.Err() == nil {
				j.foreign.mu.Lock()
				j.foreign.bad[r] = true
				j.foreign.mu.Unlock()
				j.o.Progress.Log(v, true, []byte("WARNING: the result in the cache "+f.imp.Name+" is not used: "+err.Error()+"\n"))
			}
			return nil, err
		}
		out[index] = chain
	}
	return out, nil
}

// created returns the time of the newest result.
func (i *importable) created() (t time.Time) {
	for _, r := range i.results {
		if r.Created.After(t) {
			t = r.Created
		}
	}
	return t.UTC()
}

// shortcut takes a result from an import without solving the inputs of its vertex. ok is false when the inputs have to be solved. begun is true when the vertex
// was reported to begin.
func (j *Job) shortcut(v *ops.Vertex) (o Outcome, ok, begun bool) {
	f := j.imported(v, false)
	if f == nil || j.covers(v, f) {
		return o, false, false
	}
	j.o.Progress.Start(v)
	h := newKey("imported")
	h.text(string(j.keyMap(v).Digest))
	for index := range v.Outputs() {
		h.text(string(f.results[index].Chain().ID()))
	}
	key := h.sum()
	rec, _, err := j.once(key, true, nil, func(ctx context.Context, _ func(bool, []byte)) (*Record, error) {
		if rec, err := j.s.cache.Find(ctx, j.o.Lease, key); err == nil {
			return rec, nil
		}
		outs, err := j.fetch(ctx, v, f)
		if err != nil {
			return nil, err
		}
		rec := &Record{ID: key, Outputs: outs, Name: v.Name, Created: f.created()}
		return rec, j.s.cache.Save(ctx, rec, key)
	})
	if err != nil {
		return Outcome{Err: err}, j.ctx.Err() != nil, true
	}
	for _, c := range rec.Outputs {
		j.o.Lease.Layer(c)
	}
	return Outcome{Cached: true, Results: j.results(rec)}, true, true
}
