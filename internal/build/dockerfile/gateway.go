package dockerfile

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/frontend/subrequests/targets"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
	fstypes "github.com/tonistiigi/fsutil/types"

	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/oci"
)

// gateway is the builder as BuildKit's front end sees it.
type gateway struct {
	solver Solver
	req    Request
	opts   map[string]string
	run    *run
}

var _ client.Client = (*gateway)(nil)

// run is what the calls of one build share.
type run struct {
	mu      sync.Mutex
	read    bool // the Dockerfile was read
	df      File
	fail    *Error // why the Dockerfile was refused
	bound   *bounds
	configs map[string][]byte // of the base images, by the reference that the front end asked for

	hosts  *hosts
	hidden []byte                     // the Dockerfile as the front end sees it
	check  func(config []byte) *Error // see hosts.check; nil = no base image
}

func (r *run) file() File {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.df
}

// BuildOpts says what the builder can do.
func (g *gateway) BuildOpts() client.BuildOpts {
	list := g.req.Platforms
	if len(list) == 0 {
		list = []oci.Platform{oci.HostPlatform()}
	}
	w := client.WorkerInfo{ID: "ply"}
	for _, p := range list {
		w.Platforms = append(w.Platforms, spec(p))
	}
	return client.BuildOpts{
		Opts: maps.Clone(g.opts), SessionID: g.req.SessionID, Workers: []client.WorkerInfo{w}, Product: "ply",
		LLBCaps: pb.Caps.CapSet(pb.Caps.All()), Caps: gwpb.Caps.CapSet(gwpb.Caps.All()),
	}
}

// Inputs returns the definitions that the client sent with the request.
func (g *gateway) Inputs(context.Context) (map[string]llb.State, error) {
	out := map[string]llb.State{}
	for name, raw := range g.req.Inputs {
		def := &pb.Definition{}
		if err := def.UnmarshalVT(raw); err != nil {
			return nil, errs.New(errs.Invalid, "input %s: %w", clip(name), err)
		}
		if _, err := ops.Decode(def); err != nil {
			return nil, errs.New(errs.Invalid, "input %s: %w", clip(name), err)
		}
		st, err := state(def)
		if err != nil {
			return nil, errs.New(errs.Invalid, "input %s: %w", clip(name), err)
		}
		out[name] = st
	}
	return out, nil
}

func state(def *pb.Definition) (llb.State, error) {
	if def == nil || len(def.Def) == 0 {
		return llb.Scratch(), nil
	}
	op, err := llb.NewDefinitionOp(def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(op), nil
}

// Solve solves a definition, or runs a front end. Every front end is this one.
func (g *gateway) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	switch {
	case req.Frontend == "gateway.v0" || req.Frontend == "dockerfile.v0":
		return g.forward(ctx, req)
	case req.Frontend != "":
		return nil, errs.New(errs.Unimplemented, "front end %q is not supported", clip(req.Frontend))
	case len(req.SourcePolicies) > 0:
		return nil, errs.New(errs.Unimplemented, "source policies are not supported")
	}
	def, err := g.run.hosts.restore(req.Definition)
	if err != nil {
		return nil, errs.New(errs.Invalid, "build definition: %w", err)
	}
	graph, err := ops.Decode(def)
	if err != nil {
		return nil, err
	}
	res, err := g.solver.Solve(ctx, graph)
	if err != nil {
		return nil, err
	}
	if req.Evaluate {
		if err := res.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	out := client.NewResult()
	out.SetRef(&fileSystem{g: g, result: res, graph: graph, def: def})
	return out, nil
}

// forward runs the built-in front end in place of the one that `# syntax=` names.
func (g *gateway) forward(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if _, again := g.opts["cmdline"]; again {
		return nil, errs.New(errs.Unimplemented, "a front end that runs front ends is not supported")
	}
	sub := &gateway{solver: g.solver, req: g.req, opts: maps.Clone(g.opts), run: g.run}
	maps.Copy(sub.opts, req.FrontendOpt)
	if _, ok := sub.opts["cmdline"]; !ok {
		sub.opts["cmdline"] = req.Frontend
	}
	name := sub.opts["source"]
	if name == "" {
		name = req.Frontend
	}
	w := Warning{
		Rule: RuleBuiltinSyntax, Note: true, File: g.run.file(),
		Message: fmt.Sprintf("syntax %s selects the built-in front end; no other one is run", clip(name)),
	}
	if n := syntaxLine(w.File.Data); n > 0 {
		w.Ranges = []Range{{Start: n, End: n}}
	}
	g.solver.Warn(ctx, w)
	g.run.mu.Lock()
	g.run.read = false // it is read once more
	g.run.mu.Unlock()
	return builder.Build(ctx, sub)
}

// ResolveImageConfig returns the config of a base image.
func (g *gateway) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	o := ImageOptions{Mode: ops.ResolveDefault, LogName: opt.LogName}
	var platform *specs.Platform
	if l := opt.OCILayoutOpt; l != nil {
		o.Layout = &Layout{Session: l.Store.SessionID, Store: l.Store.StoreID}
		platform = l.Platform
	}
	if i := opt.ImageOpt; i != nil {
		if i.ResolveMode != "" {
			o.Mode = ops.ResolveMode(i.ResolveMode)
		}
		platform = i.Platform
	}
	if platform != nil {
		p := oci.Platform{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant, OSVersion: platform.OSVersion, OSFeatures: platform.OSFeatures}
		o.Platform = &p
	}
	resolved, d, config, err := g.solver.ImageConfig(ctx, ref, o)
	if err != nil {
		return "", "", nil, err
	}
	if err := g.run.base(ref, o.Platform, config); err != nil {
		return "", "", nil, err
	}
	return resolved, digest.Digest(d), config, nil
}

// ResolveSourceMetadata returns what is known about a source without fetching it.
func (g *gateway) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	if ref, ok := strings.CutPrefix(op.Identifier, "docker-image://"); ok {
		_, d, config, err := g.ResolveImageConfig(ctx, ref, opt)
		if err != nil {
			return nil, err
		}
		return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{Digest: d, Config: config}}, nil
	}
	shown := op.CloneVT()
	g.run.hosts.restoreSource(shown)
	source, err := ops.DecodeSource(shown)
	if err != nil {
		return nil, err
	}
	t, err := g.solver.SourceTime(ctx, source)
	if err != nil {
		return nil, err
	}
	out := &sourceresolver.MetaResponse{Op: op}
	switch source.(type) {
	case *ops.Git:
		out.Git = &sourceresolver.ResolveGitResponse{}
		if !t.IsZero() { // the front end reads the time from the commit
			out.Git.CommitObject = []byte("tree 0\nauthor - <-> 0 +0000\ncommitter - <-> " + strconv.FormatInt(t.Unix(), 10) + " +0000\n\n")
		}
	case *ops.HTTP:
		out.HTTP = &sourceresolver.ResolveHTTPResponse{}
		if !t.IsZero() {
			out.HTTP.LastModified = &t
		}
	}
	return out, nil
}

// NewContainer is what other front ends use.
func (g *gateway) NewContainer(context.Context, client.NewContainerRequest) (client.Container, error) {
	return nil, errs.New(errs.Unimplemented, "containers of a front end are not supported")
}

// Warn passes a warning of the linter on. The front end has put its rule and its line into the message.
func (g *gateway) Warn(ctx context.Context, _ digest.Digest, msg string, opts client.WarnOpts) error {
	w := Warning{Message: msg, URL: opts.URL}
	if rule, rest, ok := strings.Cut(msg, ": "); ok && !strings.Contains(rule, " ") {
		w.Rule, w.Message = rule, rest
	}
	for i, d := range opts.Detail {
		if i > 0 {
			w.Detail += "\n"
		}
		w.Detail += string(d)
	}
	if si := opts.SourceInfo; si != nil {
		w.File = File{Name: si.Filename, Data: si.Data}
	}
	w.Message, w.Detail, w.File.Data = g.run.hosts.show(w.Message), g.run.hosts.show(w.Detail), []byte(g.run.hosts.show(string(w.File.Data)))
	w.Ranges = ranges(opts.Range)
	w.Message = strings.TrimSuffix(w.Message, fmt.Sprintf(" (line %d)", w.Line()))
	g.solver.Warn(ctx, w)
	return nil
}

// fileSystem is a result as the front end sees it.
type fileSystem struct {
	g      *gateway
	result Result
	graph  *ops.Graph
	def    *pb.Definition
}

var _ client.Reference = (*fileSystem)(nil)

// encoded returns the definition as bytes; nil for an empty file system.
func (r *fileSystem) encoded() []byte {
	if r.def == nil {
		return nil
	}
	b, err := r.def.MarshalVT()
	if err != nil {
		return nil // it was decoded from such bytes
	}
	return b
}

func (r *fileSystem) ToState() (llb.State, error) { return state(r.def) }

func (r *fileSystem) Evaluate(ctx context.Context) error { return r.result.Evaluate(ctx) }

// maxRead is the most that the front end reads of a file. It refuses one of this size, which is one byte more than it allows.
const maxRead = 16<<20 + 1

// sniffed is how much of a remote context the front end reads to learn whether it is an archive.
const sniffed = 1024

func (r *fileSystem) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	off, n := int64(0), int64(maxRead)
	if req.Range != nil {
		off = int64(req.Range.Offset)
		if l := int64(req.Range.Length); l > 0 {
			n = min(n, l)
		}
	}
	data, err := r.result.ReadFile(ctx, req.Filename, off, n)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > n {
		return nil, errs.New(errs.Internal, "%s: read %d bytes for %d", clip(req.Filename), len(data), n)
	}
	if n <= sniffed {
		return data, nil
	}
	return r.g.received(ctx, req.Filename, data)
}

// received returns a file as the front end is to see it. The first one is the Dockerfile: the front end needs nothing before.
func (g *gateway) received(ctx context.Context, name string, data []byte) ([]byte, error) {
	text, dropped, err := g.run.received(name, data, g.opts)
	for _, c := range dropped {
		g.solver.Warn(ctx, Warning{
			Rule: RuleTrailingComment, Message: "dropped the comment at the end of the line: " + clip(c.text),
			Detail: "A Dockerfile has comments on lines of their own. Quote the text if it is no comment.",
			File:   File{Name: name, Data: data}, Ranges: []Range{{Start: c.line, End: c.line}},
		})
	}
	return text, err
}

func (r *run) received(name string, data []byte, opts map[string]string) (text []byte, dropped []comment, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.read {
		return data, nil, nil
	}
	again := r.df.Name != ""
	r.read, r.df = true, File{Name: name, Data: data}
	if len(data) > maxDockerfile {
		r.df.Data = nil
		r.fail = refuse(r.df, 0, "%s is larger than %d bytes", clip(name), maxDockerfile)
		return nil, nil, r.fail
	}
	text, dropped = dropComments(data)
	if again {
		dropped = nil // they were told at the first reading
	}
	r.df.Data = text
	b, fail := newBounds(r.df, opts)
	if fail == nil {
		fail = b.check()
	}
	if fail != nil {
		r.fail = fail
		return nil, dropped, fail
	}
	r.bound = b
	text = r.hosts.hideSources(text, b)
	r.hidden = text
	if fail := r.check(nil); fail != nil {
		r.fail = fail
		return nil, dropped, fail
	}
	if opts["requestid"] == targets.SubrequestsTargetsDefinition.Name {
		text = hideChecks(text)
	}
	return text, dropped, nil
}

// checkOption is a comment with options of the linter.
var checkOption = regexp.MustCompile(`(?mi)^([ \t]*#\s*)c(heck\s*=)`)

// hideChecks makes comments with options of the linter ordinary ones. The library lists targets without a linter, and panics at them.
func hideChecks(text []byte) []byte { return checkOption.ReplaceAll(text, []byte("${1}C_${2}")) }

// base notes the config of a base image, and checks that its environment does not make words too large.
func (r *run) base(ref string, p *oci.Platform, config []byte) error {
	if len(config) > maxConfig {
		return errs.New(errs.Invalid, "the config of %s is larger than %d bytes", clip(ref), maxConfig)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.configs == nil {
		r.configs = map[string][]byte{}
	}
	r.configs[configKey(ref, p)] = config
	if r.bound == nil {
		return nil
	}
	if err := r.bound.base(config); err != nil {
		r.fail = err
		return err
	}
	if err := r.check(config); err != nil {
		r.fail = err
		return err
	}
	return nil
}

func configKey(ref string, p *oci.Platform) string {
	if p == nil {
		return ref
	}
	return ref + " " + p.String()
}

func (r *fileSystem) StatFile(ctx context.Context, req client.StatRequest) (*fstypes.Stat, error) {
	fi, err := r.result.Stat(ctx, req.Path)
	if err != nil {
		return nil, err
	}
	return fi.stat(), nil
}

func (r *fileSystem) ReadDir(ctx context.Context, req client.ReadDirRequest) ([]*fstypes.Stat, error) {
	list, err := r.result.ReadDir(ctx, req.Path, req.IncludePattern)
	if err != nil {
		return nil, err
	}
	out := make([]*fstypes.Stat, len(list))
	for i, fi := range list {
		out[i] = fi.stat()
	}
	return out, nil
}

func (fi FileInfo) stat() *fstypes.Stat {
	return &fstypes.Stat{
		Path: fi.Name, Mode: uint32(fs.FileMode(fi.Mode)), Uid: fi.UID, Gid: fi.GID, Size: fi.Size, ModTime: unixNano(fi.ModTime), Linkname: fi.Link,
	}
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func spec(p oci.Platform) specs.Platform {
	return specs.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

func ranges(list []*pb.Range) (out []Range) {
	for _, r := range list {
		if r == nil || r.Start == nil || r.End == nil {
			continue
		}
		out = append(out, Range{
			Start: int(r.Start.Line), StartChar: int(r.Start.Character), End: int(r.End.Line), EndChar: int(r.End.Character),
		})
	}
	return out
}
