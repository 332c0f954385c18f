package solver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

// fakeCache remembers in memory.
type fakeCache struct {
	mu    sync.Mutex
	keys  map[oci.Digest]oci.Digest
	steps map[oci.Digest]*Record
	names map[string]*Record
}

func newFakeCache() *fakeCache {
	return &fakeCache{keys: map[oci.Digest]oci.Digest{}, steps: map[oci.Digest]*Record{}, names: map[string]*Record{}}
}

func (c *fakeCache) Find(_ context.Context, _ Leaser, key oci.Digest) (*Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.steps[c.keys[key]]; r != nil {
		return r, nil
	}
	return nil, errs.New(errs.NotFound, "no such key")
}

func (c *fakeCache) Save(_ context.Context, r *Record, keys ...oci.Digest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps[r.ID], c.names[r.Name] = r, r
	for _, k := range keys {
		c.keys[k] = r.ID
	}
	return nil
}

func (c *fakeCache) Alias(_ context.Context, key, id oci.Digest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[key] = id
	return nil
}

func (c *fakeCache) Last(_ context.Context, name string) *Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names[name]
}

// fakeWorker makes layers of the text that describes them, and shows every chain as the same directory.
type fakeWorker struct {
	dir  string // what chains look like
	runs atomic.Int32
	run  func(ctx context.Context, r *Run) error // nil = at once
}

func (w *fakeWorker) Layer(_ context.Context, _ Leaser, base oci.Chain, write func(io.Writer) error) (oci.Chain, error) {
	w.runs.Add(1)
	var text strings.Builder
	if err := write(&text); err != nil {
		return nil, err
	}
	return append(base[:len(base):len(base)], oci.DiffID(oci.DigestOf([]byte(text.String())))), nil
}

func (w *fakeWorker) Scratch() (*os.File, error) { return nil, errors.ErrUnsupported }

func (w *fakeWorker) Rebase(_ context.Context, _ Leaser, chain, base oci.Chain) (oci.Chain, error) {
	return append(base[:len(base):len(base)], chain.Top()), nil
}

type fakeView struct {
	root *os.File
	t    *tree.Tree
}

func (v *fakeView) Tree() *tree.Tree { return v.t }
func (v *fakeView) Close() error     { return v.root.Close() }

func (w *fakeWorker) Mount(context.Context, oci.Chain) (View, error) {
	root, err := os.Open(w.dir)
	if err != nil {
		return nil, err
	}
	t, err := tree.New(root, tree.Options{})
	return &fakeView{root, t}, err
}

func (w *fakeWorker) Run(ctx context.Context, _ Leaser, r *Run) (map[int]oci.Chain, error) {
	n := w.runs.Add(1)
	if w.run != nil {
		if err := w.run(ctx, r); err != nil {
			return nil, err
		}
	}
	var base oci.Chain
	if len(r.Inputs) > 0 && r.Inputs[0] != nil {
		base = r.Inputs[0].Chain
	}
	layer := oci.DiffID(oci.DigestOf(fmt.Appendf(nil, "%d %v", n, r.Exec.Args)))
	return map[int]oci.Chain{0: append(base[:len(base):len(base)], layer)}, nil
}

func (w *fakeWorker) LookupUser(*tree.Tree, string, bool) (uint32, uint32, error) { return 7, 7, nil }

// fakeClient has directories and one image.
type fakeClient struct{ dirs map[string]*tree.Tree }

func (c *fakeClient) Source(_ context.Context, _ Leaser, v *ops.Vertex, _ func(Status)) (*Result, error) {
	if l, ok := v.Op.(*ops.Local); ok {
		return &Result{Dir: c.dirs[l.Name]}, nil
	}
	return &Result{Chain: oci.Chain{"sha256:base"}, Key: SourceKey("base")}, nil
}

func (c *fakeClient) Secret(context.Context, string) ([]byte, error) { return []byte("s3cret"), nil }
func (c *fakeClient) Agent(context.Context, string) (io.ReadWriteCloser, error) {
	return nil, errs.New(errs.NotFound, "no agent")
}

func (c *fakeClient) Allowed(e *ops.Exec) error {
	if e.Privileged {
		return errs.New(errs.Forbidden, "not allowed")
	}
	return nil
}

// outcomes remembers how vertices ended.
type outcomes struct {
	mu   sync.Mutex
	done map[string]Outcome
	logs map[string]string
}

func (o *outcomes) Start(*ops.Vertex) {}
func (o *outcomes) Log(v *ops.Vertex, _ bool, data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.logs[v.Name] += string(data)
}
func (o *outcomes) Status(*ops.Vertex, Status) {}
func (o *outcomes) Done(v *ops.Vertex, out Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.done[v.Name] = out
}

type noLease struct{}

func (noLease) Layer(oci.Chain) {}

// world is a solver with a directory of a client.
type world struct {
	t      *testing.T
	worker *fakeWorker
	cache  *fakeCache
	solver *Solver
	client *fakeClient
	dir    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, worker: &fakeWorker{dir: t.TempDir()}, cache: newFakeCache(), dir: t.TempDir(), client: &fakeClient{dirs: map[string]*tree.Tree{}}}
	w.solver = New(w.worker, w.cache, 0)
	root, err := os.Open(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	if w.client.dirs["context"], err = tree.New(root, tree.Options{RootOwned: true}); err != nil {
		t.Fatal(err)
	}
	w.write("f", "1")
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// solve builds an edge and returns how the vertices ended.
func (w *world) solve(e ops.Edge, opts ...func(*Options)) (*Result, *outcomes, error) {
	w.t.Helper()
	out := &outcomes{done: map[string]Outcome{}, logs: map[string]string{}}
	o := Options{Client: w.client, Progress: out, Lease: noLease{}}
	for _, f := range opts {
		f(&o)
	}
	j := w.solver.Job(context.Background(), o)
	r, err := j.Solve(context.Background(), e)
	if err := j.Close(); err != nil {
		w.t.Error(err)
	}
	return r, out, err
}

// cachedNames returns which of the steps came from the cache, as "ab-": a letter for a hit, a hyphen for a miss.
func (o *outcomes) hits(names string) string {
	s := ""
	for _, n := range names {
		if o.done[string(n)].Cached {
			s += string(n)
		} else {
			s += "-"
		}
	}
	return s
}

func vertex(name string, op ops.Op, ins ...ops.Edge) ops.Edge {
	v := &ops.Vertex{Name: name, Op: op, Inputs: ins}
	text := fmt.Sprintf("%s %T %+v", name, op, op)
	for _, in := range ins {
		if !in.IsZero() {
			text += string(in.Vertex.Digest)
		}
	}
	v.Digest = oci.DigestOf([]byte(text))
	return ops.Edge{Vertex: v}
}

func from() ops.Edge       { return vertex("FROM", &ops.Image{Ref: "base"}) }
func local() ops.Edge      { return vertex("context", &ops.Local{Name: "context"}) }
func rootMount() ops.Mount { return ops.Mount{Kind: ops.MountBind, Target: "/", Output: 0} }

func run(name, command string, in ops.Edge, more ...ops.Mount) ops.Edge {
	return vertex(name, &ops.Exec{Args: []string{command}, Mounts: append([]ops.Mount{rootMount()}, more...)}, in)
}

func copyFile(name, src string, base, source ops.Edge) ops.Edge {
	return vertex(name, &ops.Files{Actions: []ops.Action{{Base: 0, From: 1, Do: &ops.Copy{Src: src, Dest: "/", MakeDest: true}}}}, base, source)
}

// A line that changed, and all after it, are executed again; those before it are not.
func TestLinearCache(t *testing.T) {
	w := newWorld(t)
	linear := func(second string) ops.Edge {
		return run("d", "four", copyFile("c", "/f", run("b", second, run("a", "one", from())), local()))
	}
	want := func(e ops.Edge, hits string) {
		t.Helper()
		_, out, err := w.solve(e)
		if err != nil || out.hits("abcd") != hits {
			t.Errorf("hits %q, %v, want %q", out.hits("abcd"), err, hits)
		}
	}
	want(linear("two"), "----")
	want(linear("two"), "abcd")
	want(linear("changed"), "a---")
	want(linear("two"), "abcd")
	w.write("f", "2")
	want(linear("two"), "ab--")
	w.write("f", "1")
	want(linear("two"), "abcd")
	w.write("other", "not copied")
	want(linear("two"), "abcd")
	// the same lines in another order
	want(run("a", "one", run("b", "two", from())), "----")
}

func TestNoCache(t *testing.T) {
	w := newWorld(t)
	e := run("a", "one", from())
	for range 2 {
		if _, out, err := w.solve(e, func(o *Options) { o.NoCache = true }); err != nil || out.hits("a") != "-" {
			t.Errorf("%v, %v", out.done, err)
		}
	}
	ignored := run("a", "one", from())
	ignored.Vertex.IgnoreCache = true
	if _, out, _ := w.solve(ignored); out.hits("a") != "-" {
		t.Error("a step that must be executed came from the cache")
	}
	if n := w.worker.runs.Load(); n != 3 {
		t.Errorf("%d runs", n)
	}
}

// What a COPY takes from another stage counts by content: a stage that was made in another way but has the same file is a hit, also for what comes after.
func TestContentKey(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.worker.dir, "out"), []byte("same"), 0o644); err != nil {
		t.Fatal(err)
	}
	two := func(command string) ops.Edge {
		return run("b", "after", copyFile("a", "/out", from(), run("s", command, from())))
	}
	if _, _, err := w.solve(two("make")); err != nil {
		t.Fatal(err)
	}
	if _, out, err := w.solve(two("make differently")); err != nil || out.hits("sab") != "-ab" {
		t.Errorf("hits %q, %v", out.hits("sab"), err)
	}
	if err := os.WriteFile(filepath.Join(w.worker.dir, "out"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, out, err := w.solve(two("once more")); err != nil || out.hits("sab") != "---" {
		t.Errorf("hits %q, %v", out.hits("sab"), err)
	}
}

// Proxies, secrets and limits do not change a key; everything else of a command does.
func TestKeyOfCommand(t *testing.T) {
	base := func(edit func(*ops.Vertex, *ops.Exec)) ops.Edge {
		x := &ops.Exec{Args: []string{"make"}, Dir: "/", Mounts: []ops.Mount{rootMount()}}
		e := vertex("a", x, from())
		edit(e.Vertex, x)
		e.Vertex.Digest = oci.DigestOf(fmt.Appendf(nil, "%p", e.Vertex))
		return e
	}
	for _, c := range []struct {
		name string
		edit func(*ops.Vertex, *ops.Exec)
		hit  bool
	}{
		{"same", func(*ops.Vertex, *ops.Exec) {}, true},
		{"proxy", func(_ *ops.Vertex, x *ops.Exec) { x.Proxy.HTTP = "http://proxy" }, true},
		{"limits", func(v *ops.Vertex, _ *ops.Exec) { v.Limits = &ops.Limits{Memory: 1} }, true},
		{"name", func(v *ops.Vertex, _ *ops.Exec) { v.Name = "other" }, true},
		{"words", func(_ *ops.Vertex, x *ops.Exec) { x.Args = []string{"make", "all"} }, false},
		{"environment", func(_ *ops.Vertex, x *ops.Exec) { x.Env = []string{"A=1"} }, false},
		{"directory", func(_ *ops.Vertex, x *ops.Exec) { x.Dir = "/src" }, false},
		{"user", func(_ *ops.Vertex, x *ops.Exec) { x.User = "joe" }, false},
		{"network", func(_ *ops.Vertex, x *ops.Exec) { x.Network = ops.NetworkNone }, false},
		{"mount", func(_ *ops.Vertex, x *ops.Exec) {
			x.Mounts = append(x.Mounts, ops.Mount{Kind: ops.MountTmpfs, Target: "/t", Input: -1, Output: -1})
		}, false},
		{"platform", func(v *ops.Vertex, _ *ops.Exec) { v.Platform = oci.Platform{OS: "linux", Architecture: "s390x"} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if _, _, err := w.solve(base(func(*ops.Vertex, *ops.Exec) {})); err != nil {
				t.Fatal(err)
			}
			e := base(c.edit)
			_, out, err := w.solve(e)
			if err != nil || out.done[e.Vertex.Name].Cached != c.hit {
				t.Errorf("cached is %v, %v", out.done[e.Vertex.Name].Cached, err)
			}
		})
	}
}

// Branches run at the same time.
func TestParallel(t *testing.T) {
	w := newWorld(t)
	var both sync.WaitGroup
	both.Add(2)
	w.worker.run = func(_ context.Context, r *Run) error {
		if r.Exec.Args[0] != "join" {
			both.Done()
			both.Wait() // hangs unless both are here
		}
		return nil
	}
	a, b := run("a", "one", from()), run("b", "two", from())
	join := vertex("m", &ops.Merge{}, a, b)
	r, _, err := w.solve(run("c", "join", join))
	if err != nil || len(r.Chain) != 5 {
		t.Errorf("%v, %v", r, err)
	}
}

// Two builds that want the same step at the same time execute it once, and both see its output.
func TestEqualWorkIsDoneOnce(t *testing.T) {
	w := newWorld(t)
	started, go_ := make(chan struct{}), make(chan struct{})
	w.worker.run = func(_ context.Context, r *Run) error {
		close(started)
		<-go_
		r.Log(false, []byte("output"))
		return nil
	}
	type end struct {
		out *outcomes
		err error
	}
	ends := make(chan end, 2)
	build := func() {
		_, out, err := w.solve(run("a", "one", from()))
		ends <- end{out, err}
	}
	go build()
	<-started
	go build()
	waitFor(t, func() bool { return w.waiters() == 2 })
	close(go_)
	for range 2 {
		e := <-ends
		if e.err != nil || e.out.logs["a"] != "output" {
			t.Errorf("%q, %v", e.out.logs["a"], e.err)
		}
	}
	if n := w.worker.runs.Load(); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func (w *world) waiters() int {
	w.solver.mu.Lock()
	defer w.solver.mu.Unlock()
	n := 0
	for _, f := range w.solver.flights {
		f.mu.Lock()
		n += f.waiters
		f.mu.Unlock()
	}
	return n
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

// A build that is cancelled does not end the work that another one waits for; the last one does.
func TestCancel(t *testing.T) {
	w := newWorld(t)
	started, ended := make(chan struct{}), make(chan struct{})
	w.worker.run = func(ctx context.Context, _ *Run) error {
		close(started)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	job := func() (*Job, context.CancelFunc) {
		ctx, cancel := context.WithCancel(context.Background())
		out := &outcomes{done: map[string]Outcome{}, logs: map[string]string{}}
		return w.solver.Job(ctx, Options{Client: w.client, Progress: out, Lease: noLease{}}), cancel
	}
	e := run("a", "one", from())
	first, endFirst := job()
	second, endSecond := job()
	errs1, errs2 := make(chan error, 1), make(chan error, 1)
	go func() { _, err := first.Solve(context.Background(), e); errs1 <- err }()
	<-started
	go func() { _, err := second.Solve(context.Background(), e); errs2 <- err }()
	waitFor(t, func() bool { return w.waiters() == 2 })
	endFirst()
	if err := <-errs1; !errors.Is(err, context.Canceled) {
		t.Errorf("the first build: %v", err)
	}
	select {
	case <-ended:
		t.Error("the work ended although another build waits for it")
	default:
	}
	endSecond()
	<-ended
	if err := <-errs2; !errors.Is(err, context.Canceled) {
		t.Errorf("the second build: %v", err)
	}
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Error(err)
	}
	if len(w.solver.flights) != 0 {
		t.Error("a flight is left")
	}
}

// A failed step is an error of its vertex, is not remembered, and ends the build.
func TestFailure(t *testing.T) {
	w := newWorld(t)
	w.worker.run = func(_ context.Context, r *Run) error {
		if r.Exec.Args[0] == "bad" {
			return &ExitError{Code: 3}
		}
		return nil
	}
	e := run("b", "after", run("a", "bad", from()))
	for range 2 {
		_, out, err := w.solve(e)
		var ve *VertexError
		var exit *ExitError
		if !errors.As(err, &ve) || ve.Vertex.Name != "a" || !errors.As(err, &exit) || exit.Code != 3 || out.done["a"].Cached {
			t.Errorf("%v", err)
		}
		if _, ran := out.done["b"]; ran {
			t.Error("the step after it ran")
		}
	}
	privileged := vertex("p", &ops.Exec{Args: []string{"x"}, Privileged: true, Mounts: []ops.Mount{rootMount()}}, from())
	if _, _, err := w.solve(privileged); !errors.Is(err, errs.Forbidden) {
		t.Errorf("a step that is not allowed: %v", err)
	}
	if _, _, err := w.solve(copyFile("c", "/absent", from(), local())); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "/absent") {
		t.Errorf("a source that is not there: %v", err)
	}
}

// A miss says what changed.
func TestExplain(t *testing.T) {
	w := newWorld(t)
	build := func(command string) *outcomes {
		_, out, err := w.solve(copyFile("c", "/f", run("a", command, from()), local()))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if m := build("one").done["a"].Miss; m != "it was not executed before" {
		t.Errorf("the first time: %q", m)
	}
	out := build("two")
	if m := out.done["a"].Miss; m != "the instruction changed" {
		t.Errorf("a changed command: %q", m)
	}
	if m := out.done["c"].Miss; m != "input 1 (a) changed" {
		t.Errorf("a step after it: %q", m)
	}
	w.write("f", "3")
	if m := build("two").done["c"].Miss; m != "input 2 (context) changed" {
		t.Errorf("a changed file: %q", m)
	}
	_, reordered, err := w.solve(copyFile("c", "/f", run("[2/3] b", "three", from()), local()))
	if err != nil {
		t.Fatal(err)
	}
	if m := reordered.done["c"].Miss; m != "input 1 is b instead of a" {
		t.Errorf("on another step: %q", m)
	}
}

// The name of a step is the same in a Dockerfile that has another number of lines.
func TestTitle(t *testing.T) {
	for name, want := range map[string]string{
		"[2/5] RUN a": "RUN a", "[ 2/15] RUN a": "RUN a", "[stage-1 2/3] RUN a": "[stage-1] RUN a", "[stage-1  2/13] RUN a": "[stage-1] RUN a",
		"[linux/amd64 2/3] COPY a b": "[linux/amd64] COPY a b", "[linux/amd64 build  2/13] COPY a b": "[linux/amd64 build] COPY a b",
		"[internal] load build context": "[internal] load build context", "RUN [2/5] x": "RUN [2/5] x", "": "",
	} {
		if got := Title(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

// A difference is what the upper file system adds.
func TestMergeAndDiff(t *testing.T) {
	w := newWorld(t)
	a := run("a", "one", from())
	r, _, err := w.solve(vertex("x", &ops.Diff{}, from(), a))
	if err != nil || len(r.Chain) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	if _, _, err := w.solve(vertex("y", &ops.Diff{}, a, from())); !errors.Is(err, errs.Unimplemented) {
		t.Errorf("a difference of unrelated file systems: %v", err)
	}
	r, _, err = w.solve(vertex("z", &ops.Merge{}, from(), vertex("x", &ops.Diff{}, from(), a), ops.Edge{}))
	if err != nil || len(r.Chain) != 2 {
		t.Errorf("%v, %v", r, err)
	}
}

// A graph with a step that the client may not ask for is refused before anything of it is executed or taken from a cache, also when the cache makes the step needless.
func TestForbiddenStepIsNotNeeded(t *testing.T) {
	w := newWorld(t)
	privileged := vertex("p", &ops.Exec{Args: []string{"x"}, Privileged: true, Mounts: []ops.Mount{rootMount()}}, run("a", "before", from()))
	e := run("c", "after", run("b", "between", privileged))
	granted := func(o *Options) { o.Client = allowing{w.client} }
	if _, out, err := w.solve(e, granted); err != nil || w.worker.runs.Load() != 4 || out.hits("apbc") != "----" {
		t.Fatalf("%d steps ran, of which %s came from the cache: %v", w.worker.runs.Load(), out.hits("apbc"), err)
	}
	if _, out, err := w.solve(e, granted); err != nil || out.hits("apbc") != "apbc" {
		t.Errorf("%s came from the cache: %v", out.hits("apbc"), err)
	}
	var ve *VertexError
	_, out, err := w.solve(e)
	if !errors.Is(err, errs.Forbidden) || !errors.As(err, &ve) || ve.Vertex.Name != "p" || len(out.done) != 0 {
		t.Errorf("%v, after %v", err, out.done)
	}
	// The part of the graph that does not need the step is not refused.
	if _, out, err := w.solve(run("a", "before", from())); err != nil || out.hits("a") != "a" {
		t.Errorf("%v, after %v", err, out.done)
	}
}

// allowing is a client that may ask for everything.
type allowing struct{ *fakeClient }

func (allowing) Allowed(*ops.Exec) error { return nil }
