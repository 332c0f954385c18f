package buildkit

import (
	"context"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/session/grpchijack"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"ply/internal/build"
	"ply/internal/build/cache"
	"ply/internal/build/ops"
	"ply/internal/errs"
	"ply/internal/filter"
	"ply/internal/oci"
)

// Protocol is the version of BuildKit whose protocol this is.
const Protocol = "v0.33.1"

// control answers moby.buildkit.v1.Control.
type control struct {
	controlapi.UnimplementedControlServer
	s *Server
}

// Solve executes a build. Without a front end and a definition, the client drives the build through the gateway until it returns a result.
func (c *control) Solve(ctx context.Context, r *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	req, err := request(r)
	if err != nil {
		return nil, err
	}
	client := c.s.o.Sessions.Client(r.Session, c.s.o.Builder)
	defer client.Close()
	req.Client = client
	if r.SourcePolicySession != "" {
		req.Policy = &policy{sessions: c.s.o.Sessions, id: r.SourcePolicySession, allowed: map[string]bool{}}
	}
	b := &solve{ref: r.Ref, trace: NewTrace(), ended: make(chan struct{})}
	b.trace.lossy = true
	driven := r.Frontend == "" && len(r.Definition.GetDef()) == 0
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if driven {
		b.gateway = newGateway(ctx, c.s, *req, b.trace)
		defer b.gateway.close()
	}
	if err := c.s.begin(b); err != nil {
		return nil, err
	}
	defer c.s.end(b)
	ctx, done, err := client.Watch(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	var res *build.Result
	switch {
	case driven:
		res, err = b.gateway.result(ctx)
	default:
		res, err = c.s.o.Builder.Build(ctx, *req, b.trace)
	}
	if err != nil {
		return nil, err
	}
	return &controlapi.SolveResponse{ExporterResponse: answers(res)}, nil
}

// answers are what clients want to know of the outputs.
func answers(res *build.Result) map[string]string {
	out := maps.Clone(res.Answers)
	if out == nil {
		out = map[string]string{}
	}
	for k, v := range res.Metadata {
		out[k] = string(v)
	}
	return out
}

// request returns the build that a client asks for.
func request(r *controlapi.SolveRequest) (*build.Request, error) {
	for what, asked := range map[string]bool{
		"a static source policy": r.SourcePolicy != nil, "an exporter of the session": r.EnableSessionExporter,
		"the network proxy": r.ProxyNetwork, "inputs without a gateway": len(r.FrontendInputs) > 0,
	} {
		if asked {
			return nil, errs.New(errs.Unimplemented, "a build with %s is not supported", what)
		}
	}
	req := &build.Request{ID: r.Ref}
	exporters := r.Exporters
	if len(exporters) == 0 && r.ExporterDeprecated != "" {
		exporters = []*controlapi.Exporter{{Type: r.ExporterDeprecated, Attrs: r.ExporterAttrsDeprecated}}
	}
	for _, e := range exporters {
		req.Exports = append(req.Exports, build.Export{Type: e.Type, Attrs: e.Attrs})
	}
	if len(req.Exports) == 0 {
		req.Exports = []build.Export{{Type: "cacheonly"}}
	}
	for _, e := range r.Entitlements {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "network.host":
			req.HostNetwork = true
		case "security.insecure":
			req.Insecure = true
		default:
			return nil, errs.New(errs.Unimplemented, "the entitlement %q is not supported", clip(e))
		}
	}
	if c := r.Cache; c != nil {
		for _, e := range c.Exports {
			req.CacheTo = append(req.CacheTo, build.CacheRef{Type: e.Type, Attrs: e.Attrs})
		}
		if c.ExportRefDeprecated != "" {
			attrs := maps.Clone(c.ExportAttrsDeprecated)
			if attrs == nil {
				attrs = map[string]string{}
			}
			attrs["ref"] = c.ExportRefDeprecated
			req.CacheTo = append(req.CacheTo, build.CacheRef{Type: "registry", Attrs: attrs})
		}
		for _, e := range c.Imports {
			req.CacheFrom = append(req.CacheFrom, build.CacheRef{Type: e.Type, Attrs: e.Attrs})
		}
		for _, ref := range c.ImportRefsDeprecated {
			req.CacheFrom = append(req.CacheFrom, build.CacheRef{Type: "registry", Attrs: map[string]string{"ref": ref}})
		}
	}
	req.Front.SessionID = r.Session
	if r.Frontend != "" {
		return req, front(req, r.Frontend, r.FrontendAttrs)
	}
	if len(r.Definition.GetDef()) > 0 {
		def, err := r.Definition.MarshalVT()
		if err != nil {
			return nil, errs.New(errs.Invalid, "definition: %w", err)
		}
		req.Definition = def
	}
	return req, nil
}

// front makes a request one for the Dockerfile front end with options.
func front(req *build.Request, frontend string, options map[string]string) error {
	switch frontend {
	case "dockerfile.v0", "gateway.v0": // every front end is the built-in one
	default:
		return errs.New(errs.Unimplemented, "the front end %q is not supported", clip(frontend))
	}
	o := maps.Clone(options)
	if o == nil {
		o = map[string]string{}
	}
	req.Front.Options = o
	list, err := req.Front.CacheImports()
	if err != nil {
		return err
	}
	for _, c := range list {
		ref := build.CacheRef{Type: c.Type, Attrs: c.Attrs}
		if !slices.ContainsFunc(req.CacheFrom, func(o build.CacheRef) bool { return o.Type == ref.Type && maps.Equal(o.Attrs, ref.Attrs) }) {
			req.CacheFrom = append(req.CacheFrom, ref)
		}
	}
	delete(o, "cache-imports")
	delete(o, "cache-from")
	if frontend == "gateway.v0" {
		delete(o, "cmdline")
	}
	if text, ok := o["no-cache"]; ok {
		req.NoCache = text == "" // else a list of stages, which the front end knows
	}
	req.Pull = o["image-resolve-mode"] == "pull"
	return nil
}

// Status sends the progress of a build to its reader.
func (c *control) Status(r *controlapi.StatusRequest, stream controlapi.Control_StatusServer) error {
	if h := c.s.o.Builder.History(); h != nil && !c.s.has(r.Ref) {
		if rec, err := h.Get(r.Ref); err == nil {
			return replay(stream.Context(), h, rec, stream.Send)
		}
	}
	b, err := c.s.find(stream.Context(), r.Ref)
	if err != nil {
		return err
	}
	if !b.trace.claim() {
		if h := c.s.o.Builder.History(); h != nil {
			if rec, err := h.Get(r.Ref); err == nil {
				return replay(stream.Context(), h, rec, stream.Send)
			}
		}
		return errs.New(errs.Conflict, "the progress of build %s is read by another client", clip(r.Ref))
	}
	return b.trace.Send(stream.Context(), stream.Send)
}

// Session serves a session on the stream of a call, as clients have it that reach only this service.
func (c *control) Session(stream controlapi.Control_SessionServer) error {
	conn, closed, md := grpchijack.Hijack(stream)
	defer conn.Close()
	h := http.Header{}
	for k, list := range md {
		h[http.CanonicalHeaderKey(k)] = list
	}
	h.Set("Upgrade", "h2c")
	offer, err := ParseOffer(h)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		<-closed
		cancel()
	}()
	return c.s.o.Sessions.Begin(ctx, offer, func() (net.Conn, error) { return conn, nil })
}

// ListWorkers describes the engine, which is one worker.
func (c *control) ListWorkers(context.Context, *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	w := &apitypes.WorkerRecord{
		ID:              "ply",
		Labels:          map[string]string{labelExecutor: "ply", labelSnapshotter: c.s.o.Driver, labelHostGateway: ops.HostGateway},
		BuildkitVersion: c.version(),
	}
	for _, p := range platforms() {
		w.Platforms = append(w.Platforms, &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant})
	}
	return &controlapi.ListWorkersResponse{Record: []*apitypes.WorkerRecord{w}}, nil
}

// Labels of a worker. From the name of the snapshotter, buildx concludes that images may have several platforms, and that outputs and caches go
// everywhere.
const (
	labelExecutor    = "org.mobyproject.buildkit.worker.executor"
	labelHostGateway = "org.mobyproject.buildkit.worker.moby.host-gateway-ip" // clients write this address for host-gateway
	labelSnapshotter = "org.mobyproject.buildkit.worker.snapshotter"
)

// platforms are those that steps can run on.
func platforms() []oci.Platform { return []oci.Platform{oci.HostPlatform()} }

func (c *control) version() *apitypes.BuildkitVersion {
	return &apitypes.BuildkitVersion{Package: "ply", Version: Protocol, Revision: c.s.o.Version}
}

// Info says which protocol this is.
func (c *control) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{BuildkitVersion: c.version()}, nil
}

// cacheFilters reads the filters of clients: "id==x", "id~=x", "type==regular" and the like, in BuildKit's words, which are those of containerd.
func (c *control) cacheFilters(list []string) (filter.Args, error) {
	args := filter.Args{}
	for _, f := range list {
		for part := range strings.SplitSeq(f, ",") {
			name, value, ok := strings.Cut(part, "==")
			value = strings.Trim(value, `"`)
			switch {
			case part == "":
			case ok && name == "id" && len(list) == 1 && part == f:
				args["id"] = []string{value}
			case ok && name == "type" && len(list) == 1:
				args["type"] = []string{value}
			case part == "shared" || part == "private" || part == "inuse":
				args[part] = []string{"true"}
			default:
				return nil, errs.New(errs.Unimplemented, "the filter %q of the build cache is not supported", clip(part))
			}
		}
	}
	return args, nil
}

// DiskUsage lists the build cache.
func (c *control) DiskUsage(ctx context.Context, r *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	args, err := c.cacheFilters(r.Filter)
	if err != nil {
		return nil, err
	}
	match, err := build.PruneFilters.Compile(args)
	if err != nil {
		return nil, err
	}
	list, err := c.s.o.Builder.Cache(ctx)
	if err != nil {
		return nil, err
	}
	resp := &controlapi.DiskUsageResponse{}
	for i := range list {
		e := &list[i]
		if match != nil && !match(e) || r.AgeLimit > 0 && time.Since(e.Used) < time.Duration(r.AgeLimit) {
			continue
		}
		resp.Record = append(resp.Record, usageOf(e))
	}
	return resp, nil
}

// usageOf describes an entry of the build cache.
func usageOf(e *cache.Entry) *controlapi.UsageRecord {
	return &controlapi.UsageRecord{
		ID: e.ShortID(), Size: e.Size, CreatedAt: timestamppb.New(e.Created), LastUsedAt: timestamppb.New(e.Used), UsageCount: int64(e.Uses),
		Description: e.Name, RecordType: string(e.Type), Mutable: e.Type == cache.CacheMount, Shared: e.Shared, InUse: e.InUse,
	}
}

// Prune removes from the build cache.
func (c *control) Prune(r *controlapi.PruneRequest, stream controlapi.Control_PruneServer) error {
	args, err := c.cacheFilters(r.Filter)
	if err != nil {
		return err
	}
	list, err := c.s.o.Builder.Cache(stream.Context())
	if err != nil {
		return err
	}
	sizes := map[oci.Digest]*controlapi.UsageRecord{}
	for i := range list {
		sizes[list[i].ID] = usageOf(&list[i])
	}
	gone, err := c.s.o.Builder.Prune(stream.Context(), build.PruneOptions{
		All: r.All, Unused: time.Duration(r.KeepDuration), Filters: args, Space: build.Space{Reserved: r.ReservedSpace, MaxUsed: r.MaxUsedSpace, MinFree: r.MinFreeSpace},
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Concat(gone.Entries, gone.Mounts) {
		if u := sizes[id]; u != nil {
			if err := stream.Send(u); err != nil {
				return err
			}
		}
	}
	return nil
}
