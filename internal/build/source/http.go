package source

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/fence"
	"ply/internal/oci"
	"ply/internal/version"
)

const (
	connectTimeout = 30 * time.Second
	maxRedirects   = 10
)

func (s *Sources) webClient() *http.Client {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return s.dialer(proxyTarget(ctx)).Dial(ctx, network, addr)
		},
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: s.o.Roots},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  s.o.Limits.Quiet,
		MaxResponseHeaderBytes: 64 << 10,
		IdleConnTimeout:        30 * time.Second,
		DisableCompression:     true, // the file is stored as it is; decode undoes an encoding that was not asked for
	}
	return &http.Client{Transport: fenced{t}, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case len(via) >= maxRedirects:
			return errs.New(errs.Unavailable, "more than %d redirects", maxRedirects)
		case req.URL.Scheme != "http" && req.URL.Scheme != "https":
			return errs.New(errs.Forbidden, "a redirect leads to the scheme %.40q", req.URL.Scheme)
		case via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme == "http" && via[0].Header.Get("Authorization") != "":
			return errs.New(errs.Forbidden, "a redirect leads from https to http, and the request has credentials")
		}
		return nil
	}}
}

func (s *Sources) dialer(target string) *fence.Dialer {
	return &fence.Dialer{Timeout: connectTimeout, Check: fence.Check, Target: target, Lookup: s.o.Lookup, Connect: s.o.Connect}
}

type targetKey struct{}

// fenced tells the dialer which host a request is for: another host that is dialed for it is a proxy, which the administrator has chosen. The proxy
// resolves the name of the request, so what can be checked here is an address in place of a name.
type fenced struct{ t *http.Transport }

func (f fenced) RoundTrip(req *http.Request) (*http.Response, error) {
	host := req.URL.Hostname()
	if err := checkLiteral(host); err != nil {
		return nil, err
	}
	return f.t.RoundTrip(req.WithContext(context.WithValue(req.Context(), targetKey{}, host)))
}

// checkLiteral refuses a host that is a forbidden address.
func checkLiteral(host string) error {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return nil // a name
	}
	return fence.Check(host, ip)
}

func proxyTarget(ctx context.Context) string {
	host, _ := ctx.Value(targetKey{}).(string)
	return host
}

// webFile is a file of a web server that was stored.
type webFile struct {
	chain    oci.Chain
	digest   oci.Digest
	name     string
	modified time.Time
}

// Notes of a record.
const (
	noteETag     = "etag"
	noteModified = "modified"
	noteDigest   = "digest"
	noteName     = "file name"
)

// HTTP fetches a file. A file that is in the cache is asked for again, so that it is sent only if it has changed; not even that when its digest is given.
func (f *Fetches) HTTP(ctx context.Context, op *ops.HTTP, status func(solver.Status)) (*solver.Result, error) {
	r, err := f.file(ctx, op, status)
	if err != nil {
		return nil, err
	}
	modified := ""
	if op.Checksum == "" && !r.modified.IsZero() {
		modified = r.modified.Format(http.TimeFormat)
	}
	return &solver.Result{Chain: r.chain, Origin: string(r.digest), Key: solver.SourceKey("http", string(r.digest), r.name, attributes(op), modified)}, nil
}

func (f *Fetches) file(ctx context.Context, op *ops.HTTP, status func(solver.Status)) (*webFile, error) {
	if op.Checksum != "" {
		rec, err := f.find(ctx, sumKey(op, op.Checksum, fileName(op, nil)))
		if err != nil {
			return nil, err
		}
		if rec != nil {
			return webFileOf(rec), nil
		}
	}
	key, err := urlKey(op)
	if err != nil {
		return nil, err
	}
	done, err := f.s.wait(ctx, string(key))
	if err != nil {
		return nil, err
	}
	defer done()
	f.mu.Lock()
	r := f.files[key]
	f.mu.Unlock()
	if r != nil && (op.Checksum == "" || op.Checksum == r.digest) {
		return r, nil
	}
	if r, err = f.fetchFile(ctx, op, key, status); err == nil {
		f.mu.Lock()
		f.files[key] = r
		f.mu.Unlock()
	}
	return r, err
}

func (f *Fetches) fetchFile(ctx context.Context, op *ops.HTTP, key oci.Digest, status func(solver.Status)) (*webFile, error) {
	rec, err := f.find(ctx, key)
	if err != nil {
		return nil, err
	}
	if rec != nil && op.Checksum != "" && part(rec, noteDigest) != string(op.Checksum) {
		rec = nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, f.s.o.Limits.Time, errs.New(errs.Unavailable, "%s: not complete after %s", redact(op.URL), f.s.o.Limits.Time))
	defer cancel()
	resp, err := f.get(ctx, op, rec)
	if err != nil {
		return nil, explain(ctx, op.URL, err)
	}
	defer resp.Body.Close()
	same := resp.StatusCode == http.StatusNotModified || rec != nil && part(rec, noteETag) != "" && etag(resp) == part(rec, noteETag)
	if rec != nil && same {
		return webFileOf(rec), nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errs.New(statusClass(resp.StatusCode), "%s: invalid response status %d", redact(op.URL), resp.StatusCode)
	}
	r, err := f.store(ctx, op, key, resp, status)
	if err != nil {
		return nil, explain(ctx, op.URL, err)
	}
	return r, nil
}

func statusClass(code int) error {
	switch code {
	case http.StatusNotFound, http.StatusGone:
		return errs.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return errs.Unauthorized
	}
	return errs.Unavailable
}

// explain returns why a request failed, without the credentials that its address may have.
func explain(ctx context.Context, address string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if errors.Is(err, errs.Forbidden) {
		return errs.New(errs.Forbidden, "%s: %w", redact(address), err)
	}
	var ours *errs.Error
	if errors.As(err, &ours) {
		return err
	}
	return errs.New(errs.Unavailable, "%s: %w", redact(address), err)
}

// redact returns an address without its password.
func redact(address string) string {
	u, err := url.Parse(address)
	switch {
	case err == nil:
		return u.Redacted()
	case strings.Contains(address, "://"):
		return "the address"
	}
	return address // as ssh has it, without a password
}

// attributes are those of the file in the layer.
func attributes(op *ops.HTTP) string { return fmt.Sprint(op.Mode, " ", op.UID, " ", op.GID) }

// urlKey is the key of what an address had when it was asked last.
func urlKey(op *ops.HTTP) (oci.Digest, error) {
	headers, err := json.Marshal(op.Headers)
	if err != nil {
		return "", errs.New(errs.Internal, "%w", err)
	}
	return solver.SourceKey("http address", op.URL, op.Filename, attributes(op), op.HeaderSecret, string(headers)), nil
}

// sumKey is the key of a file that is known by its digest.
func sumKey(op *ops.HTTP, d oci.Digest, name string) oci.Digest {
	return solver.SourceKey("http file", string(d), name, attributes(op))
}

func webFileOf(rec *solver.Record) *webFile {
	r := &webFile{chain: rec.Outputs[0], digest: oci.Digest(part(rec, noteDigest)), name: part(rec, noteName)}
	if t, err := http.ParseTime(part(rec, noteModified)); err == nil {
		r.modified = t
	}
	return r
}

func etag(resp *http.Response) string { return strings.TrimPrefix(resp.Header.Get("ETag"), "W/") }

// get sends the request. rec is what the address had before.
func (f *Fetches) get(ctx context.Context, op *ops.HTTP, rec *solver.Record) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, op.URL, nil)
	if err != nil {
		return nil, errs.New(errs.Invalid, "%s: not an address", redact(op.URL))
	}
	if req.URL.Host == "" || req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return nil, errs.New(errs.Invalid, "%s: not an address of a web server", redact(op.URL))
	}
	if req.URL.Host == uploadHost {
		return f.upload(ctx, req)
	}
	req.Header.Set("User-Agent", "ply/"+version.Version)
	for name, value := range op.Headers {
		switch http.CanonicalHeaderKey(name) { // no others have an effect, as with BuildKit
		case "Accept", "User-Agent":
			req.Header.Set(name, value)
		}
	}
	if err := f.authorize(ctx, op, req); err != nil {
		return nil, err
	}
	if rec != nil {
		if tag := part(rec, noteETag); tag != "" {
			req.Header.Set("If-None-Match", tag+", W/"+tag)
		} else if m := part(rec, noteModified); m != "" {
			req.Header.Set("If-Modified-Since", m)
		}
	}
	return f.s.web.Do(req)
}

// uploadHost is the host by which BuildKit's clients name themselves in an address. No server is ever asked for it.
const uploadHost = "buildkit-session"

// upload takes the answer to a request from the client of the build.
func (f *Fetches) upload(ctx context.Context, req *http.Request) (*http.Response, error) {
	c, ok := f.client.(Uploads)
	if !ok {
		return nil, errs.New(errs.Unimplemented, "the client has no session that sends %s", req.URL.Path)
	}
	body, err := c.Upload(ctx, req.URL.Path)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body, ContentLength: -1, Request: req}, nil
}

// authorize adds the credentials that the client has for the host.
func (f *Fetches) authorize(ctx context.Context, op *ops.HTTP, req *http.Request) error {
	if op.HeaderSecret != "" {
		v, err := f.secret(ctx, op.HeaderSecret)
		if err == nil && v == nil {
			err = errs.New(errs.NotFound, "secret %s: not found; the request to %s needs it", op.HeaderSecret, req.URL.Host)
		}
		req.Header.Set("Authorization", string(v))
		return err
	}
	host := req.URL.Hostname()
	for _, s := range []struct{ id, prefix string }{{"HTTP_AUTH_HEADER_" + host, ""}, {"HTTP_AUTH_TOKEN_" + host, "Bearer "}} {
		v, err := f.secret(ctx, s.id)
		if err != nil {
			return err
		}
		if v != nil {
			req.Header.Set("Authorization", s.prefix+string(v))
			return nil
		}
	}
	return nil
}

// fileName returns the name of the file in the layer. resp may be nil.
func fileName(op *ops.HTTP, resp *http.Response) string {
	if op.Filename != "" {
		return safeName(op.Filename)
	}
	if resp != nil {
		if _, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition")); err == nil {
			if n := params["filename"]; n != "" && !strings.HasSuffix(n, "/") {
				return safeName(n)
			}
		}
	}
	if u, err := url.Parse(op.URL); err == nil {
		return safeName(u.Path)
	}
	return safeName("")
}

// safeName returns the last element of a path, or "download" when that cannot be the name of a file.
func safeName(s string) string {
	name := path.Base(strings.TrimSpace(s))
	if name == "." || name == ".." || name == "/" || len(name) > 255 || strings.HasPrefix(name, ".wh.") || strings.ContainsFunc(name, unicode.IsControl) {
		return "download"
	}
	return name
}

// store makes a layer of the body of a response, and remembers it.
func (f *Fetches) store(ctx context.Context, op *ops.HTTP, key oci.Digest, resp *http.Response, status func(solver.Status)) (*webFile, error) {
	r := &webFile{name: fileName(op, resp)}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		r.modified = t.UTC()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	body := &body{r: resp.Body, ctx: ctx, limit: f.s.o.Limits.Bytes, total: resp.ContentLength, id: redact(op.URL), status: status}
	if resp.ContentLength > body.limit {
		return nil, errs.New(errs.Invalid, "%s: the file has %d bytes, the limit is %d", body.id, resp.ContentLength, body.limit)
	}
	stop := body.watch(cancel, f.s.o.Limits)
	defer stop()
	defer context.AfterFunc(ctx, func() { _ = resp.Body.Close() })() // it unblocks a read
	content, size, err := f.content(resp, body)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	h := sha256.New()
	r.chain, err = f.s.o.Layers.Layer(ctx, f.lease, nil, func(w io.Writer) error {
		if err := writeFile(w, op, r, io.TeeReader(content, h), size); err != nil {
			return err
		}
		r.digest = oci.DigestOfHash(h)
		if op.Checksum != "" && r.digest != op.Checksum {
			return errs.New(errs.Precondition, "digest mismatch for %s: %s (expected: %s)", body.id, r.digest, op.Checksum)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	body.report(true)
	now := time.Now().UTC()
	modified := ""
	if !r.modified.IsZero() {
		modified = r.modified.Format(http.TimeFormat)
	}
	rec := &solver.Record{
		ID: solver.SourceKey("http result", string(key), string(r.digest), r.name, modified, etag(resp)), Outputs: map[int]oci.Chain{0: r.chain},
		Name: "http " + body.id, Created: now,
		Parts: []solver.Part{{What: noteETag, Sum: etag(resp)}, {What: noteModified, Sum: modified}, {What: noteDigest, Sum: string(r.digest)}, {What: noteName, Sum: r.name}},
	}
	return r, f.s.o.Cache.Save(ctx, rec, rec.ID, key, sumKey(op, r.digest, r.name))
}

// content returns the body of a response as a reader with a known size: the entry of a layer begins with its size.
func (f *Fetches) content(resp *http.Response, b io.Reader) (io.ReadCloser, int64, error) {
	encoding := strings.ToLower(resp.Header.Get("Content-Encoding"))
	switch {
	case encoding == "" || encoding == "identity":
		if resp.ContentLength >= 0 {
			return io.NopCloser(b), resp.ContentLength, nil
		}
	case encoding == "gzip" || encoding == "x-gzip":
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, 0, errs.New(errs.Unavailable, "the body is said to be gzip: %w", err)
		}
		b = z
	default:
		return nil, 0, errs.New(errs.Unimplemented, "the body has the encoding %.40q, which was not asked for", encoding)
	}
	file, err := f.s.spool()
	if err != nil {
		return nil, 0, err
	}
	n, err := io.Copy(file, io.LimitReader(b, f.s.o.Limits.Bytes+1))
	if err == nil && n > f.s.o.Limits.Bytes {
		err = errs.New(errs.Invalid, "the file has more than %d bytes", f.s.o.Limits.Bytes)
	}
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, n, nil
}

func writeFile(w io.Writer, op *ops.HTTP, r *webFile, content io.Reader, size int64) error {
	mode := op.Mode
	if mode <= 0 {
		mode = 0o600
	}
	t := time.Unix(0, 0)
	if !r.modified.IsZero() {
		t = r.modified
	}
	tw := tar.NewWriter(w)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: r.name, Size: size, Mode: int64(mode & 0o7777), Uid: op.UID, Gid: op.GID, ModTime: t, Format: tar.FormatPAX}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(tw, content)
	if err == nil && n != size {
		err = errs.New(errs.Unavailable, "the body ended after %d of %d bytes", n, size)
	}
	if err != nil {
		return err
	}
	return tw.Close()
}

// body is a body of a response that is read: it counts, reports, and ends at the limit.
type body struct {
	r      io.Reader
	ctx    context.Context
	limit  int64
	total  int64
	id     string
	status func(solver.Status)
	n      atomic.Int64
	told   time.Time
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.n.Add(int64(n)) > b.limit {
		return n, errs.New(errs.Invalid, "%s: more than %d bytes", b.id, b.limit)
	}
	if cause := context.Cause(b.ctx); cause != nil {
		return n, cause
	}
	if time.Since(b.told) > 200*time.Millisecond {
		b.told = time.Now()
		b.report(false)
	}
	return n, err
}

func (b *body) report(done bool) {
	if b.status != nil {
		b.status(solver.Status{ID: b.id, Current: b.n.Load(), Total: max(b.total, 0), Done: done})
	}
}

// watch cancels when the body comes too slowly. The caller calls stop.
func (b *body) watch(cancel context.CancelCauseFunc, l Limits) (stop func()) {
	end := make(chan struct{})
	go func() {
		t := time.NewTicker(l.Quiet)
		defer t.Stop()
		last := int64(0)
		for {
			select {
			case <-end:
				return
			case <-t.C:
			}
			n := b.n.Load()
			if need := int64(float64(l.MinRate) * l.Quiet.Seconds()); n-last < need && n != b.total {
				cancel(errs.New(errs.Unavailable, "%s: only %s bytes came in %s", b.id, strconv.FormatInt(n-last, 10), l.Quiet))
				return
			}
			last = n
		}
	}()
	return func() { close(end) }
}
