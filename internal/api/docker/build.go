package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"ply/internal/api/buildkit"
	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/wire"
)

// buildHandlers is the builder as the classic clients know it, a context as a tar and progress as lines of text, and as BuildKit's clients do.
type buildHandlers struct {
	builder  Builder
	sessions *buildkit.Sessions
	kit      *buildkit.Server
	jobs     *jobs
}

func (h buildHandlers) routes(add adder) {
	add(post, "/build", h.build)
	add(post, "/build/cancel", h.cancel)
	add(post, "/session", h.session)
	add(post, "/grpc", h.control)
	add(post, "/build/prune", h.prune)
}

func (h buildHandlers) build(c *call) error {
	params, err := dockerfile.ParseClassic(c.q, ops.HostGateway)
	if err != nil {
		return err
	}
	if params.Version == "2" {
		return h.buildTraced(c, params)
	}
	if params.Session != "" || params.Remote == dockerfile.ClientSession || params.Remote == dockerfile.UploadRequest {
		return unavailable("build with the parameter session", "build without it, or with version=2 (DOCKER_BUILDKIT=1)")
	}
	req, err := buildRequest(params)
	if err != nil {
		return err
	}
	creds, err := c.registryConfig()
	if err != nil {
		return err
	}
	client := &buildClient{creds: creds}
	// The whole body is read before the answer begins, so that the connection can be used again.
	if params.Remote == "" {
		if client.dir, err = h.builder.Unpack(c.ctx(), c.r.Body); err != nil {
			return err
		}
		defer client.dir.Close()
	}
	return c.progress(func(send sender) error {
		req.Client = client
		l := newClassic(send, params.Quiet, params.Remove || params.ForceRemove)
		res, err := h.builder.Build(c.ctx(), *req, l)
		if err != nil {
			return l.fail(err)
		}
		l.succeed(res, req.Tags)
		return nil
	})
}

// buildRequest returns the build that parameters ask for.
func buildRequest(p *dockerfile.Classic) (*build.Request, error) {
	o := p.Request.Options
	_, noCache := o["no-cache"]
	req := &build.Request{
		Front: p.Request, Network: p.Network, NoCache: noCache, Pull: o["image-resolve-mode"] == "pull",
		HostNetwork: o["force-network-mode"] == "host", // whoever may use this API may run containers in the host's network
	}
	for _, e := range p.Outputs {
		req.Exports = append(req.Exports, build.Export{Type: e.Type, Attrs: e.Attrs})
	}
	if p.Squash {
		if len(req.Exports) == 0 {
			req.Exports = []build.Export{{Type: "image"}}
		}
		for i, e := range req.Exports {
			attrs := map[string]string{"squash": "true"}
			maps.Copy(attrs, e.Attrs)
			req.Exports[i].Attrs = attrs
		}
	}
	for _, t := range p.Tags {
		if t == "" {
			continue
		}
		ref, err := oci.ParseReference(t)
		if err != nil {
			return nil, err
		}
		if ref.Digest() != "" {
			return nil, errs.New(errs.Invalid, "refusing to create a tag with a digest reference")
		}
		req.Tags = append(req.Tags, ref.WithDefaultTag())
	}
	return req, nil
}

// registryConfig reads the credentials for all registries.
func (c *call) registryConfig() (map[string]transfer.Credentials, error) {
	const header = "X-Registry-Config"
	h := strings.TrimSpace(c.r.Header.Get(header))
	if h == "" {
		return nil, nil
	}
	b, err := decodeBase64(h)
	if err != nil {
		return nil, errs.New(errs.Invalid, "invalid %s header: it is not base64", header)
	}
	var all map[string]wire.Auth
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, errs.New(errs.Invalid, "invalid %s header: it is not a JSON object of credentials", header)
	}
	out := map[string]transfer.Credentials{}
	for host, a := range all {
		out[host] = credentialsOf(a)
	}
	return out, nil
}

// buildClient is a client that sent its context and its credentials with the request.
type buildClient struct {
	dir   *build.Directory
	creds map[string]transfer.Credentials
}

var _ build.Client = (*buildClient)(nil)

func (b *buildClient) Local(_ context.Context, l *ops.Local) (*tree.Tree, error) {
	if b.dir == nil || l.Name != "context" && l.Name != "dockerfile" {
		return nil, errs.New(errs.NotFound, "the client has no directory %q", l.Name)
	}
	return b.dir.Local(l)
}

func (b *buildClient) Secret(_ context.Context, id string) ([]byte, error) {
	return nil, errs.New(errs.NotFound, "secret %s: not found: the classic builder's protocol has no secrets", id)
}

func (b *buildClient) Agent(context.Context, string) (io.ReadWriteCloser, error) {
	return nil, errs.New(errs.NotFound, "the classic builder's protocol has no ssh agents")
}

func (b *buildClient) Credentials(_ context.Context, host string) (transfer.Credentials, error) {
	names := []string{host, "https://" + host, "http://" + host}
	if host == "docker.io" {
		names = append(names, "https://index.docker.io/v1/", "index.docker.io")
	}
	for _, n := range names {
		if c, ok := b.creds[n]; ok {
			return c, nil
		}
	}
	return transfer.Credentials{}, nil
}

func (b *buildClient) OutputTar(context.Context, int, map[string]string) (io.WriteCloser, error) {
	return nil, errNoOutput
}

func (b *buildClient) OutputDir(context.Context, int, export.Files) error { return errNoOutput }

var errNoOutput = errs.New(errs.Invalid, "the classic builder's protocol has no way to send an output to the client")

// classic writes the progress of a build as the classic builder did: one step after the other. Steps that run before their turn are held back.
type classic struct {
	send  sender
	quiet bool
	rm    bool

	mu      sync.Mutex
	current oci.Digest              // the vertex whose output is shown
	held    map[oci.Digest][]string // output of vertices that are not shown yet
	ran     map[oci.Digest]oci.ContainerID
	shown   map[oci.Digest]bool
	last    oci.ImageID
}

var _ build.Listener = (*classic)(nil)

func newClassic(send sender, quiet, rm bool) *classic {
	return &classic{send: send, quiet: quiet, rm: rm, held: map[oci.Digest][]string{}, ran: map[oci.Digest]oci.ContainerID{}, shown: map[oci.Digest]bool{}}
}

// maxHeld is how much output of a step that is not shown yet is kept, in bytes.
const maxHeld = 4 << 20

func (l *classic) print(text string) {
	if !l.quiet {
		l.send(wire.Message{Stream: text}, 0)
	}
}

// say prints the output of a vertex, or holds it back.
func (l *classic) say(v *ops.Vertex, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v.Digest == l.current || l.shown[v.Digest] {
		l.print(text)
		return
	}
	size := len(text)
	for _, s := range l.held[v.Digest] {
		size += len(s)
	}
	if size <= maxHeld {
		l.held[v.Digest] = append(l.held[v.Digest], text)
	}
}

func (l *classic) Start(*ops.Vertex) {}

func (l *classic) Log(v *ops.Vertex, _ bool, data []byte) { l.say(v, string(data)) }

func (l *classic) Status(v *ops.Vertex, s solver.Status) {
	if s.Container != "" {
		l.mu.Lock()
		l.ran[v.Digest] = s.Container
		l.mu.Unlock()
		l.say(v, " ---> Running in "+s.Container.Short()+"\n")
		return
	}
	if !s.Done && s.Total > 0 && !l.quiet {
		l.send(wire.Message{ID: s.ID, Status: "Downloading", Detail: &wire.ProgressDetail{Current: s.Current, Total: s.Total}}, 1)
	}
}

func (l *classic) Done(*ops.Vertex, solver.Outcome) {}

func (l *classic) Warn(w dockerfile.Warning) { l.print("[Warning] " + w.String() + "\n") }

func (l *classic) Step(st build.StepInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text, _, _ := strings.Cut(st.Text, "\n")
	l.print(fmt.Sprintf("Step %d/%d : %s\n", st.Index, st.Total, text))
	if st.Vertex == nil {
		return
	}
	l.current = st.Vertex.Digest
	l.shown[st.Vertex.Digest] = true
	for _, text := range l.held[st.Vertex.Digest] {
		l.print(text)
	}
	delete(l.held, st.Vertex.Digest)
}

func (l *classic) StepDone(st build.StepInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if st.Name != "FROM" && st.Cached {
		l.print(" ---> Using cache\n")
	}
	if st.Vertex != nil && l.rm {
		if id := l.ran[st.Vertex.Digest]; id != "" {
			l.print("Removing intermediate container " + id.Short() + "\n")
		}
	}
	if st.Image != "" {
		l.print(" ---> " + st.Image.Short() + "\n")
		l.last = st.Image
	}
}

// fail ends the stream of a build that failed.
func (l *classic) fail(err error) error {
	f := failureOf(err)
	if f.image != "" {
		l.send(wire.Message{Stream: f.hint() + "\n"}, 0)
	}
	l.send(wire.Message{ErrorDetail: &wire.ErrorDetail{Code: f.code, Message: f.text}, Error: f.text}, 0)
	return nil
}

// failure is why a build failed.
type failure struct {
	text  string      // with the lines of the Dockerfile
	code  int         // of the command, or 1
	image oci.ImageID // the file system as the failed step left it; "" when there is none
}

func failureOf(err error) failure {
	f := failure{text: messageOf(err), code: 1}
	var st *build.StepError
	if errors.As(err, &st) {
		if st.Code != 0 {
			f.code = st.Code
		}
		f.text, f.image = strings.TrimSpace(dockerfile.Format(st.Err)), st.Image
	} else if e := (*dockerfile.Error)(nil); errors.As(err, &e) {
		f.text = strings.TrimSpace(dockerfile.Format(err))
	}
	return f
}

// hint says how to look at what the failed step left.
func (f *failure) hint() string {
	id := f.image.Short()
	return fmt.Sprintf("The file system as the failed step left it: %s\nLook at it with: ply run -it --rm %s sh", id, id)
}

func (l *classic) succeed(res *build.Result, tags []oci.Reference) {
	for name, data := range res.Metadata {
		if name == "result.txt" {
			l.send(wire.Message{Stream: string(data)}, 0)
		}
	}
	if len(res.Images) == 0 {
		return
	}
	id := res.Images[len(res.Images)-1]
	aux, err := json.Marshal(struct{ ID string }{string(id)})
	if err == nil { // a string is always encoded
		l.send(wire.Message{Aux: aux}, 0)
	}
	if l.quiet {
		l.send(wire.Message{Stream: string(id) + "\n"}, 0)
		return
	}
	l.print("Successfully built " + id.Short() + "\n")
	for _, t := range tags {
		l.print("Successfully tagged " + t.Familiar() + "\n")
	}
}

func (h buildHandlers) prune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	o := build.PruneOptions{All: c.bool("all"), Filters: filters}
	for _, p := range []struct {
		name string
		to   *int64
	}{{"keep-storage", &o.Space.Reserved}, {"reserved-space", &o.Space.Reserved}, {"max-used-space", &o.Space.MaxUsed}, {"min-free-space", &o.Space.MinFree}} {
		n, _, err := c.int(p.name)
		if err != nil {
			return err
		}
		if n < 0 {
			return errs.New(errs.Invalid, "%s: %d is negative", p.name, n)
		}
		if n > 0 {
			*p.to = int64(n)
		}
	}
	res, err := h.builder.Prune(c.ctx(), o)
	if err != nil {
		return err
	}
	answer := wire.BuildCachePruned{SpaceReclaimed: res.Freed}
	for _, id := range slices.Concat(res.Entries, res.Mounts) {
		answer.CachesDeleted = append(answer.CachesDeleted, id.Hex())
	}
	return c.json(http.StatusOK, answer)
}

// buildCacheOf describes the cache for system df.
func buildCacheOf(ctx context.Context, b Builder) ([]wire.BuildCache, error) {
	list, err := b.Cache(ctx)
	if err != nil {
		return nil, err
	}
	out := []wire.BuildCache{}
	for _, e := range list {
		used := e.Used
		out = append(out, wire.BuildCache{
			ID: e.ShortID(), Type: string(e.Type), Description: e.Name, Shared: e.Shared, InUse: e.InUse, Size: e.Size, CreatedAt: e.Created, LastUsedAt: &used, UsageCount: e.Uses,
		})
	}
	return out, nil
}
