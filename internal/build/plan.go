package build

import (
	"context"
	"errors"
	"sync"
	"time"

	"ply/internal/build/dockerfile"
	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Plan is a build whose front end has run. Nothing but what the front end had to read was executed. Close ends it.
type Plan struct {
	// Output is what the front end made; nil when the request has a definition.
	Output *dockerfile.Output
	// Root is the result of the definition of the request.
	Root dockerfile.Result

	b      *running
	outs   []*export.Output
	ctx    context.Context
	cancel context.CancelCauseFunc
	resume func() bool // takes back that the end of the engine ends the build
	close  func() error

	opening chan struct{} // closed when the caches were opened; nil = there are none
}

// Plan runs the front end of a request. ctx is that of the whole build. Errors are those of Build.
func (s *Service) Plan(ctx context.Context, req Request, l Listener) (_ *Plan, err error) {
	s.work.Add(1)
	if s.stop.Err() != nil {
		s.work.Done()
		return nil, errs.New(errs.Unavailable, "the engine is stopping")
	}
	replaceGateway(&req)
	outs, err := parseOutputs(&req)
	if err != nil {
		s.work.Done()
		return nil, err
	}
	claims, err := parseAttests(req.Front.Options)
	if err != nil {
		s.work.Done()
		return nil, err
	}
	from, err := parseImports(&req)
	to, err2 := parseExports(&req)
	if err := errors.Join(err, err2); err != nil {
		s.work.Done()
		return nil, err
	}
	if err := s.findNetwork(&req); err != nil {
		s.work.Done()
		return nil, err
	}
	p := &Plan{outs: outs}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.resume = context.AfterFunc(s.stop, func() { p.cancel(errs.New(errs.Unavailable, "the engine is stopping")) })
	p.b = &running{s: s, req: req, l: l, lease: s.o.Store.Lease(), images: map[string]*base{}, hits: map[oci.Digest]bool{}, cacheTo: to, origins: map[oci.Digest]string{}, started: time.Now().UTC(), attests: claims}
	p.b.begin()
	p.b.fetches = s.sources.For(req.Client, p.b.lease)
	p.b.job = s.solver.Job(p.ctx, solver.Options{Client: p.b, Progress: p.b, Lease: p.b.lease, NoCache: req.NoCache, Network: req.Network, Imports: p.imports(from, &req)})
	p.close = sync.OnceValue(p.end)
	if err := p.front(req); err != nil {
		p.b.failed = p.failure(err)
		return nil, p.failure(errors.Join(err, p.Close()))
	}
	return p, nil
}

// findNetwork makes the network of a request its name. The default networks have modes of their own, of which that of the host needs permission.
func (s *Service) findNetwork(req *Request) (err error) {
	if req.Network == "" {
		return nil
	}
	if req.Network, err = s.o.Networks.Name(req.Network); err != nil {
		return err
	}
	if !spec.IsUserDefined(req.Network) {
		return errs.New(errs.Invalid, "network %s is no network of a user: ask for it by this name", req.Network)
	}
	return nil
}

// imports begins to open the caches that results are taken from. The function that it returns waits for them.
func (p *Plan) imports(list []cacheImport, req *Request) func() []*solver.Import {
	if _, question := req.Front.Options["requestid"]; len(list) == 0 || req.NoCache || question {
		return nil
	}
	p.opening = make(chan struct{})
	var found []*solver.Import
	go func() {
		defer close(p.opening)
		found = p.b.imports(p.ctx, list)
	}()
	return func() []*solver.Import {
		<-p.opening
		return found
	}
}

func (p *Plan) front(req Request) (err error) {
	if req.Definition == nil {
		p.Output, err = dockerfile.Build(p.ctx, req.Front, p.b)
		return err
	}
	graph, err := ops.DecodeBytes(req.Definition)
	if err == nil {
		p.Root, err = p.b.Solve(p.ctx, graph)
	}
	return err
}

// failure returns why the build ended, instead of what came of that.
func (p *Plan) failure(err error) error {
	if ended := context.Cause(p.ctx); err != nil && ended != nil && !errors.Is(ended, errClosed) {
		return ended
	}
	return err
}

var errClosed = errors.New("the build was closed")

// Context ends when the build ends before it is closed.
func (p *Plan) Context() context.Context { return p.ctx }

// Close ends what still runs and releases what the build held. A second call returns the result of the first.
func (p *Plan) Close() error { return p.close() }

func (p *Plan) end() error {
	s := p.b.s
	defer s.work.Done()
	if ended := context.Cause(p.ctx); ended != nil {
		if p.b.failed == nil && p.b.res == nil {
			p.b.failed = ended // nobody waited for the result
		}
		if p.b.record != nil && p.b.failed != nil {
			p.b.record.Cancel()
		}
	}
	err := p.b.job.Close()
	p.resume()
	p.cancel(errClosed)
	if p.opening != nil {
		<-p.opening
	}
	p.b.lease.Release()
	s.flush(p.b)
	return err
}

// Finish executes the build and makes its outputs.
func (p *Plan) Finish() (*Result, error) {
	res, err := p.finish()
	err = p.failure(err)
	if p.b.res, p.b.failed = res, err; res != nil && p.b.record != nil {
		res.ID = p.b.record.ID()
	}
	return res, err
}

func (p *Plan) finish() (*Result, error) {
	out := p.Output
	switch {
	case out == nil:
		return &Result{}, p.Root.Evaluate(p.ctx)
	case out.Metadata != nil:
		return &Result{Metadata: out.Metadata}, nil
	}
	for i := range out.Images {
		if t := out.Images[i].Epoch; t != nil {
			p.b.job.SetEpoch(*t) // the same for all platforms
		}
	}
	for i := range out.Images { // all platforms are executed at the same time, and reported one after the other
		go func() { _, _ = p.b.job.Solve(p.ctx, out.Images[i].Graph.Root) }() // the error is returned below
	}
	var images []*made
	for i := range out.Images {
		m, err := p.b.image(p.ctx, &out.Images[i])
		if err != nil {
			return nil, err
		}
		images = append(images, m)
	}
	res, err := p.b.export(p.ctx, p.outs, images, out.Index)
	if err == nil {
		err = p.b.exportCaches(p.ctx, images, res)
	}
	return res, err
}
