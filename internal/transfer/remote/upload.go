package remote

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
)

// Upload sends one blob to a registry. Not safe for concurrent use.
type Upload struct {
	s      *Session
	ep     *resolved
	at     *url.URL // URL of the next request
	scopes []string
}

// StartUpload begins an upload. With a digest and another repository of the same registry it asks the registry to take the blob
// from that repository. If the registry does, mounted is true and there is no upload.
func (s *Session) StartUpload(ctx context.Context, mount oci.Digest, from oci.Reference) (up *Upload, mounted bool, err error) {
	path := s.repoPath("/blobs/uploads/")
	scopes := []string{s.scope}
	if mount != "" {
		path += "?" + url.Values{"mount": {string(mount)}, "from": {from.Path()}}.Encode()
		scopes = append(scopes, "repository:"+from.Path()+":pull")
	}
	resp, ep, err := s.send(ctx, s.host, &request{method: http.MethodPost, path: path, scopes: scopes, body: bytesBody(nil)})
	if err != nil {
		return nil, false, err
	}
	drain(resp)
	switch {
	case resp.StatusCode == http.StatusCreated && mount != "":
		return nil, true, nil
	case resp.StatusCode != http.StatusAccepted:
		return nil, false, errs.New(errs.Invalid, "registry %s: answers the start of an upload with status %d", ep.host, resp.StatusCode)
	}
	up = &Upload{s: s, ep: ep, scopes: []string{s.scope}}
	return up, false, up.follow(resp)
}

// follow takes the URL of the next request from an answer. It may be relative, or at another host, which gets no Authorization.
func (u *Upload) follow(resp *http.Response) error {
	loc := resp.Header.Get("Location")
	next, err := resp.Request.URL.Parse(loc)
	if err != nil || loc == "" {
		return errs.New(errs.Invalid, "registry %s: upload without a usable Location", u.ep.host)
	}
	if next.Scheme != "https" && next.Scheme != "http" || (u.ep.base.Scheme == "https" && next.Scheme == "http" && !strings.EqualFold(next.Host, u.ep.host)) {
		return errs.New(errs.Forbidden, "registry %s: sends the upload to %s, refused", u.ep.host, redact(next))
	}
	// A registry behind a proxy that ends TLS may write http where clients need https.
	if strings.EqualFold(next.Host, u.ep.host) {
		next.Scheme = u.ep.base.Scheme
	}
	next.User = nil
	u.at = next
	return nil
}

// Patch appends the bytes of r to the upload. length -1 means unknown. After an error, Offset returns where to continue.
func (u *Upload) Patch(ctx context.Context, r io.Reader, length int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := newWatched(r, func() {
		cancel(errs.New(errs.Unavailable, "registry %s: does not read the upload any more", u.ep.host))
	})
	defer w.timer.Stop()
	resp, _, err := u.s.send(ctx, u.ep.endpoint, &request{
		method: http.MethodPatch, url: u.at, body: func() io.Reader { return w }, length: length, once: true,
		header: http.Header{"Content-Type": {"application/octet-stream"}}, scopes: u.scopes,
	})
	if err != nil {
		return err
	}
	drain(resp)
	return u.follow(resp)
}

// Offset returns how many bytes of the upload the registry has. errs.NotFound when it has forgotten the upload.
func (u *Upload) Offset(ctx context.Context) (int64, error) {
	resp, _, err := u.s.send(ctx, u.ep.endpoint, &request{method: http.MethodGet, url: u.at, scopes: u.scopes})
	if err != nil {
		return 0, err
	}
	drain(resp)
	if resp.Header.Get("Location") != "" {
		if err := u.follow(resp); err != nil {
			return 0, err
		}
	}
	v := strings.TrimPrefix(resp.Header.Get("Range"), "bytes=")
	_, last, ok := strings.Cut(v, "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil || n < 0 {
		return 0, errs.New(errs.NotFound, "registry %s: does not say how far the upload is", u.ep.host)
	}
	if n == 0 {
		return 0, nil // registries answer "0-0" for an empty upload
	}
	return n + 1, nil
}

// Commit completes the upload. body is the last part of the blob; nil = none.
func (u *Upload) Commit(ctx context.Context, d oci.Digest, body []byte) error {
	at := cloneURL(u.at)
	if at.RawQuery != "" {
		at.RawQuery += "&"
	}
	at.RawQuery += "digest=" + url.QueryEscape(string(d)) // the query has the state of the registry, which must come back byte for byte
	resp, _, err := u.s.send(ctx, u.ep.endpoint, &request{
		method: http.MethodPut, url: at, body: bytesBody(body), length: int64(len(body)),
		header: http.Header{"Content-Type": {"application/octet-stream"}}, scopes: u.scopes,
	})
	if err != nil {
		return err
	}
	drain(resp)
	return nil
}

// Cancel asks the registry to forget the upload. It ignores errors: the registry will forget the upload anyway.
func (u *Upload) Cancel(ctx context.Context) {
	resp, _, err := u.s.send(ctx, u.ep.endpoint, &request{method: http.MethodDelete, url: u.at, scopes: u.scopes})
	if err == nil {
		drain(resp)
	}
}
