package docker

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"

	"ply/internal/api/buildkit"
	"ply/internal/api/docker/stream"
	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/transfer"
	"ply/internal/wire"
)

// session serves POST /session: the client offers its directories, secrets and agents to builds.
func (h buildHandlers) session(c *call) error {
	offer, err := buildkit.ParseOffer(c.r.Header)
	if err != nil {
		return err
	}
	done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	// After the takeover net/http does not watch the connection any more; the session does.
	err = h.sessions.Begin(context.WithoutCancel(c.ctx()), offer, func() (net.Conn, error) { return stream.Upgrade(c.w, "h2c") })
	if c.w.hijacked {
		return nil
	}
	return err
}

// control serves POST /grpc: the connection becomes one of BuildKit's gRPC services.
func (h buildHandlers) control(c *call) error {
	if c.r.Header.Get("Upgrade") != "h2c" {
		return errs.New(errs.Invalid, "the protocol %q is not supported, want h2c", clip(c.r.Header.Get("Upgrade")))
	}
	done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	conn, err := stream.Upgrade(c.w, "h2c")
	if err != nil {
		return err
	}
	return h.kit.ServeConn(conn)
}

// jobs are the builds that run, by the ID that the client chose: to cancel them, and to bring a context to them that comes in a request of its own.
type jobs struct {
	mu   sync.Mutex
	byID map[string]*job
}

type job struct {
	cancel context.CancelFunc
	upload chan upload
	users  int
}

// upload is the body of a request, for the build that waits for it.
type upload struct {
	body io.Reader
	done chan struct{} // closed when body was read
}

const (
	maxBuildID = 256
	// uploadWait is how long a build and the request with its context wait for each other.
	uploadWait = 30 * time.Second
)

// join returns the job of an ID, and the function that leaves it.
func (j *jobs) join(id string) (*job, func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.byID[id]
	if e == nil {
		e = &job{upload: make(chan upload)}
		j.byID[id] = e
	}
	e.users++
	return e, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(j.byID, id)
		}
	}
}

// run makes cancel end the build of an ID. Errors: errs.Conflict when there is one.
func (j *jobs) run(id string, cancel context.CancelFunc) (*job, func(), error) {
	if len(id) > maxBuildID {
		return nil, nil, errs.New(errs.Invalid, "the ID of a build is longer than %d bytes", maxBuildID)
	}
	e, leave := j.join(id)
	j.mu.Lock()
	defer j.mu.Unlock()
	if id != "" && e.cancel != nil {
		defer time.AfterFunc(0, leave)
		return nil, nil, errs.New(errs.Conflict, "a build with the ID %s runs already", clip(id))
	}
	e.cancel = cancel
	return e, leave, nil
}

func (h buildHandlers) cancel(c *call) error {
	h.jobs.mu.Lock()
	e := h.jobs.byID[c.get("id")]
	var cancel context.CancelFunc
	if e != nil && c.get("id") != "" {
		cancel = e.cancel
	}
	h.jobs.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	return c.none(http.StatusOK)
}

// uploadContext brings the body of this request to the build that waits for it.
func (h buildHandlers) uploadContext(c *call, id string) error {
	if len(id) > maxBuildID {
		return errs.New(errs.Invalid, "the ID of a build is longer than %d bytes", maxBuildID)
	}
	e, leave := h.jobs.join(id)
	defer leave()
	u := upload{body: c.r.Body, done: make(chan struct{})}
	select {
	case e.upload <- u:
		<-u.done
		return c.none(http.StatusOK)
	case <-c.ctx().Done():
		return c.ctx().Err()
	case <-time.After(uploadWait):
		return errs.New(errs.NotFound, "no build %s waits for a context", clip(id))
	}
}

// awaitContext stores the context that the client sends in a request of its own.
func (h buildHandlers) awaitContext(ctx context.Context, e *job) (*build.Directory, error) {
	select {
	case u := <-e.upload:
		defer close(u.done)
		return h.builder.Unpack(ctx, u.body)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(uploadWait):
		return nil, errs.New(errs.NotFound, "the client does not send the context of the build")
	}
}

// sessionClient is a client with a session, and with what it sent with the requests.
type sessionClient struct {
	build.Client
	sent *buildClient
}

// Local implements build.Client.
func (s *sessionClient) Local(ctx context.Context, l *ops.Local) (*tree.Tree, error) {
	if s.sent.dir != nil && (l.Name == "context" || l.Name == "dockerfile") {
		return s.sent.Local(ctx, l)
	}
	return s.Client.Local(ctx, l)
}

// Credentials implements build.Client.
func (s *sessionClient) Credentials(ctx context.Context, host string) (transfer.Credentials, error) {
	if cred, err := s.sent.Credentials(ctx, host); err != nil || cred != (transfer.Credentials{}) {
		return cred, err
	}
	return s.Client.Credentials(ctx, host)
}

// buildTraced answers POST /build?version=2: the progress comes as BuildKit's messages.
func (h buildHandlers) buildTraced(c *call, p *dockerfile.Classic) error {
	if id, ok := strings.CutPrefix(p.BuildID, dockerfile.UploadRequest+":"); ok {
		return h.uploadContext(c, id)
	}
	req, err := buildRequest(p)
	if err != nil {
		return err
	}
	creds, err := c.registryConfig()
	if err != nil {
		return err
	}
	if p.Remote != "" {
		if err := c.drain(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(c.ctx())
	defer cancel(nil)
	e, leave, err := h.jobs.run(p.BuildID, func() { cancel(context.Canceled) })
	if err != nil {
		return err
	}
	defer leave()
	sent := &buildClient{creds: creds}
	req.Client = sent
	if p.Session != "" {
		client := h.sessions.Client(p.Session, h.builder)
		defer client.Close()
		watched, done, err := client.Watch(ctx)
		if err != nil {
			return err
		}
		defer done()
		ctx = watched
		req.Client = &sessionClient{client, sent}
	}
	if p.Remote == "" {
		if err := http.NewResponseController(c.w).EnableFullDuplex(); err != nil {
			return errs.New(errs.Internal, "answer: %w", err)
		}
		sent.dir, err = h.builder.Unpack(ctx, c.r.Body)
	} else if p.Remote == dockerfile.UploadRequest {
		sent.dir, err = h.awaitContext(ctx, e)
	}
	if err != nil {
		return err
	}
	if sent.dir != nil {
		defer sent.dir.Close()
	}
	c.w.Header().Set("Content-Type", "application/json")
	out := &traceStream{Trace: buildkit.NewTrace(), c: c}
	sending := make(chan error, 1)
	go func() {
		err := out.Send(ctx, out.send)
		if err != nil {
			cancel(err)
		}
		sending <- err
	}()
	res, err := h.builder.Build(ctx, *req, out)
	out.End()
	if err := <-sending; err != nil && c.ctx().Err() != nil {
		return err
	}
	if err != nil {
		return out.fail(err)
	}
	return out.succeed(res, p.Quiet)
}

// traceStream writes the progress of a build as JSON lines. It writes each line at once: a client that reads slowly slows its build.
type traceStream struct {
	*buildkit.Trace
	c  *call
	mu sync.Mutex // of the answer
}

var _ build.Listener = (*traceStream)(nil)

func (s *traceStream) write(m wire.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := encode(m)
	if err != nil {
		return err
	}
	if _, err := s.c.w.Write(append(b[:len(b)-1], "\r\n"...)); err != nil { // Docker ends its lines so
		return err
	}
	return http.NewResponseController(s.c.w).Flush()
}

func (s *traceStream) send(m *controlapi.StatusResponse) error {
	b, err := m.MarshalVT()
	if err != nil {
		return errs.New(errs.Internal, "progress: %w", err)
	}
	return s.write(wire.Message{ID: wire.BuildTrace, Aux: rawJSON(b)})
}

// StepDone implements build.Listener.
func (s *traceStream) StepDone(st build.StepInfo) {
	m := wire.BuildStep{Index: st.Index, Total: st.Total, Text: st.Text, Image: string(st.Image), Cached: st.Cached}
	if st.Vertex != nil {
		m.Vertex = st.Vertex.Digest.String()
	}
	_ = s.write(wire.Message{ID: wire.BuildStepDone, Aux: rawJSON(m)}) // when it fails, the next part of the trace fails too
}

// fail ends the stream of a build that failed.
func (s *traceStream) fail(err error) error {
	f := failureOf(err)
	if f.image != "" {
		left := wire.BuildFailure{Image: string(f.image), Code: f.code}
		if err := s.write(wire.Message{ID: wire.BuildFailed, Aux: rawJSON(left)}); err != nil {
			return err
		}
		f.text += "\n" + f.hint()
	}
	text := "failed to solve: " + f.text
	return s.write(wire.Message{ErrorDetail: &wire.ErrorDetail{Code: f.code, Message: text}, Error: text})
}

func (s *traceStream) succeed(res *build.Result, quiet bool) error {
	if len(res.Metadata) > 0 {
		if err := s.write(wire.Message{ID: wire.BuildMetadata, Aux: rawJSON(res.Metadata)}); err != nil {
			return err
		}
	}
	if len(res.Answers) > 0 {
		if err := s.write(wire.Message{ID: wire.BuildAnswers, Aux: rawJSON(res.Answers)}); err != nil {
			return err
		}
	}
	if len(res.Images) == 0 {
		return nil
	}
	id := string(res.Images[len(res.Images)-1])
	if err := s.write(wire.Message{ID: wire.BuildImage, Aux: rawJSON(wire.BuildImageID{ID: id})}); err != nil || !quiet {
		return err
	}
	return s.write(wire.Message{Stream: id + "\n"})
}
