package remote

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/registry/content"
)

const (
	maxList      = 4 << 20 // bytes of a page of a list
	maxReferrers = 20      // pages, which have maxList bytes together
)

// manifestTypes are what a manifest may be. A registry that converts manifests sends the type that is named here.
var manifestTypes = strings.Join([]string{
	oci.MediaTypeOCIManifest, oci.MediaTypeOCIIndex, oci.MediaTypeDockerManifest, oci.MediaTypeDockerManifestList, "application/vnd.oci.artifact.manifest.v1+json", "*/*;q=0.1",
}, ", ")

func pullScope(name string) string { return "repository:" + name + ":pull" }

// Manifest is a manifest of another registry.
type Manifest struct {
	Digest    content.Digest
	MediaType string // as the registry says
	Payload   []byte // nil when only its digest was asked for
}

// Head asks which manifest a tag or digest stands for. The digest is "" when the registry does not say.
func (r *Registry) Head(ctx context.Context, name, ref string) (Manifest, error) {
	resp, err := r.do(ctx, request{method: http.MethodHead, path: name + "/manifests/" + ref, header: map[string]string{"Accept": manifestTypes}, scope: pullScope(name)})
	if err != nil {
		return Manifest{}, err
	}
	defer drain(resp)
	d, err := content.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		d = ""
	}
	return Manifest{Digest: d, MediaType: resp.Header.Get("Content-Type")}, nil
}

// Manifest fetches a manifest by its tag or digest and compares it with the digest that was asked for, or that the registry says.
func (r *Registry) Manifest(ctx context.Context, name, ref string) (Manifest, error) {
	resp, err := r.do(ctx, request{method: http.MethodGet, path: name + "/manifests/" + ref, header: map[string]string{"Accept": manifestTypes}, scope: pullScope(name)})
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	payload, err := r.body(resp, content.MaxManifest)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Digest: content.SHA256.Of(payload), MediaType: resp.Header.Get("Content-Type"), Payload: payload}
	want, err := content.ParseDigest(ref)
	if err != nil {
		if want, err = content.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err != nil {
			return m, nil //nolint:nilerr // a tag, and the registry names no digest
		}
	}
	if got := want.Algorithm().Of(payload); got != want {
		return Manifest{}, errs.New(errs.DataLoss, "registry %s: manifest %s:%s has digest %s, not %s", r.base.Host, name, ref, got, want)
	}
	m.Digest = want
	return m, nil
}

// body reads the whole body of an answer.
func (r *Registry) body(resp *http.Response, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, errs.New(errs.Unavailable, "registry %s: %w", r.base.Host, err)
	}
	if int64(len(b)) > limit {
		return nil, errs.New(errs.Invalid, "registry %s: answer is longer than %d bytes", r.base.Host, limit)
	}
	return b, nil
}

// StatBlob returns the size of a blob in bytes, -1 when the registry does not say.
func (r *Registry) StatBlob(ctx context.Context, name string, d content.Digest) (int64, error) {
	resp, err := r.do(ctx, request{method: http.MethodHead, path: name + "/blobs/" + string(d), scope: pullScope(name)})
	if err != nil {
		return 0, err
	}
	drain(resp)
	return resp.ContentLength, nil
}

// Blob opens a blob from an offset and returns its whole size in bytes, -1 when the registry does not say. The bytes are not verified. The
// caller closes it.
func (r *Registry) Blob(ctx context.Context, name string, d content.Digest, from int64) (io.ReadCloser, int64, error) {
	q := request{method: http.MethodGet, path: name + "/blobs/" + string(d), scope: pullScope(name)}
	if from > 0 {
		q.header = map[string]string{"Range": "bytes=" + strconv.FormatInt(from, 10) + "-"}
	}
	resp, err := r.do(ctx, q)
	if err != nil {
		return nil, 0, err
	}
	if from == 0 {
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return nil, 0, errs.New(errs.Invalid, "registry %s: blob %s: status %d", r.base.Host, d, resp.StatusCode)
		}
		return resp.Body, resp.ContentLength, nil
	}
	if resp.StatusCode == http.StatusPartialContent {
		first, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if ok && first == from {
			return resp.Body, size, nil
		}
		resp.Body.Close()
		return nil, 0, errs.New(errs.Invalid, "registry %s: blob %s: the answer has another range than the request", r.base.Host, d)
	}
	// The registry does not know ranges.
	if _, err := io.CopyN(io.Discard, resp.Body, from); err != nil {
		resp.Body.Close()
		return nil, 0, errs.New(errs.Unavailable, "registry %s: blob %s: %w", r.base.Host, d, err)
	}
	return resp.Body, resp.ContentLength, nil
}

// contentRange reads "bytes FIRST-LAST/SIZE". The size is -1 when it is not said.
func contentRange(s string) (first, size int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(s, "/")
	a, b, ok3 := strings.Cut(span, "-")
	first, err := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	if !ok || !ok2 || !ok3 || errors.Join(err, err2) != nil || first < 0 || last < first {
		return 0, 0, false
	}
	if total == "*" {
		return first, -1, true
	}
	size, err = strconv.ParseInt(total, 10, 64)
	return first, size, err == nil && last == size-1
}

// Tags lists tags behind after, n at most when n is not 0. More reports whether there are others.
func (r *Registry) Tags(ctx context.Context, name string, after content.Tag, n int) (tags []content.Tag, more bool, err error) {
	query := url.Values{}
	if n > 0 {
		query.Set("n", strconv.Itoa(n))
	}
	if after != "" {
		query.Set("last", string(after))
	}
	resp, err := r.do(ctx, request{method: http.MethodGet, path: name + "/tags/list", query: query, scope: pullScope(name)})
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	b, err := r.body(resp, maxList)
	if err != nil {
		return nil, false, err
	}
	var doc struct{ Tags []string }
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, false, errs.New(errs.Invalid, "registry %s: list of tags: %w", r.base.Host, err)
	}
	for _, s := range doc.Tags {
		t, err := content.ParseTag(s)
		if err != nil {
			return nil, false, errs.New(errs.Invalid, "registry %s: list of tags: %w", r.base.Host, err)
		}
		tags = append(tags, t)
	}
	return tags, nextPage(resp) != nil && len(tags) > 0, nil
}

// nextPage returns the address of the next page, which is at the same origin.
func nextPage(resp *http.Response) *url.URL {
	for _, v := range resp.Header.Values("Link") {
		target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(v), "<"), ">")
		if !ok || !strings.Contains(params, `rel="next"`) && !strings.Contains(params, "rel=next") {
			continue
		}
		if u, err := resp.Request.URL.Parse(target); err == nil && u.Host == resp.Request.URL.Host && u.Scheme == resp.Request.URL.Scheme {
			return u
		}
	}
	return nil
}

// Referrers lists the manifests that have a subject, at registries without such lists those of the fallback tag.
func (r *Registry) Referrers(ctx context.Context, name string, subject content.Digest) (list []content.Descriptor, err error) {
	left := int64(maxList)
	q := request{method: http.MethodGet, path: name + "/referrers/" + string(subject), scope: pullScope(name), header: map[string]string{"Accept": oci.MediaTypeOCIIndex}}
	for range maxReferrers {
		resp, err := r.do(ctx, q)
		if errors.Is(err, errs.NotFound) && q.url == nil {
			return r.fallback(ctx, name, subject)
		}
		if err != nil {
			return nil, err
		}
		b, err := r.body(resp, left)
		resp.Body.Close()
		left -= int64(len(b))
		if err != nil {
			return nil, err
		}
		page, err := descriptors(b)
		if err != nil {
			return nil, errs.New(errs.Invalid, "registry %s: referrers: %w", r.base.Host, err)
		}
		list = append(list, page...)
		if q.url = nextPage(resp); q.url == nil {
			return list, nil
		}
	}
	return nil, errs.New(errs.Exhausted, "registry %s: %s has more than %d pages of referrers", r.base.Host, subject, maxReferrers)
}

func descriptors(index []byte) ([]content.Descriptor, error) {
	m, err := content.ParseManifest(index, oci.MediaTypeOCIIndex)
	if err != nil {
		return nil, err
	}
	return m.Manifests, nil
}

func (r *Registry) fallback(ctx context.Context, name string, subject content.Digest) ([]content.Descriptor, error) {
	m, err := r.Manifest(ctx, name, string(content.FallbackTag(subject)))
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return descriptors(m.Payload)
}
