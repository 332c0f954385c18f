package buildkit

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward"
	"github.com/moby/buildkit/session/upload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"ply/internal/build"
	"ply/internal/build/ops"
	"ply/internal/build/source"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/transfer"
)

// Directories keeps what clients send; build.Service has it.
type Directories interface {
	Receive(key string, fill func(root *os.File, since time.Time) (bytes int64, err error)) (*build.Directory, error)
}

const (
	// maxSecret is the largest secret, as clients have it too.
	maxSecret = 500 << 10
	// answerTimeout is how long a client may take to find a secret or credentials. Their helpers may ask the user.
	answerTimeout = 2 * time.Minute
)

// Client is a session as a build sees it. Close ends what it has opened.
type Client struct {
	sessions *Sessions
	dirs     Directories
	id       string

	mu    sync.Mutex
	open  []*build.Directory
	creds map[string]transfer.Credentials
}

var _ build.Client = (*Client)(nil)

// Client returns the client of a session. The session may begin later.
func (s *Sessions) Client(id string, dirs Directories) *Client {
	return &Client{sessions: s, dirs: dirs, id: id, creds: map[string]transfer.Credentials{}}
}

// Watch returns a context that ends when the client has left: nobody waits for the result then.
func (c *Client) Watch(ctx context.Context) (context.Context, context.CancelFunc, error) {
	s, err := c.sessions.get(ctx, c.id)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		select {
		case <-s.gone:
			cancel(errs.New(errs.Unavailable, "the client has left"))
		case <-done:
		}
	}()
	return ctx, sync.OnceFunc(func() { close(done); cancel(nil) }), nil
}

// Close closes the directories that the client sent.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, d := range c.open {
		err = errors.Join(err, d.Close())
	}
	c.open = nil
	return err
}

// session returns the session that has a source: the one that the source names, or that of the build.
func (c *Client) session(ctx context.Context, id string) (*offering, error) {
	if id == "" {
		id = c.id
	}
	return c.sessions.get(ctx, id)
}

// Local implements build.Client: it receives a directory, of which the client selects what the patterns want.
func (c *Client) Local(ctx context.Context, l *ops.Local) (*tree.Tree, error) {
	s, err := c.session(ctx, l.Session)
	if err != nil {
		return nil, err
	}
	if !s.offers(filesync.FileSync_DiffCopy_FullMethodName) {
		return nil, errs.New(errs.NotFound, "the client offers no directories")
	}
	key := "" // a client without a key has nothing that outlives its session
	if s.sharedKey != "" {
		key = strings.Join([]string{s.sharedKey, l.Name, l.SharedKey}, "\x00")
	}
	d, err := c.dirs.Receive(key, func(root *os.File, since time.Time) (int64, error) {
		ctx, cancel := context.WithCancelCause(metadata.NewOutgoingContext(ctx, localHeaders(l)))
		defer cancel(nil)
		stream, err := filesync.NewFileSyncClient(s.cc).DiffCopy(ctx)
		if err != nil {
			return 0, streamError(err)
		}
		r := &receiver{root: root, stream: stream, cancel: cancel, since: since}
		err = r.receive(ctx)
		return r.taken, err
	})
	if err != nil {
		return nil, named("directory "+l.Name, err)
	}
	c.mu.Lock()
	c.open = append(c.open, d)
	c.mu.Unlock()
	return d.Local(&ops.Local{Name: l.Name})
}

// localHeaders asks for a directory and for what of it is wanted. Headers are ASCII; others are encoded, and a second header says so.
func localHeaders(l *ops.Local) metadata.MD {
	md := metadata.MD{}
	for key, values := range map[string][]string{
		"dir-name": {l.Name}, "include-patterns": l.Include, "exclude-patterns": l.Exclude, "followpaths": l.Follow,
	} {
		if len(values) == 0 {
			continue
		}
		out := make([]string, len(values))
		encoded := false
		for _, v := range values {
			encoded = encoded || strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r > 0x7e })
		}
		for i, v := range values {
			if out[i] = v; encoded {
				out[i] = url.QueryEscape(v)
			}
		}
		md[key] = out
		if encoded {
			md[key+"-encoded"] = []string{"1"}
		}
	}
	return md
}

// Secret implements build.Client.
func (c *Client) Secret(ctx context.Context, id string) ([]byte, error) {
	s, err := c.session(ctx, "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := secrets.NewSecretsClient(s.cc).GetSecret(ctx, &secrets.GetSecretRequest{ID: id}, grpc.MaxCallRecvMsgSize(maxSecret+1024))
	switch status.Code(err) {
	case codes.OK:
		return resp.Data, nil
	case codes.NotFound, codes.Unimplemented:
		return nil, errs.New(errs.NotFound, "secret %s: not found", clip(id))
	}
	return nil, named("secret "+clip(id), streamError(err))
}

var _ source.Uploads = (*Client)(nil)

// Upload implements source.Uploads.
func (c *Client) Upload(ctx context.Context, path string) (io.ReadCloser, error) {
	s, err := c.session(ctx, "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, metadata.Pairs("urlpath", path, "urlhost", "buildkit-session")))
	stream, err := upload.NewUploadClient(s.cc).Pull(ctx)
	if err != nil {
		cancel()
		return nil, named("context "+clip(path), streamError(err))
	}
	return &uploading{stream: stream, cancel: cancel}, nil
}

// uploading reads a file that a client sends.
type uploading struct {
	stream grpc.BidiStreamingClient[upload.BytesMessage, upload.BytesMessage]
	cancel context.CancelFunc
	rest   []byte
}

func (u *uploading) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		m, err := u.stream.Recv()
		if err != nil {
			return 0, streamError(err)
		}
		u.rest = m.Data
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

func (u *uploading) Close() error {
	u.cancel()
	return nil
}

// Agent implements build.Client.
func (c *Client) Agent(ctx context.Context, id string) (io.ReadWriteCloser, error) {
	if id == "" {
		id = sshforward.DefaultID
	}
	s, err := c.session(ctx, "")
	if err != nil {
		return nil, err
	}
	client := sshforward.NewSSHClient(s.cc)
	asked, done := context.WithTimeout(ctx, answerTimeout)
	defer done()
	if _, err := client.CheckAgent(asked, &sshforward.CheckAgentRequest{ID: id}); err != nil {
		if code := status.Code(err); code == codes.Unimplemented || code == codes.NotFound || code == codes.Unknown {
			return nil, errs.New(errs.NotFound, "ssh agent %s: the client does not offer it: %s", clip(id), clip(status.Convert(err).Message()))
		}
		return nil, named("ssh agent "+clip(id), streamError(err))
	}
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, metadata.Pairs(sshforward.KeySSHID, id)))
	stream, err := client.ForwardAgent(ctx)
	if err != nil {
		cancel()
		return nil, named("ssh agent "+clip(id), streamError(err))
	}
	return &agent{stream: stream, cancel: cancel}, nil
}

// agent is the connection with an ssh agent of a client.
type agent struct {
	stream grpc.BidiStreamingClient[sshforward.BytesMessage, sshforward.BytesMessage]
	cancel context.CancelFunc
	rest   []byte
	write  sync.Mutex
}

func (a *agent) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		m, err := a.stream.Recv()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, streamError(err)
		}
		a.rest = m.Data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *agent) Write(p []byte) (int, error) {
	a.write.Lock()
	defer a.write.Unlock()
	const chunk = 32 << 10
	for done := 0; done < len(p); {
		n := min(chunk, len(p)-done)
		if err := a.stream.Send(&sshforward.BytesMessage{Data: p[done : done+n]}); err != nil {
			return done, streamError(err)
		}
		done += n
	}
	return len(p), nil
}

// CloseWrite tells the agent that no more requests come.
func (a *agent) CloseWrite() error {
	a.write.Lock()
	defer a.write.Unlock()
	return a.stream.CloseSend()
}

func (a *agent) Close() error {
	a.cancel()
	return nil
}

// hubHost is how clients know the registry of names without a host.
const hubHost = "registry-1.docker.io"

// Credentials implements build.Client. The client is asked once for each host.
func (c *Client) Credentials(ctx context.Context, host string) (transfer.Credentials, error) {
	c.mu.Lock()
	known, ok := c.creds[host]
	c.mu.Unlock()
	if ok {
		return known, nil
	}
	s, err := c.session(ctx, "")
	if err != nil {
		return transfer.Credentials{}, err
	}
	asked := host
	if host == "docker.io" {
		asked = hubHost
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	out := transfer.Credentials{ServerAddress: host}
	resp, err := auth.NewAuthClient(s.cc).Credentials(ctx, &auth.CredentialsRequest{Host: asked})
	switch status.Code(err) {
	case codes.OK:
		if out.Username, out.Password = resp.Username, resp.Secret; out.Username == "" {
			out.Password, out.IdentityToken = "", resp.Secret
		}
	case codes.Unimplemented: // the client has none
	default:
		return transfer.Credentials{}, named("credentials for "+clip(host), streamError(err))
	}
	c.mu.Lock()
	c.creds[host] = out
	c.mu.Unlock()
	return out, nil
}

// named says in an error what was asked for.
func named(what string, err error) error {
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return errs.New(e.Class, "%s: %w", what, err)
	}
	return err
}

// streamError turns an error of gRPC into one of ours.
func streamError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return errs.New(errs.Unavailable, "the client: %w", err)
	}
	var class error = errs.Internal
	switch st.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.NotFound:
		class = errs.NotFound
	case codes.InvalidArgument:
		class = errs.Invalid
	case codes.PermissionDenied, codes.Unauthenticated:
		class = errs.Forbidden
	case codes.Unavailable, codes.DeadlineExceeded:
		class = errs.Unavailable
	case codes.ResourceExhausted:
		class = errs.Exhausted
	case codes.Unimplemented:
		class = errs.Unimplemented
	}
	return errs.New(class, "the client: %s", clip(st.Message()))
}
