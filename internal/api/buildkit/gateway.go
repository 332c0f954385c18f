package buildkit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"strconv"
	"sync"

	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	capspb "github.com/moby/buildkit/util/apicaps/pb"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/status"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/errs"
)

// maxPlans is how many times a client may solve something in one build.
const maxPlans = 128

// gateway is a build that its client drives: it solves, reads and evaluates, and returns one of the results.
type gateway struct {
	ctx   context.Context // of the build
	s     *Server
	req   build.Request // what all solves have in common
	trace *Trace

	mu       sync.Mutex
	closed   bool
	plans    []*build.Plan
	refs     map[string]*ref
	work     sync.WaitGroup
	returned chan returned
}

// ref is a result that the client knows by an ID.
type ref struct {
	plan   *build.Plan
	name   string // of the result among those of the plan; "" for the only one
	result dockerfile.Result
}

// returned is how the client ended the build.
type returned struct {
	plan *build.Plan // nil = nothing is to be made
	err  error
}

func newGateway(ctx context.Context, s *Server, req build.Request, trace *Trace) *gateway {
	return &gateway{ctx: ctx, s: s, req: req, trace: trace, refs: map[string]*ref{}, returned: make(chan returned, 1)}
}

// result waits for what the client returns and finishes the build with it.
func (g *gateway) result(ctx context.Context) (*build.Result, error) {
	select {
	case r := <-g.returned:
		if r.err != nil {
			return nil, r.err
		}
		if r.plan == nil {
			return &build.Result{}, nil
		}
		return r.plan.Finish()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// close ends what the client has solved.
func (g *gateway) close() {
	g.mu.Lock()
	g.closed = true
	plans := g.plans
	g.plans = nil
	g.mu.Unlock()
	for _, p := range plans {
		if err := p.Close(); err != nil {
			g.s.log.Warn("a build was not closed", "err", err)
		}
	}
	g.work.Wait()
}

// enter begins a call of the client. The build does not close before it ends.
func (g *gateway) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.ctx.Err() != nil {
		return errs.New(errs.NotFound, "the build has ended")
	}
	g.work.Add(1)
	return nil
}

// plan begins a solve.
func (g *gateway) plan(req build.Request) (*build.Plan, error) {
	g.mu.Lock()
	full := len(g.plans) >= maxPlans
	g.mu.Unlock()
	if full {
		return nil, errs.New(errs.Exhausted, "the client solves more than %d times in one build", maxPlans)
	}
	p, err := g.s.o.Builder.Plan(g.ctx, req, g.trace)
	if err != nil {
		return nil, err
	}
	// The engine may end the build.
	context.AfterFunc(p.Context(), func() {
		if g.ctx.Err() == nil {
			g.end(returned{err: context.Cause(p.Context())})
		}
	})
	g.mu.Lock()
	closed := g.closed
	if !closed {
		g.plans = append(g.plans, p)
	}
	g.mu.Unlock()
	if closed {
		return nil, errors.Join(errs.New(errs.NotFound, "the build has ended"), p.Close())
	}
	return p, nil
}

// end makes r the result of the build, unless it has one.
func (g *gateway) end(r returned) {
	select {
	case g.returned <- r:
	default:
	}
}

// add gives a result an ID.
func (g *gateway) add(r *ref) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := "r" + strconv.Itoa(len(g.refs)+1)
	g.refs[id] = r
	return id
}

func (g *gateway) ref(id string) (*ref, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.refs[id]
	if r == nil {
		return nil, errs.New(errs.NotFound, "no such ref: %q", clip(id))
	}
	return r, nil
}

// bridge answers moby.buildkit.v1.frontend.LLBBridge for the builds that clients drive.
type bridge struct {
	gwpb.UnimplementedLLBBridgeServer
	s *Server
}

// build returns the build that a call belongs to, and the function that ends the call.
func (b *bridge) build(ctx context.Context) (*gateway, func(), error) {
	s, err := b.s.find(ctx, buildid.FromIncomingContext(ctx))
	if err != nil {
		return nil, nil, err
	}
	if s.gateway == nil {
		return nil, nil, errs.New(errs.Invalid, "the client does not drive the build %s", clip(s.ref))
	}
	if err := s.gateway.enter(); err != nil {
		return nil, nil, err
	}
	return s.gateway, s.gateway.work.Done, nil
}

// gatewayCaps are the capabilities of the gateway.
var gatewayCaps = []apicaps.CapID{
	gwpb.CapSolveBase, gwpb.CapReadFile, gwpb.CapReturnResult, gwpb.CapReturnMap, gwpb.CapReadDir, gwpb.CapStatFile, gwpb.CapImportCaches, gwpb.CapProtoRefArray,
	gwpb.CapReferenceOutput, gwpb.CapFrontendInputs, gwpb.CapGatewaySolveMetadata, gwpb.CapFrontendCaps, gwpb.CapGatewayEvaluateSolve, gwpb.CapGatewayEvaluate,
	gwpb.CapGatewayWarnings,
}

// Ping says what the gateway can do.
func (b *bridge) Ping(ctx context.Context, _ *gwpb.PingRequest) (*gwpb.PongResponse, error) {
	_, done, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	pong := &gwpb.PongResponse{LLBCaps: pb.Caps.All()}
	for _, c := range gatewayCaps {
		pong.FrontendAPICaps = append(pong.FrontendAPICaps, &capspb.APICap{ID: string(c), Enabled: true})
	}
	w, err := (&control{s: b.s}).ListWorkers(ctx, nil)
	if err != nil {
		return nil, err
	}
	pong.Workers = w.Record
	return pong, nil
}

// Solve runs the front end, or takes a definition.
func (b *bridge) Solve(ctx context.Context, r *gwpb.SolveRequest) (*gwpb.SolveResponse, error) {
	g, done, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if len(r.SourcePolicies) > 0 {
		return nil, errs.New(errs.Unimplemented, "a build with a source policy is not supported")
	}
	req := g.req
	for _, c := range r.CacheImports {
		req.CacheFrom = append(req.CacheFrom[:len(req.CacheFrom):len(req.CacheFrom)], build.CacheRef{Type: c.Type, Attrs: c.Attrs})
	}
	switch {
	case r.Frontend != "":
		if err := front(&req, r.Frontend, r.FrontendOpt); err != nil {
			return nil, err
		}
		req.Front.Inputs = map[string][]byte{}
		for name, def := range r.FrontendInputs {
			if req.Front.Inputs[name], err = def.MarshalVT(); err != nil {
				return nil, errs.New(errs.Invalid, "input %s: %w", clip(name), err)
			}
		}
	case len(r.Definition.GetDef()) > 0:
		if req.Definition, err = r.Definition.MarshalVT(); err != nil {
			return nil, errs.New(errs.Invalid, "definition: %w", err)
		}
	default:
		return &gwpb.SolveResponse{Result: &gwpb.Result{Result: &gwpb.Result_Ref{Ref: &gwpb.Ref{}}}}, nil
	}
	p, err := g.plan(req)
	if err != nil {
		return nil, err
	}
	res, refs, err := g.describe(p, r.Definition)
	if err == nil && r.Evaluate {
		for _, f := range refs {
			err = errors.Join(err, f.result.Evaluate(p.Context()))
		}
	}
	if err != nil {
		return nil, err
	}
	return &gwpb.SolveResponse{Result: res}, nil
}

// describe tells the client what a solve made.
func (g *gateway) describe(p *build.Plan, def *pb.Definition) (*gwpb.Result, []*ref, error) {
	if p.Output == nil {
		f := &ref{plan: p, result: p.Root}
		return &gwpb.Result{Result: &gwpb.Result_Ref{Ref: &gwpb.Ref{Id: g.add(f), Def: def}}}, []*ref{f}, nil
	}
	if p.Output.Metadata != nil {
		g.add(&ref{plan: p})
		return &gwpb.Result{Metadata: p.Output.Metadata, Result: &gwpb.Result_Ref{Ref: &gwpb.Ref{}}}, nil, nil
	}
	var list exptypes.Platforms
	if err := json.Unmarshal(p.Output.About[exptypes.ExporterPlatformsKey], &list); err != nil || len(list.Platforms) != len(p.Output.Images) {
		return nil, nil, errs.New(errs.Internal, "platforms of the front end's result: %v", err)
	}
	out := &gwpb.Result{Metadata: p.Output.About}
	all := map[string]*gwpb.Ref{}
	var refs []*ref
	for i := range p.Output.Images {
		img := &p.Output.Images[i]
		f := &ref{plan: p, result: img.Result}
		if p.Output.Index {
			f.name = list.Platforms[i].ID
		}
		d := &pb.Definition{}
		if err := d.UnmarshalVT(img.Definition); err != nil {
			return nil, nil, errs.New(errs.Internal, "definition of the front end's result: %w", err)
		}
		all[f.name] = &gwpb.Ref{Id: g.add(f), Def: d}
		refs = append(refs, f)
	}
	if p.Output.Index {
		out.Result = &gwpb.Result_Refs{Refs: &gwpb.RefMap{Refs: all}}
	} else {
		out.Result = &gwpb.Result_Ref{Ref: all[""]}
	}
	return out, refs, nil
}

// Return ends the build with a result of the front end, unchanged, or with an error.
func (b *bridge) Return(ctx context.Context, r *gwpb.ReturnRequest) (*gwpb.ReturnResponse, error) {
	g, done, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if r.Error != nil {
		g.end(returned{err: status.ErrorProto(r.Error)})
		return &gwpb.ReturnResponse{}, nil
	}
	plan, err := g.chosen(r.Result)
	if err != nil {
		g.end(returned{err: err})
		return nil, err
	}
	g.end(returned{plan: plan})
	return &gwpb.ReturnResponse{}, nil
}

// chosen returns the solve whose result the client returns.
func (g *gateway) chosen(r *gwpb.Result) (*build.Plan, error) {
	refs := map[string]*gwpb.Ref{}
	switch r := r.GetResult().(type) {
	case *gwpb.Result_Ref:
		refs[""] = r.Ref
	case *gwpb.Result_Refs:
		refs = r.Refs.GetRefs()
	case nil:
	default:
		return nil, errs.New(errs.Unimplemented, "the client returns a result in an old form, which is not supported")
	}
	var plan *build.Plan
	found := 0
	for name, pr := range refs {
		if pr.GetId() == "" {
			continue
		}
		f, err := g.ref(pr.Id)
		if err != nil {
			return nil, err
		}
		if plan != nil && f.plan != plan || f.name != name {
			return nil, errs.New(errs.Unimplemented, "the client returns a result that it put together itself, which is not supported")
		}
		plan = f.plan
		found++
	}
	if len(r.GetAttestations()) > 0 {
		return nil, errs.New(errs.Unimplemented, "attestations of the client are not supported")
	}
	if plan == nil {
		return nil, nil
	}
	if out := plan.Output; out != nil && (found != len(out.Images) || !maps.EqualFunc(out.About, r.Metadata, bytes.Equal)) {
		return nil, errs.New(errs.Unimplemented, "the client changed the result of the front end, which is not supported")
	}
	return plan, nil
}

// read calls do with a result.
func (b *bridge) read(ctx context.Context, id string, do func(context.Context, dockerfile.Result) error) error {
	g, done, err := b.build(ctx)
	if err != nil {
		return err
	}
	defer done()
	f, err := g.ref(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(f.plan.Context(), func() { cancel(context.Cause(f.plan.Context())) })()
	if f.result == nil {
		return errs.New(errs.NotFound, "ref %q has no files", clip(id))
	}
	if err := do(ctx, f.result); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.NotFound, "%w", err)
		}
		return err
	}
	return nil
}

// maxRead is the most that a client reads of a file at a time.
const maxRead = 8 << 20

// ReadFile implements LLBBridge.
func (b *bridge) ReadFile(ctx context.Context, r *gwpb.ReadFileRequest) (*gwpb.ReadFileResponse, error) {
	resp := &gwpb.ReadFileResponse{}
	off, n := int64(0), int64(maxRead)
	if r.Range != nil {
		off = r.Range.Offset
		if r.Range.Length > 0 {
			n = min(n, r.Range.Length)
		}
	}
	if off < 0 || r.MountIndex != 0 {
		return nil, errs.New(errs.Invalid, "malformed range of a file")
	}
	err := b.read(ctx, r.Ref, func(ctx context.Context, res dockerfile.Result) (err error) {
		resp.Data, err = res.ReadFile(ctx, r.FilePath, off, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.Range == nil && len(resp.Data) == maxRead {
		return nil, errs.New(errs.Exhausted, "%s has more than %d bytes", clip(r.FilePath), maxRead)
	}
	return resp, nil
}

// ReadDir implements LLBBridge.
func (b *bridge) ReadDir(ctx context.Context, r *gwpb.ReadDirRequest) (*gwpb.ReadDirResponse, error) {
	resp := &gwpb.ReadDirResponse{}
	return resp, b.read(ctx, r.Ref, func(ctx context.Context, res dockerfile.Result) error {
		list, err := res.ReadDir(ctx, r.DirPath, r.IncludePattern)
		for _, fi := range list {
			resp.Entries = append(resp.Entries, statOf(fi))
		}
		return err
	})
}

// StatFile implements LLBBridge.
func (b *bridge) StatFile(ctx context.Context, r *gwpb.StatFileRequest) (*gwpb.StatFileResponse, error) {
	resp := &gwpb.StatFileResponse{}
	return resp, b.read(ctx, r.Ref, func(ctx context.Context, res dockerfile.Result) error {
		fi, err := res.Stat(ctx, r.Path)
		resp.Stat = statOf(fi)
		return err
	})
}

func statOf(fi dockerfile.FileInfo) *types.Stat {
	return &types.Stat{Path: fi.Name, Mode: fi.Mode, Uid: fi.UID, Gid: fi.GID, Size: fi.Size, ModTime: unixNano(fi.ModTime), Linkname: fi.Link}
}

// Evaluate implements LLBBridge.
func (b *bridge) Evaluate(ctx context.Context, r *gwpb.EvaluateRequest) (*gwpb.EvaluateResponse, error) {
	return &gwpb.EvaluateResponse{}, b.read(ctx, r.Ref, func(ctx context.Context, res dockerfile.Result) error { return res.Evaluate(ctx) })
}

// Inputs implements LLBBridge: a build that its client drives has none of its own.
func (b *bridge) Inputs(ctx context.Context, _ *gwpb.InputsRequest) (*gwpb.InputsResponse, error) {
	_, done, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return &gwpb.InputsResponse{}, nil
}

// Warn implements LLBBridge.
func (b *bridge) Warn(ctx context.Context, r *gwpb.WarnRequest) (*gwpb.WarnResponse, error) {
	g, done, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	w := dockerfile.Warning{Message: string(r.Short), URL: r.Url}
	for i, d := range r.Detail {
		if i > 0 {
			w.Detail += "\n"
		}
		w.Detail += string(d)
	}
	if r.Info != nil {
		w.File = dockerfile.File{Name: r.Info.Filename, Data: r.Info.Data}
	}
	for _, p := range r.Ranges {
		if p.GetStart() != nil && p.GetEnd() != nil {
			w.Ranges = append(w.Ranges, dockerfile.Range{Start: int(p.Start.Line), End: int(p.End.Line)})
		}
	}
	g.trace.Warn(w)
	return &gwpb.WarnResponse{}, nil
}
