// Package solver executes the graph of a build: it finds the results that are known, executes the rest in parallel, and remembers what it made.
//
// Every vertex has a key: a digest of its operation and of its inputs. An input counts by its own key, so a step that changed changes the keys of
// all steps after it. What a COPY takes, and what a read-only mount shows, also counts by content: the key is then a second one for the same
// result. A directory of a client has no key, only content.
//
// Invariants: a result is remembered after its layers are durable; a result is used only while all its layers are there; equal work is executed
// once, also when several builds want it at the same time; secrets, proxies and limits are in no key; a step that the client may not ask for is refused before
// anything of its graph is executed, whatever a cache has.
package solver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"ply/internal/build/fileop"
	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Record is a result that a cache remembers.
type Record struct {
	ID      oci.Digest        // the key under which it was saved first; it stands for the result in the keys of later steps
	Outputs map[int]oci.Chain // by index of output
	Name    string            // of the vertex that made it, for people
	Parts   []Part            // what the key was made of, to explain a miss
	Created time.Time
	Took    time.Duration
}

// Part is a component of a key.
type Part struct {
	What string // "operation", or the name of an input
	Sum  string
}

// Cache remembers results. Safe for concurrent use.
type Cache interface {
	// Find returns the result of a key and marks it as used. It leases the layers before it looks whether they are there. The error's class is
	// errs.NotFound when there is no such key, or when a layer is missing.
	Find(ctx context.Context, l Leaser, key oci.Digest) (*Record, error)
	// Save remembers a result under keys. The layers are leased by the caller.
	Save(ctx context.Context, r *Record, keys ...oci.Digest) error
	// Alias remembers one more key of a result.
	Alias(ctx context.Context, key, id oci.Digest) error
	// Last returns the latest result of a vertex with the Title of that name, to explain a miss; nil when there is none.
	Last(ctx context.Context, name string) *Record
}

// Worker does the work that needs the services of the engine. Safe for concurrent use.
type Worker interface {
	// Layer stores what write writes, the tar of a layer on base, and returns the chain with it. The layers are leased until the job ends.
	Layer(ctx context.Context, l Leaser, base oci.Chain, write func(io.Writer) error) (oci.Chain, error)
	// Rebase stores the top layer of a chain on base as well, unless it is there, and returns that chain. It is leased until the job ends.
	Rebase(ctx context.Context, l Leaser, chain, base oci.Chain) (oci.Chain, error)
	// Mount shows a chain, which is not empty, as a tree.
	Mount(ctx context.Context, chain oci.Chain) (View, error)
	// Run executes a command and returns the outputs. The error is an *ExitError when the command ran and failed.
	Run(ctx context.Context, l Leaser, r *Run) (map[int]oci.Chain, error)
	// Scratch opens a file without a name, for what a step does not keep in memory.
	Scratch() (*os.File, error)
	// LookupUser returns the numbers of a user in /etc/passwd of t, or of a group in /etc/group. An unknown name is errs.Invalid.
	LookupUser(t *tree.Tree, name string, group bool) (uid, gid uint32, err error)
}

// Leaser protects layers from collection until a job ends.
type Leaser interface{ Layer(chain oci.Chain) }

// View is a mounted tree.
type View interface {
	Tree() *tree.Tree
	Close() error
}

// Run is a command with all that it needs.
type Run struct {
	Vertex *ops.Vertex
	Exec   *ops.Exec
	Inputs []*Result // one per input of the vertex; nil for an empty tree
	Client Client
	// Network is the network of a command that asks for the default one; "" = the engine's default.
	Network string
	Latest  time.Time // no file of a new layer is younger; zero = files keep their times
	Log     func(stderr bool, data []byte)
	// Started is told which container runs the command.
	Started func(id oci.ContainerID)
}

// ExitError reports that a command ended with a code that is not valid.
type ExitError struct {
	Command   []string
	Code      int
	OOMKilled bool
	Failed    oci.Chain // the root file system as the command left it; nil when it could not be kept
}

func (e *ExitError) Error() string {
	if e.OOMKilled {
		return fmt.Sprintf("process %q was killed: it ran out of memory", strings.Join(e.Command, " "))
	}
	return fmt.Sprintf("process %q did not complete successfully: exit code: %d", strings.Join(e.Command, " "), e.Code)
}

// Client is what a build asks of the client that started it, and of registries and hosts with that client's rights.
type Client interface {
	// Source opens a source. The result has a Key, except for a directory of the client.
	Source(ctx context.Context, l Leaser, v *ops.Vertex, status func(Status)) (*Result, error)
	// Secret returns a secret. The error's class is errs.NotFound when the client has none of that ID.
	Secret(ctx context.Context, id string) ([]byte, error)
	// Agent connects to an ssh agent of the client.
	Agent(ctx context.Context, id string) (io.ReadWriteCloser, error)
	// Allowed reports whether the client may ask for what e does (host network, a privileged step); the error says what is missing. It is asked before anything
	// of a graph with e is executed or taken from a cache.
	Allowed(e *ops.Exec) error
}

// Status is how far a source has come.
type Status struct {
	ID             string
	Current, Total int64
	Done           bool
	Container      oci.ContainerID // the command runs in it; the other fields are not set
}

// Result is one output of a vertex.
type Result struct {
	Chain   oci.Chain    // the layers; empty for an empty tree
	Dir     *tree.Tree   // a directory that is not made of layers; nil = layers
	Key     oci.Digest   // how it was made; "" for a directory of the client
	Sources []oci.Digest // under which BuildKit's caches know a source; see buildkitkey
	Step    oci.Digest   // ID of its Record; "" for a source
	Origin  string       // of a source that was fetched: the commit, or the digest of the file
	Created time.Time
}

// Outcome is how a vertex ended.
type Outcome struct {
	Cached  bool
	Miss    string // why a result that is made could not be taken from the cache; "" when it was not looked for
	Results map[int]*Result
	Took    time.Duration
	Err     error
}

// Progress is told what happens to the vertices of a job. Its methods are called by many goroutines, but for one vertex in order: Start, Log and Status, Done.
type Progress interface {
	Start(v *ops.Vertex)
	Log(v *ops.Vertex, stderr bool, data []byte)
	Status(v *ops.Vertex, s Status)
	Done(v *ops.Vertex, o Outcome)
}

// VertexError is an error of a step.
type VertexError struct {
	Vertex *ops.Vertex
	Err    error
}

func (e *VertexError) Error() string {
	return "failed to solve: " + e.Vertex.Name + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *VertexError) Unwrap() error { return e.Err }

// Solver is shared by all builds. Safe for concurrent use.
type Solver struct {
	worker Worker
	cache  Cache
	slots  chan struct{}

	mu      sync.Mutex
	flights map[oci.Digest]*flight
}

// New returns a solver that executes at most parallel steps at a time; 0 = twice the number of processors, and at least four.
func New(w Worker, c Cache, parallel int) *Solver {
	if parallel <= 0 {
		parallel = max(4, 2*runtime.NumCPU())
	}
	return &Solver{worker: w, cache: c, slots: make(chan struct{}, parallel), flights: map[oci.Digest]*flight{}}
}

// Options of a job.
type Options struct {
	Client   Client
	Progress Progress
	Lease    Leaser
	NoCache  bool             // execute every step
	Network  string           // as in Run; it is a part of the keys of the steps that are in it
	Imports  func() []*Import // waits for the caches of other builders, the first one first; nil = none
}

// Job is one build. Its results are valid until Close. Safe for concurrent use.
type Job struct {
	s      *Solver
	o      Options
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	epoch time.Time
	tasks map[oci.Digest]*task
	views map[oci.ChainID]*sharedView
	wg    sync.WaitGroup

	permitted map[oci.Digest]bool // vertices that the client may ask for, and all that they need

	foreign foreign
}

// Job begins a build, which ends with ctx or Close.
func (s *Solver) Job(ctx context.Context, o Options) *Job {
	j := &Job{s: s, o: o, tasks: map[oci.Digest]*task{}, views: map[oci.ChainID]*sharedView{}, permitted: map[oci.Digest]bool{}, foreign: newForeign()}
	j.ctx, j.cancel = context.WithCancel(ctx)
	return j
}

// SetEpoch makes the layers of the steps that begin from now on the same whenever they are made: no file is younger than t. Such results have keys of
// their own. Results that are imported from another cache are taken as they are.
func (j *Job) SetEpoch(t time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch = t
}

func (j *Job) latest() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.epoch
}

// Close ends what still runs, waits for it, and closes the trees that were opened for the job.
func (j *Job) Close() error {
	j.cancel()
	j.wg.Wait()
	var all error
	for _, v := range j.views {
		if v.view != nil {
			all = errors.Join(all, v.view.Close())
		}
	}
	return all
}

// task is the work on one vertex in one job.
type task struct {
	done chan struct{}
	out  map[int]*Result
	err  error
}

// Permit reports whether the client may ask for an edge and all that it is made of, also for what a cache makes needless. The error is a *VertexError.
func (j *Job) Permit(e ops.Edge) error {
	if e.IsZero() {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	seen := map[oci.Digest]bool{}
	for rest := []*ops.Vertex{e.Vertex}; len(rest) > 0; {
		v := rest[len(rest)-1]
		rest = rest[:len(rest)-1]
		if seen[v.Digest] || j.permitted[v.Digest] {
			continue
		}
		seen[v.Digest] = true
		if op, ok := v.Op.(*ops.Exec); ok {
			if err := j.o.Client.Allowed(op); err != nil {
				return &VertexError{v, err}
			}
		}
		for _, in := range v.Inputs {
			if !in.IsZero() {
				rest = append(rest, in.Vertex)
			}
		}
	}
	maps.Copy(j.permitted, seen)
	return nil
}

// Solve returns the result of an edge; nil for the zero edge, an empty tree. The error is a *VertexError, except when ctx or the job ended.
func (j *Job) Solve(ctx context.Context, e ops.Edge) (*Result, error) {
	if e.IsZero() {
		return nil, nil
	}
	if err := j.Permit(e); err != nil {
		return nil, err
	}
	t := j.task(e.Vertex)
	select {
	case <-t.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if t.err != nil {
		return nil, t.err
	}
	r := t.out[e.Index]
	if r == nil {
		return nil, errs.New(errs.Invalid, "%s has no output %d", e.Vertex.Name, e.Index)
	}
	return r, nil
}

// task returns the work on a vertex, which it starts if nothing has.
func (j *Job) task(v *ops.Vertex) *task {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := j.tasks[v.Digest]
	if t == nil {
		t = &task{done: make(chan struct{})}
		j.tasks[v.Digest] = t
		j.wg.Go(func() {
			defer close(t.done)
			t.out, t.err = j.vertex(v)
		})
	}
	return t
}

// vertex solves the inputs of a vertex and then the vertex.
func (j *Job) vertex(v *ops.Vertex) (map[int]*Result, error) {
	begun := false
	if j.o.Imports != nil && !isSource(v) {
		start := time.Now()
		var o Outcome
		var ok bool
		if o, ok, begun = j.shortcut(v); ok {
			return j.ended(v, start, o)
		}
	}
	for _, in := range v.Inputs {
		if !in.IsZero() {
			j.task(in.Vertex) // all begin before the first is waited for
		}
	}
	ins := make([]*Result, len(v.Inputs))
	for i, in := range v.Inputs {
		var err error
		if ins[i], err = j.Solve(j.ctx, in); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	if !begun {
		j.o.Progress.Start(v)
	}
	return j.ended(v, start, j.execute(v, ins))
}

// ended reports how a vertex ended.
func (j *Job) ended(v *ops.Vertex, start time.Time, o Outcome) (map[int]*Result, error) {
	o.Took = time.Since(start)
	if o.Err != nil {
		if j.ctx.Err() == nil {
			o.Err = &VertexError{v, o.Err}
		}
	}
	j.o.Progress.Done(v, o)
	return o.Results, o.Err
}

func single(r *Result) map[int]*Result { return map[int]*Result{0: r} }

func (j *Job) execute(v *ops.Vertex, ins []*Result) (o Outcome) {
	switch op := v.Op.(type) {
	case *ops.Merge:
		r, err := j.merge(ins)
		return Outcome{Results: single(r), Err: err}
	case *ops.Diff:
		r, err := j.diff(ins)
		return Outcome{Results: single(r), Err: err}
	case *ops.Exec:
		return j.cached(v, ins, func(ctx context.Context, log func(bool, []byte)) (map[int]oci.Chain, error) {
			return j.s.worker.Run(ctx, j.o.Lease, &Run{Vertex: v, Exec: op, Inputs: ins, Client: j.o.Client, Network: j.o.Network, Latest: j.latest(), Log: log, Started: func(id oci.ContainerID) {
				j.o.Progress.Status(v, Status{Container: id})
			}})
		})
	case *ops.Files:
		return j.cached(v, ins, func(ctx context.Context, log func(bool, []byte)) (map[int]oci.Chain, error) {
			return j.files(ctx, op, ins, log)
		})
	default:
		r, err := j.o.Client.Source(j.ctx, j.o.Lease, v, func(s Status) { j.o.Progress.Status(v, s) })
		if err != nil {
			return Outcome{Err: err}
		}
		return Outcome{Results: single(r)}
	}
}

// cached takes the outputs of a vertex from the cache, or makes them and remembers them.
func (j *Job) cached(v *ops.Vertex, ins []*Result, make func(context.Context, func(bool, []byte)) (map[int]oci.Chain, error)) (o Outcome) {
	if err := j.resolveDirs(v, ins); err != nil {
		return Outcome{Err: err}
	}
	k, err := j.keys(v, ins)
	if err != nil {
		return Outcome{Err: err}
	}
	look, imported := !j.o.NoCache && !v.IgnoreCache, false
	if look {
		rec, err := j.find(k)
		if err != nil {
			return Outcome{Err: err}
		}
		if rec != nil {
			return Outcome{Cached: true, Results: j.results(rec)}
		}
		o.Miss = j.explain(v, k)
	}
	rec, fresh, err := j.once(k.main, look, func(b []byte, stderr bool) { j.o.Progress.Log(v, stderr, b) }, func(ctx context.Context, log func(bool, []byte)) (*Record, error) {
		if look { // another build may have made it since
			if rec, err := j.s.cache.Find(ctx, j.o.Lease, k.main); err == nil {
				return rec, nil
			}
		}
		if f := j.imported(v, true); f != nil {
			if outs, err := j.fetch(ctx, v, f); err == nil {
				imported = true
				rec := &Record{ID: k.main, Outputs: outs, Name: v.Name, Parts: k.parts, Created: f.created()}
				return rec, j.s.cache.Save(ctx, rec, k.all()...)
			}
		}
		select {
		case j.s.slots <- struct{}{}:
			defer func() { <-j.s.slots }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		start := time.Now()
		outs, err := make(ctx, log)
		if err != nil {
			return nil, err
		}
		rec := &Record{ID: k.main, Outputs: outs, Name: v.Name, Parts: k.parts, Created: start.UTC(), Took: time.Since(start)}
		return rec, j.s.cache.Save(ctx, rec, k.all()...)
	})
	if err != nil {
		o.Err = err
		return o
	}
	for _, c := range rec.Outputs {
		j.o.Lease.Layer(c)
	}
	o.Cached, o.Results = !fresh || imported, j.results(rec)
	if imported {
		o.Miss = ""
	}
	return o
}

// once is Solver.once for the job. Close waits for work that the job began, also when another build goes on waiting for it, because it uses what the
// job has opened.
func (j *Job) once(key oci.Digest, join bool, sink func([]byte, bool), work func(context.Context, func(bool, []byte)) (*Record, error)) (*Record, bool, error) {
	j.wg.Add(1)
	rec, own, err := j.s.once(j.ctx, key, join, sink, func(ctx context.Context, log func(bool, []byte)) (*Record, error) {
		defer j.wg.Done()
		return work(ctx, log)
	})
	if !own {
		j.wg.Done()
	}
	return rec, own, err
}

// find looks for the result under every key; nil when there is none. A result that was found by content gets the main key as well.
func (j *Job) find(k *keys) (*Record, error) {
	rec, err := j.s.cache.Find(j.ctx, j.o.Lease, k.main)
	if errors.Is(err, errs.NotFound) && k.content != nil {
		var c oci.Digest
		if c, err = k.byContent(); err != nil {
			return nil, err
		}
		if rec, err = j.s.cache.Find(j.ctx, j.o.Lease, c); err == nil {
			err = j.s.cache.Alias(j.ctx, k.main, rec.ID)
		}
	}
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return rec, err
}

func (j *Job) results(rec *Record) map[int]*Result {
	out := map[int]*Result{}
	for i, chain := range rec.Outputs {
		out[i] = &Result{Chain: chain, Key: outputKey(rec.ID, i), Step: rec.ID, Created: rec.Created}
	}
	return out
}

// explain says what differs from the last time that a vertex of this name was executed.
func (j *Job) explain(v *ops.Vertex, k *keys) string {
	last := j.s.cache.Last(j.ctx, v.Name)
	if last == nil {
		return "it was not executed before"
	}
	split := func(p Part) (place, name string) {
		place, name, _ = strings.Cut(p.What, " (")
		return place, strings.TrimSuffix(name, ")")
	}
	old := map[string]Part{}
	for _, p := range last.Parts {
		place, _ := split(p)
		old[place] = p
	}
	for _, p := range k.parts {
		place, name := split(p)
		switch o, ok := old[place]; {
		case !ok || o.Sum != p.Sum && o.What == p.What:
			return p.What + " changed"
		case o.Sum != p.Sum:
			_, before := split(o)
			return place + " is " + name + " instead of " + before
		}
	}
	return "its result was removed from the cache"
}

var stepNumber = regexp.MustCompile(`^\[([^\]]*?) *\d+/\d+\] `)

// Title returns the name of a vertex without the number of the step, which changes with every line that is added to a Dockerfile.
func Title(name string) string {
	m := stepNumber.FindStringSubmatch(name)
	switch {
	case m == nil:
		return name
	case m[1] == "":
		return name[len(m[0]):]
	}
	return "[" + m[1] + "] " + name[len(m[0]):]
}

// merge lays layers on each other.
func (j *Job) merge(ins []*Result) (*Result, error) {
	out := &Result{}
	h := newKey("merge")
	for _, in := range ins {
		if in == nil {
			continue
		}
		in, err := j.layers(in)
		if err != nil {
			return nil, err
		}
		if out.Chain, err = j.rebase(in.Chain, 0, out.Chain); err != nil {
			return nil, err
		}
		h.text(string(in.Key))
		if in.Created.After(out.Created) {
			out.Created = in.Created
		}
		if in.Step != "" {
			out.Step = in.Step
		}
	}
	out.Key = h.sum()
	return out, nil
}

// rebase lays the layers of a chain, but for the first skip ones, on base. A driver may keep a layer for the layers below it only.
func (j *Job) rebase(chain oci.Chain, skip int, base oci.Chain) (_ oci.Chain, err error) {
	if skip == 0 && len(base) == 0 {
		return chain, nil
	}
	for i := skip; i < len(chain); i++ {
		if base, err = j.s.worker.Rebase(j.ctx, j.o.Lease, chain[:i+1], base); err != nil {
			return nil, err
		}
	}
	return base, nil
}

// diff returns the layers that the second input has on top of the first.
func (j *Job) diff(ins []*Result) (*Result, error) {
	lower, upper := ins[0], ins[1]
	if upper == nil {
		if lower == nil {
			return &Result{Key: newKey("diff").sum()}, nil
		}
		upper = &Result{}
	}
	upper, err := j.layers(upper)
	if err != nil {
		return nil, err
	}
	var below oci.Chain
	if lower != nil {
		if lower, err = j.layers(lower); err != nil {
			return nil, err
		}
		below = lower.Chain
	}
	if len(below) > len(upper.Chain) || below.ID() != upper.Chain[:len(below)].ID() {
		return nil, errs.New(errs.Unimplemented, "the difference of two file systems is supported only where the second is built on the first")
	}
	h := newKey("diff")
	if lower != nil {
		h.text(string(lower.Key))
	}
	h.text(string(upper.Key))
	chain, err := j.rebase(upper.Chain, len(below), nil)
	if err != nil {
		return nil, err
	}
	return &Result{Chain: chain, Key: h.sum(), Created: upper.Created}, nil
}

// layers returns a result as layers: a directory becomes one.
func (j *Job) layers(r *Result) (*Result, error) {
	if r.Dir == nil {
		return r, nil
	}
	all := &ops.Copy{Src: "/", Dest: "/", ContentsOnly: true, MakeDest: true}
	sum, err := r.Dir.Digest(j.ctx, []tree.Selection{fileop.Selects(all)})
	if err != nil {
		return nil, err
	}
	h := newKey("directory")
	h.text(string(sum))
	key := h.sum()
	rec, err := j.s.cache.Find(j.ctx, j.o.Lease, key)
	if errors.Is(err, errs.NotFound) {
		rec, _, err = j.once(key, true, nil, func(ctx context.Context, _ func(bool, []byte)) (*Record, error) {
			chain, err := j.s.worker.Layer(ctx, j.o.Lease, nil, func(w io.Writer) error {
				return fileop.Write(ctx, w, nil, []fileop.Step{{Do: all, From: r.Dir}}, j.fileOptions())
			})
			if err != nil {
				return nil, err
			}
			rec := &Record{ID: key, Outputs: map[int]oci.Chain{0: chain}, Name: "directory", Created: time.Now().UTC()}
			return rec, j.s.cache.Save(ctx, rec, key)
		})
	}
	if err != nil {
		return nil, err
	}
	j.o.Lease.Layer(rec.Outputs[0])
	return &Result{Chain: rec.Outputs[0], Key: outputKey(rec.ID, 0), Created: rec.Created}, nil
}

// resolveDirs replaces the inputs that must be layers.
func (j *Job) resolveDirs(v *ops.Vertex, ins []*Result) (err error) {
	for i, r := range ins {
		if r != nil && r.Dir != nil && needsLayers(v, i) {
			if ins[i], err = j.layers(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// needsLayers reports whether a vertex can use an input as layers only.
func needsLayers(v *ops.Vertex, input int) bool {
	switch op := v.Op.(type) {
	case *ops.Exec:
		for _, m := range op.Mounts {
			if m.Input == input {
				return true // a command sees a copy: the directory of a client may change meanwhile
			}
		}
	case *ops.Files:
		for _, a := range op.Actions {
			if a.Base == input {
				return true
			}
		}
	}
	return false
}
