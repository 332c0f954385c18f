package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/wire"
)

// buildHandlers is the builder as the classic clients know it: a context as a tar, and progress as lines of text.
type buildHandlers struct {
	builder Builder
}

func (h buildHandlers) routes(add adder) {
	add(post, "/build", h.build)
	add(post, "/build/prune", h.prune)
}

func (h buildHandlers) build(c *call) error {
	req, err := buildRequest(c)
	if err != nil {
		return err
	}
	creds, err := c.registryConfig()
	if err != nil {
		return err
	}
	client := &buildClient{creds: creds}
	remote := c.get("remote")
	if remote != "" && remote != "client-session" {
		req.Front.Options["context"] = remote
	}
	return c.progressOfBody(func(body io.Reader, send sender) error {
		if remote == "" {
			if client.dir, err = h.builder.Unpack(c.ctx(), body); err != nil {
				return err
			}
			defer client.dir.Close()
		}
		req.Client = client
		l := newClassic(send, c.bool("q"), c.boolOr("rm", true))
		res, err := h.builder.Build(c.ctx(), *req, l)
		if err != nil {
			return l.fail(err)
		}
		l.succeed(res, req.Tags)
		return nil
	})
}

// buildRequest reads the parameters of a build.
func buildRequest(c *call) (*build.Request, error) {
	o := map[string]string{}
	req := &build.Request{Front: dockerfile.Request{Options: o}, NoCache: c.bool("nocache"), Pull: c.bool("pull")}
	for _, t := range c.q["t"] {
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
	set := func(option, value string) {
		if value != "" {
			o[option] = value
		}
	}
	set("filename", c.get("dockerfile"))
	set("target", c.get("target"))
	set("platform", c.get("platform"))
	set("cgroup-parent", c.get("cgroupparent"))
	for param, option := range map[string]string{
		"shmsize": "shm-size", "memory": "memory", "memswap": "memswap", "cpushares": "cpushares", "cpuperiod": "cpuperiod", "cpuquota": "cpuquota",
	} {
		n, ok, err := c.int(param)
		if err != nil {
			return nil, err
		}
		if ok && n != 0 {
			o[option] = strconv.Itoa(n)
		}
	}
	set("cpusetcpus", c.get("cpusetcpus"))
	set("cpusetmems", c.get("cpusetmems"))
	if req.NoCache {
		o["no-cache"] = ""
	}
	switch mode := c.get("networkmode"); mode {
	case "", "default", "bridge":
	case "host":
		o["force-network-mode"], req.HostNetwork = "host", true
	case "none":
		o["force-network-mode"] = "none"
	default:
		return nil, errs.New(errs.Unimplemented, "build: the network mode %q is not supported", clip(mode)).WithHint("Use default, host or none.")
	}
	for param, prefix := range map[string]string{"buildargs": "build-arg:", "labels": "label:"} {
		values := map[string]*string{}
		if s := c.get(param); s != "" {
			if err := json.Unmarshal([]byte(s), &values); err != nil {
				return nil, errs.New(errs.Invalid, "parameter %s is not an object of texts: %v", param, err)
			}
		}
		for k, v := range values {
			if v != nil { // an argument without a value is not set
				o[prefix+k] = *v
			}
		}
	}
	if hosts := c.q["extrahosts"]; len(hosts) > 0 {
		var list []string
		for _, h := range hosts {
			for one := range strings.SplitSeq(h, ",") {
				if name, ip, ok := strings.Cut(one, ":"); ok {
					list = append(list, name+"="+ip)
				}
			}
		}
		set("add-hosts", strings.Join(list, ","))
	}
	return req, errors.Join(ulimits(c, o), refuseParams(c))
}

func ulimits(c *call, o map[string]string) error {
	s := c.get("ulimits")
	if s == "" {
		return nil
	}
	var list []struct {
		Name       string
		Soft, Hard int64
	}
	if err := json.Unmarshal([]byte(s), &list); err != nil {
		return errs.New(errs.Invalid, "parameter ulimits: %v", err)
	}
	var words []string
	for _, u := range list {
		words = append(words, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	if len(words) > 0 {
		o["ulimit"] = strings.Join(words, ",")
	}
	return nil
}

// refuseParams refuses what the builder does not do.
func refuseParams(c *call) error {
	for _, p := range []string{"squash", "outputs", "securityopt", "session", "buildid"} {
		v := c.get(p)
		if v == "" || v == "0" || v == "false" || v == "[]" {
			continue
		}
		if p == "buildid" {
			continue // names the build for a cancellation, which the end of the connection is
		}
		return unavailable("build with the parameter "+p, "build without it")
	}
	switch v := c.get("isolation"); v {
	case "", "default":
	default:
		return errs.New(errs.Invalid, "isolation %q is not supported on linux", clip(v))
	}
	if c.get("version") == "2" {
		return unavailable("BuildKit's protocol over this endpoint", "set DOCKER_BUILDKIT=0")
	}
	return nil
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
	code := 1
	text := messageOf(err)
	var st *build.StepError
	if errors.As(err, &st) {
		if st.Code != 0 {
			code = st.Code
		}
		text = strings.TrimSpace(dockerfile.Format(st.Err))
		if st.Image != "" {
			l.send(wire.Message{Stream: fmt.Sprintf("The file system as the failed step left it: %s\nLook at it with: ply run -it --rm %s sh\n", st.Image.Short(), st.Image.Short())}, 0)
		}
	} else if e := (*dockerfile.Error)(nil); errors.As(err, &e) {
		text = strings.TrimSpace(dockerfile.Format(err))
	}
	l.send(wire.Message{ErrorDetail: &wire.ErrorDetail{Code: code, Message: text}, Error: text}, 0)
	return nil
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
	for _, name := range []string{"keep-storage", "max-used-space", "reserved-space", "min-free-space"} {
		n, ok, err := c.int(name)
		if err != nil {
			return err
		}
		if ok && n > 0 && (name == "min-free-space" || name == "reserved-space") {
			return unavailable("build prune with "+name, "use max-used-space")
		}
		if ok && n > 0 {
			o.Keep = int64(n)
		}
	}
	res, err := h.builder.Prune(c.ctx(), o)
	if err != nil {
		return err
	}
	answer := wire.BuildCachePruned{SpaceReclaimed: res.Freed}
	for _, id := range res.Entries {
		answer.CachesDeleted = append(answer.CachesDeleted, id.Hex())
	}
	return c.json(http.StatusOK, answer)
}

// buildCacheOf describes the cache for system df.
func buildCacheOf(b Builder) ([]wire.BuildCache, error) {
	list, err := b.Cache()
	if err != nil {
		return nil, err
	}
	out := []wire.BuildCache{}
	for _, e := range list {
		used := e.Used
		out = append(out, wire.BuildCache{
			ID: e.ID.Hex()[:25], Type: "regular", Description: e.Name, Shared: e.Shared, Size: e.Size, CreatedAt: e.Created, LastUsedAt: &used, UsageCount: e.Uses,
		})
	}
	return out, nil
}
