package docker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ply/internal/api/docker/stream"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/wire"
)

// transferHandlers moves images: over the network, in archives, and as imported file trees.
type transferHandlers struct {
	puller   Puller
	pusher   Pusher
	archive  Archive
	registry Registry
	images   imageGetter
	http     *http.Client // downloads the source of `import URL`
}

func (h transferHandlers) routes(add adder) {
	add(get, "/images/search", h.search)
	add(get, "/images/get", h.save)
	add(get, "/images/{name...}/get", h.save)
	add(post, "/images/create", h.create)
	add(post, "/images/load", h.load)
	add(post, "/images/{name...}/push", h.push)
	add(post, "/auth", h.auth)
	add(get, "/distribution/{name...}/json", h.inspect)
}

// progress runs long work and streams its messages. The status is sent with the first message, so an error before it has a
// status of its own. A later error is the last message of the stream. Work that reads the body of the request needs progressOfBody.
func (c *call) progress(work func(send sender) error) error {
	if err := c.drain(); err != nil {
		return err
	}
	return c.sendMessages(work)
}

// sendMessages is progress for work that may read the body of the request.
func (c *call) sendMessages(work func(send sender) error) error {
	c.w.Header().Set("Content-Type", "application/json")
	rc := http.NewResponseController(c.w)
	out := stream.NewMessages(c.w, func() { _ = rc.Flush() }) // when it fails, the next write fails too
	err := func() error {
		defer func() { _, _ = out.Close() }() // also when work panics
		return work(out.Put)
	}()
	started, werr := out.Close()
	switch {
	case werr != nil:
		return werr
	case err == nil:
		if !started {
			return c.none(http.StatusOK)
		}
		return nil
	case !started:
		return ofRegistry(err)
	}
	return c.streamError(err)
}

// streamError sends an error as the last message of a stream.
func (c *call) streamError(err error) error {
	b, encErr := encode(wire.Message{ErrorDetail: &wire.ErrorDetail{Message: messageOf(err)}, Error: messageOf(err)})
	if encErr != nil {
		return encErr
	}
	_, err = c.w.Write(b)
	return err
}

// ofRegistry returns the error of a request that asked a registry. One that cannot be reached is status 500, as with docker: clients take 503 for an engine that will
// be there soon, and ask again for ever.
func ofRegistry(err error) error {
	if statusOf(err) == http.StatusServiceUnavailable {
		return &statusError{http.StatusInternalServerError, err}
	}
	return err
}

// progressOfBody is progress for work that reads the body of the request between its messages.
func (c *call) progressOfBody(work func(body io.Reader, send sender) error) error {
	if err := http.NewResponseController(c.w).EnableFullDuplex(); err != nil {
		return errs.New(errs.Internal, "answer: %w", err)
	}
	return c.sendMessages(func(send sender) error { return work(c.r.Body, send) })
}

func (h transferHandlers) create(c *call) error {
	platform, err := platformParam(c.get("platform"))
	if err != nil {
		return err
	}
	switch {
	case c.get("fromImage") != "":
		return h.pull(c, platform)
	case c.get("fromSrc") != "":
		return h.importTar(c, platform)
	}
	return errs.New(errs.Invalid, "parameter fromImage or fromSrc is missing: name an image to pull or an archive to import")
}

func (h transferHandlers) pull(c *call, platform string) error {
	name := strings.TrimSuffix(c.get("fromImage"), ":") // clients send "name:" for all tags
	if oci.IsHex64(name) {
		return errs.New(errs.Invalid, "invalid repository name (%s), cannot specify 64-byte hexadecimal strings", name)
	}
	ref, err := repoTag(name, c.get("tag"))
	if err != nil {
		return err
	}
	cred, err := c.credentials()
	if err != nil {
		return err
	}
	all := ref.Tag() == "" && ref.Digest() == ""
	return c.progress(func(send sender) error {
		return h.puller.Pull(c.ctx(), ref, transfer.PullOptions{Platform: platform, Credentials: cred, AllTags: all}, sink(send))
	})
}

func (h transferHandlers) importTar(c *call, platform string) error {
	opts := transfer.ImportOptions{Message: c.get("message"), Changes: c.q["changes"], Platform: platform, From: transfer.WithoutSecrets(c.get("fromSrc")),
		Format: oci.Format(c.get("format"))}
	if repo := c.get("repo"); repo != "" {
		name, err := repoTag(repo, c.get("tag"))
		if err != nil {
			return err
		}
		if name.Digest() != "" {
			return errs.New(errs.Invalid, "cannot import digest reference")
		}
		opts.Name = name.WithDefaultTag()
	}
	from := func(source io.Reader, send sender) error {
		opts.Source = source
		id, err := h.archive.Import(c.ctx(), opts, sink(send))
		if err != nil {
			return err
		}
		send(wire.Message{Status: id.String()}, 0)
		return nil
	}
	if opts.From == "-" { // the client knows how much it has sent, and prints what it gets: the ID
		return c.sendMessages(func(send sender) error {
			opts.Source = c.r.Body
			id, err := h.archive.Import(c.ctx(), opts, transfer.Discard)
			if err == nil {
				send(wire.Message{Status: id.String()}, 0)
			}
			return err
		})
	}
	return c.progress(func(send sender) error {
		source, err := h.fetch(c.ctx(), c.get("fromSrc"), send)
		if err != nil {
			return err
		}
		defer func() { _ = source.Close() }() // only read from
		return from(source, send)
	})
}

// fetchClient returns a client that gives up when a server does not answer. It has no limit for slow bodies, because the user
// can end the request.
func fetchClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
	}}
}

// fetch opens the source of `import URL`. An address without a scheme is http. User name, password and query of the address
// reach only the server: messages and errors show the address without them.
func (h transferHandlers) fetch(ctx context.Context, from string, send sender) (io.ReadCloser, error) {
	if !strings.Contains(from, "://") {
		from = "http://" + from
	}
	shown := transfer.WithoutSecrets(from)
	u, err := url.Parse(from)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		if i := strings.LastIndexByte(shown, '@'); i >= 0 { // where the password ends is not known, it may hold a slash
			shown = "…" + shown[i:]
		}
		return nil, errs.New(errs.Invalid, "import: %q is not an http or https address", clip(shown))
	}
	req, err := http.NewRequestWithContext(ctx, get, u.String(), nil)
	if err != nil {
		return nil, errs.New(errs.Invalid, "import %s: the address is not valid", shown) // the cause repeats the address
	}
	resp, err := h.http.Do(req)
	if err != nil {
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err // without the address, which has the user name
		}
		return nil, errs.New(errs.Unavailable, "import %s: %w", shown, err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close() // only read from
		var class error = errs.Unavailable
		if resp.StatusCode == http.StatusNotFound {
			class = errs.NotFound
		}
		return nil, errs.New(class, "import %s: the server answers %s", shown, resp.Status)
	}
	send(wire.Message{Status: "Downloading from " + shown}, 0)
	return &counted{ReadCloser: resp.Body, total: resp.ContentLength, send: send}, nil
}

// counted is a body that reports how much of it was read.
type counted struct {
	io.ReadCloser
	read, told, total int64
	send              sender
}

func (r *counted) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.read += int64(n)
	if r.read-r.told >= 512<<10 || err == io.EOF && r.read > r.told {
		r.told = r.read
		r.send(wire.Message{Status: "Importing", Detail: &wire.ProgressDetail{Current: r.read, Total: max(r.total, 0)}}, 0)
	}
	return n, err
}

func (h transferHandlers) push(c *call) error {
	ref, err := repoTag(c.vars["name"], c.get("tag"))
	if err != nil {
		return err
	}
	if ref.Digest() != "" {
		return errs.New(errs.Invalid, "cannot push a digest reference")
	}
	platform, err := platformParam(c.get("platform"))
	if err != nil {
		return err
	}
	cred, err := c.credentials()
	if err != nil {
		return err
	}
	if c.r.Header.Get(authHeader) == "" { // very old clients send credentials in the body
		var a wire.Auth
		if err := c.body(&a, true); err != nil {
			return err
		}
		cred = credentialsOf(a)
	}
	opts := transfer.PushOptions{Credentials: cred, AllTags: ref.Tag() == "", Platform: platform}
	return c.progress(func(send sender) error {
		return h.pusher.Push(c.ctx(), ref, opts, sink(send))
	})
}

func (h transferHandlers) load(c *call) error {
	if len(c.q["platform"]) > 1 {
		return errs.New(errs.Invalid, "multiple platform parameters not supported")
	}
	platform, err := platformParam(c.get("platform"))
	if err != nil {
		return err
	}
	opts := transfer.LoadOptions{Quiet: c.bool("quiet"), Platform: platform}
	err = c.progressOfBody(func(body io.Reader, send sender) error {
		return h.archive.Load(c.ctx(), body, opts, sink(send))
	})
	if err != nil && !c.w.wrote && c.ctx().Err() == nil {
		return c.streamError(err) // with status 200, as docker does: its answer begins before the archive is read
	}
	return err
}

func (h transferHandlers) save(c *call) error {
	names := c.q["names"]
	if name, ok := c.vars["name"]; ok {
		names = []string{name}
	}
	if len(names) == 0 {
		return errs.New(errs.Invalid, "parameter names is missing: which images to save")
	}
	platforms, err := platformParams(c, "platform")
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/x-tar")
	return h.archive.Save(c.ctx(), names, transfer.SaveOptions{Format: c.get("format"), Platforms: platforms}, c.w)
}
