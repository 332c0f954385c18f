package remote

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/fence"
	"ply/internal/oci"
)

// Manifest is a manifest or index as a registry sent it. Data has the digest Digest.
type Manifest struct {
	oci.Descriptor // of Data; Content-Type and fields of Data agree with MediaType
	Data           []byte
	Source         string // base URL of the endpoint that sent it
}

var manifestTypes = []string{
	oci.MediaTypeOCIManifest, oci.MediaTypeOCIIndex, oci.MediaTypeDockerManifest, oci.MediaTypeDockerManifestList,
}

func acceptManifests() http.Header {
	return http.Header{"Accept": {strings.Join(manifestTypes, ", ")}}
}

func (s *Session) repoPath(suffix string) string { return "/v2/" + s.name.Path() + suffix }

// Resolve returns the digest of a tag without fetching the manifest, or "" when the registry does not say.
func (s *Session) Resolve(ctx context.Context, tag string) (d oci.Digest, err error) {
	err = s.try(ctx, "resolve "+tag, func(e *endpoint) error {
		resp, _, err := s.send(ctx, e, &request{
			method: http.MethodHead, path: s.repoPath("/manifests/" + tag), header: acceptManifests(), scopes: []string{s.scope},
		})
		if err != nil {
			return err
		}
		resp.Body.Close()
		if d, err = oci.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err != nil {
			d = ""
		}
		return nil
	})
	return d, err
}

// Manifest fetches a manifest or index by tag or digest. It is at most oci.MaxManifest bytes, of a known media type, and has the
// digest that was requested or that the registry stated. Errors: *Error; errs.Invalid for any other content.
func (s *Session) Manifest(ctx context.Context, ref string) (m *Manifest, err error) {
	err = s.try(ctx, "manifest "+ref, func(e *endpoint) error {
		m, err = s.manifestFrom(ctx, e, ref)
		return err
	})
	return m, err
}

func (s *Session) manifestFrom(ctx context.Context, e *endpoint, ref string) (*Manifest, error) {
	resp, ep, err := s.send(ctx, e, &request{
		method: http.MethodGet, path: s.repoPath("/manifests/" + ref), header: acceptManifests(), scopes: []string{s.scope},
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(idleReader(resp.Body, func() { resp.Body.Close() }), oci.MaxManifest+1))
	if err != nil {
		return nil, errs.New(errs.Unavailable, "manifest %s: %w", ref, err)
	}
	if len(data) > oci.MaxManifest {
		return nil, errs.New(errs.Invalid, "manifest %s: is longer than %d bytes", ref, oci.MaxManifest)
	}
	got := oci.DigestOf(data)
	want := resp.Header.Get("Docker-Content-Digest")
	if strings.Contains(ref, ":") {
		want = ref
	}
	if want != "" && want != string(got) {
		return nil, errs.New(errs.Invalid, "manifest %s: content from %s has digest %s, want %s", ref, ep.host, got, clip(clean(want))).
			WithHint("What was sent is not what was asked for; try again or tell the registry's operator.")
	}
	mediaType, err := oci.SniffManifest(data, resp.Header.Get("Content-Type"))
	if err != nil {
		return nil, err
	}
	return &Manifest{
		Descriptor: oci.Descriptor{MediaType: mediaType, Digest: got, Size: int64(len(data))},
		Data:       data, Source: ep.key(),
	}, nil
}

const (
	maxTagsPage = 8 << 20
	maxTags     = 100_000
)

// Tags returns the tags of the repository, sorted. errs.Invalid when there are more than maxTags.
func (s *Session) Tags(ctx context.Context) (tags []string, err error) {
	err = s.try(ctx, "tags", func(e *endpoint) error {
		tags, err = s.tagsFrom(ctx, e)
		return err
	})
	return tags, err
}

func (s *Session) tagsFrom(ctx context.Context, e *endpoint) ([]string, error) {
	var all []string
	r := &request{method: http.MethodGet, path: s.repoPath("/tags/list"), scopes: []string{s.scope}}
	for {
		resp, ep, err := s.send(ctx, e, r)
		if err != nil {
			return nil, err
		}
		var page struct {
			Tags []string `json:"tags"`
		}
		err = decodeAnswer(resp, maxTagsPage, &page)
		if err != nil {
			return nil, errs.New(errs.Invalid, "tags of %s: %w", s.name.Familiar(), err)
		}
		for _, t := range page.Tags {
			if _, err := s.name.WithTag(t); err != nil {
				return nil, errs.New(errs.Invalid, "tags of %s: %w", s.name.Familiar(), err)
			}
		}
		all = append(all, page.Tags...)
		next := nextLink(resp.Header)
		if next == "" || len(page.Tags) == 0 {
			slices.Sort(all)
			return slices.Compact(all), nil
		}
		u, err := resp.Request.URL.Parse(next)
		if err != nil || fence.Origin(u) != fence.Origin(ep.base) {
			return nil, errs.New(errs.Invalid, "tags of %s: next page is at another host", s.name.Familiar())
		}
		if len(all) > maxTags {
			return nil, errs.New(errs.Invalid, "tags of %s: more than %d", s.name.Familiar(), maxTags)
		}
		r = &request{method: http.MethodGet, url: u, scopes: r.scopes}
	}
}

// nextLink returns the URL of a Link header (RFC 8288) with rel="next", or "".
func nextLink(h http.Header) string {
	for _, v := range h.Values("Link") {
		target, params, ok := strings.Cut(v, ">")
		if ok && strings.HasPrefix(target, "<") && strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
			return target[1:]
		}
	}
	return ""
}

// PutManifest uploads a manifest, byte for byte, under a tag or digest.
func (s *Session) PutManifest(ctx context.Context, ref, mediaType string, data []byte) error {
	h := http.Header{"Content-Type": {mediaType}}
	resp, _, err := s.send(ctx, s.host, &request{
		method: http.MethodPut, path: s.repoPath("/manifests/" + ref), header: h,
		body: bytesBody(data), length: int64(len(data)), scopes: []string{s.scope},
	})
	if err != nil {
		return err
	}
	drain(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != string(oci.DigestOf(data)) {
		return errs.New(errs.Invalid, "manifest %s: the registry stored %s, sent was %s", ref, clip(clean(got)), oci.DigestOf(data))
	}
	return nil
}

// HasBlob returns the size of a blob, as the registry states it. errs.NotFound when the repository does not have it.
func (s *Session) HasBlob(ctx context.Context, d oci.Digest) (size int64, err error) {
	resp, _, err := s.send(ctx, s.host, &request{
		method: http.MethodHead, path: s.repoPath("/blobs/" + string(d)), scopes: []string{s.scope},
	})
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.ContentLength, nil
}

// Body is the content of a blob from Offset on. A Read that gets nothing for idleTimeout fails. The caller closes it.
type Body struct {
	io.ReadCloser
	Offset int64  // the first byte: the one that was requested, or 0 if the registry ignores ranges
	Ranged bool   // the registry answered with a range (status 206)
	Total  int64  // size of the whole blob as the registry states it; -1 = unknown
	Source string // base URL of the endpoint
}

// Blob opens the bytes of a blob from an offset up to end, which is exclusive; -1 means all that follow. Errors: *Error;
// errs.Unavailable for an error of the connection; errs.Invalid for a range other than the requested one.
func (s *Session) Blob(ctx context.Context, d oci.Digest, from, end int64) (b *Body, err error) {
	err = s.try(ctx, "blob "+d.Short(), func(e *endpoint) error {
		b, err = s.blobFrom(ctx, e, d, from, end)
		return err
	})
	return b, err
}

func (s *Session) blobFrom(ctx context.Context, e *endpoint, d oci.Digest, from, end int64) (*Body, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	h := http.Header{}
	if from > 0 || end >= 0 {
		v := "bytes=" + strconv.FormatInt(from, 10) + "-"
		if end >= 0 {
			v += strconv.FormatInt(end-1, 10)
		}
		h.Set("Range", v)
	}
	resp, ep, err := s.send(ctx, e, &request{
		method: http.MethodGet, path: s.repoPath("/blobs/" + string(d)), header: h, scopes: []string{s.scope},
	})
	if err != nil {
		cancel(nil)
		return nil, err
	}
	b := &Body{Total: resp.ContentLength, Source: ep.key()}
	if resp.StatusCode == http.StatusPartialContent {
		b.Ranged = true
		b.Offset, b.Total, err = contentRange(resp.Header.Get("Content-Range"))
		if err == nil && b.Offset != from {
			err = errs.New(errs.Invalid, "answer starts at byte %d, asked was %d", b.Offset, from)
		}
		if err != nil {
			cancel(nil)
			resp.Body.Close()
			return nil, errs.New(errs.Invalid, "blob %s: %s: %w", d.Short(), ep.host, err)
		}
	}
	stall := errs.New(errs.Unavailable, "blob %s: %s sent nothing for %v", d.Short(), ep.host, idleTimeout)
	b.ReadCloser = &cancelBody{ReadCloser: resp.Body, r: idleReader(resp.Body, func() { cancel(stall) }), ctx: ctx, cancel: cancel}
	return b, nil
}

// contentRange parses "bytes a-b/total"; total is -1 for "*".
func contentRange(v string) (from, total int64, err error) {
	bad := func() (int64, int64, error) {
		return 0, 0, errs.New(errs.Invalid, "content range %q is not well formed", clip(clean(v)))
	}
	rest, ok := strings.CutPrefix(v, "bytes ")
	span, size, ok2 := strings.Cut(rest, "/")
	a, b, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return bad()
	}
	from, err = strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	total = -1
	var err3 error
	if size != "*" {
		total, err3 = strconv.ParseInt(size, 10, 64)
	}
	if errors.Join(err, err2, err3) != nil || from < 0 || last < from || (total >= 0 && last >= total) {
		return bad()
	}
	return from, total, nil
}

// Bytes fetches a whole blob of at most limit bytes and verifies it. When a mirror sends wrong bytes, it asks the next endpoint.
func (s *Session) Bytes(ctx context.Context, d oci.Descriptor, limit int64) (data []byte, err error) {
	if d.Size > limit {
		return nil, errs.New(errs.Invalid, "blob %s: %d bytes are more than the limit, %d", d.Digest, d.Size, limit)
	}
	err = s.try(ctx, "blob "+d.Digest.Short(), func(e *endpoint) error {
		b, err := s.blobFrom(ctx, e, d.Digest, 0, -1)
		if err != nil {
			return err
		}
		defer b.Close()
		if data, err = io.ReadAll(io.LimitReader(b, d.Size+1)); err != nil {
			return errs.New(errs.Unavailable, "blob %s: %w", d.Digest.Short(), err)
		}
		if int64(len(data)) < d.Size {
			return errs.New(errs.Unavailable, "blob %s: %s ended the answer after %d of %d bytes", d.Digest.Short(), b.Source, len(data), d.Size)
		}
		if got := oci.DigestOf(data); got != d.Digest || int64(len(data)) != d.Size {
			return errs.New(errs.Invalid, "blob %s: content from %s has digest %s", d.Digest, b.Source, got)
		}
		return nil
	})
	return data, err
}
