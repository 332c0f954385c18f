package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"ply/internal/errs"
	"ply/internal/registry/content"
)

func pushScope(name string) string   { return "repository:" + name + ":pull,push" }
func deleteScope(name string) string { return "repository:" + name + ":delete,pull,push" }

// HasBlob reports whether a repository has a blob.
func (r *Registry) HasBlob(ctx context.Context, name string, d content.Digest) (bool, error) {
	resp, err := r.do(ctx, request{method: http.MethodHead, path: name + "/blobs/" + string(d), scope: pushScope(name)})
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	drain(resp)
	return true, nil
}

// HasManifest reports whether a tag or digest of a repository stands for a manifest.
func (r *Registry) HasManifest(ctx context.Context, name, ref string, d content.Digest) (bool, error) {
	resp, err := r.do(ctx, request{method: http.MethodHead, path: name + "/manifests/" + ref, header: map[string]string{"Accept": manifestTypes}, scope: pushScope(name)})
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	drain(resp)
	return resp.Header.Get("Docker-Content-Digest") == string(d), nil
}

// PutBlob uploads a blob. Open returns its bytes; it may be called again.
func (r *Registry) PutBlob(ctx context.Context, name string, d content.Digest, size int64, open func() (io.ReadCloser, error)) error {
	resp, err := r.do(ctx, request{method: http.MethodPost, path: name + "/blobs/uploads/", scope: pushScope(name), body: empty})
	if err != nil {
		return err
	}
	drain(resp)
	at, err := r.location(resp)
	if err != nil {
		return err
	}
	q := at.Query()
	q.Set("digest", string(d))
	at.RawQuery = q.Encode()
	resp, err = r.do(ctx, request{method: http.MethodPut, url: at, scope: pushScope(name), body: open, length: size, header: map[string]string{"Content-Type": "application/octet-stream"}})
	if err != nil {
		return err
	}
	drain(resp)
	return nil
}

func empty() (io.ReadCloser, error) { return http.NoBody, nil }

// location returns where an upload goes on.
func (r *Registry) location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	switch {
	case err != nil || resp.Header.Get("Location") == "" || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, errs.New(errs.Invalid, "registry %s: upload without a usable Location", r.base.Host)
	case r.base.Scheme == "https" && u.Scheme == "http":
		if u.Hostname() != r.base.Hostname() {
			return nil, errs.New(errs.Forbidden, "registry %s: upload leads from https to http at %q", r.base.Host, clip(u.Host))
		}
		u.Scheme, u.Host = r.base.Scheme, r.base.Host // a registry behind a proxy that ends TLS
	}
	u.User = nil
	return u, nil
}

// PutManifest stores a manifest under its digest or a tag.
func (r *Registry) PutManifest(ctx context.Context, name, ref, mediaType string, payload []byte) error {
	resp, err := r.do(ctx, request{
		method: http.MethodPut, path: name + "/manifests/" + ref, scope: pushScope(name), length: int64(len(payload)),
		header: map[string]string{"Content-Type": mediaType},
		body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(payload)), nil },
	})
	if err != nil {
		return err
	}
	drain(resp)
	return nil
}

// Delete removes a manifest by its digest, or a tag. Removing what does not exist is no error.
func (r *Registry) Delete(ctx context.Context, name, ref string) error {
	resp, err := r.do(ctx, request{method: http.MethodDelete, path: name + "/manifests/" + ref, scope: deleteScope(name)})
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	drain(resp)
	return nil
}
