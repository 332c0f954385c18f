package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/repository"
)

const maxTags = 100 // of one request

// reference reads the tag or digest of a manifest's path.
func (q *request) reference() (content.Digest, content.Tag, error) {
	if strings.Contains(q.ref, ":") {
		d, err := content.ParseDigest(q.ref)
		if err != nil {
			return "", "", invalid("DIGEST_INVALID", err)
		}
		return d, "", nil
	}
	tag, err := content.ParseTag(q.ref)
	if err != nil {
		return "", "", invalid("TAG_INVALID", err)
	}
	return "", tag, nil
}

func (h *Handler) getManifest(q *request) error {
	d, tag, err := q.reference()
	if err != nil { // there is no such manifest
		e := *errManifest
		e.Detail, e.Cause = map[string]any{"name": q.repo, "reference": q.ref}, err
		return &e
	}
	m, payload, err := h.content(q.repo).Manifest(q.r.Context(), q.repo, d, tag)
	if err != nil {
		return h.unknownManifest(q, err)
	}
	head := q.w.Header()
	etag := `"` + string(m.Digest) + `"`
	head.Set("ETag", etag)
	head.Set("Docker-Content-Digest", string(m.Digest))
	if matches(q.r.Header.Values("If-None-Match"), m.Digest) {
		q.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if list := q.r.Header.Values("If-Match"); len(list) > 0 && !matches(list, m.Digest) {
		return errConditional
	}
	head.Set("Content-Type", m.MediaType)
	head.Set("Content-Length", strconv.Itoa(len(payload)))
	if q.r.Method != http.MethodHead {
		h.notify(q, Event{Action: "pull", Digest: m.Digest, Tag: tag, MediaType: m.MediaType, Size: m.Size})
		h.writing(q, int64(len(payload)))
		_, _ = q.w.Write(payload) // the client is gone
	}
	return nil
}

func (h *Handler) unknownManifest(q *request, err error) error {
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	if _, terr := h.Repositories.Metadata.Tags(q.r.Context(), q.repo, "", 0); errors.Is(terr, errs.NotFound) {
		return missing(err, errRepository, map[string]any{"name": q.repo})
	}
	return missing(err, errManifest, map[string]any{"name": q.repo, "reference": q.ref})
}

// etags reads the values of If-Match or If-None-Match. Star reports whether any content will do.
func etags(values []string) (list []content.Digest, star bool) {
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			item = strings.TrimPrefix(strings.TrimSpace(item), "W/")
			if item == "*" {
				star = true
			}
			if d, err := content.ParseDigest(strings.Trim(item, `"`)); err == nil {
				list = append(list, d)
			}
		}
	}
	return list, star
}

func matches(values []string, d content.Digest) bool {
	list, star := etags(values)
	for _, e := range list {
		if e == d {
			return true
		}
	}
	return star
}

// condition reads what a request expects of the tag that it changes.
func (q *request) condition() (c metadata.Condition, err error) {
	if values := q.r.Header.Values("If-Match"); len(values) > 0 {
		list, star := etags(values)
		if c.Any = star; !star {
			c.OneOf = append([]content.Digest{}, list...)
		}
	}
	if values := q.r.Header.Values("If-None-Match"); len(values) > 0 {
		list, star := etags(values)
		if !star || len(list) > 0 {
			return c, fail(http.StatusBadRequest, "UNSUPPORTED", "of the conditions If-None-Match, a change supports only *")
		}
		c.Absent = true
	}
	return c, nil
}

func (h *Handler) putManifest(q *request) error {
	d, tag, err := q.reference()
	if err != nil {
		return err
	}
	p := repository.Push{Repository: q.repo, Digest: d, ContentType: q.r.Header.Get("Content-Type")}
	if p.Condition, err = q.condition(); err != nil {
		return err
	}
	params := q.r.URL.Query()["tag"]
	if len(params) > maxTags {
		return errTags
	}
	if tag != "" {
		p.Tags = append(p.Tags, tag)
	}
	for _, s := range params {
		more, err := content.ParseTag(s)
		if err != nil {
			return invalid("TAG_INVALID", err)
		}
		p.Tags = append(p.Tags, more)
	}
	if p.Payload, err = h.body(q, content.MaxManifest); err != nil {
		return err
	}
	d, m, err := h.Repositories.PutManifest(q.r.Context(), p)
	switch {
	case errors.Is(err, errs.Precondition):
		return errConditional
	case errors.Is(err, errs.Conflict):
		return immutableTag(err)
	case err != nil:
		if _, ok := errors.AsType[*repository.DigestError](err); !ok && errors.Is(err, errs.Invalid) {
			return invalid("MANIFEST_INVALID", err)
		}
		return err
	}
	pushed := Event{Action: "push", Digest: d, MediaType: m.MediaType, Size: int64(len(p.Payload))}
	for _, t := range p.Tags {
		pushed.Tag = t
		h.notify(q, pushed)
	}
	if len(p.Tags) == 0 {
		h.notify(q, pushed)
	}
	head := q.w.Header()
	head.Set("Location", "/v2/"+string(q.repo)+"/manifests/"+string(d))
	head.Set("Docker-Content-Digest", string(d))
	head.Set("ETag", `"`+string(d)+`"`)
	if m.Subject != nil {
		head.Set("OCI-Subject", string(m.Subject.Digest))
	}
	if len(params) > 0 {
		for _, t := range p.Tags {
			head.Add("OCI-Tag", string(t))
		}
	}
	head.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// body reads the whole body of a request, which may have limit bytes.
func (h *Handler) body(q *request, limit int64) ([]byte, error) {
	tooLarge := fail(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "the limit is "+strconv.FormatInt(limit, 10)+" bytes")
	if q.r.ContentLength > limit {
		return nil, tooLarge
	}
	data, err := io.ReadAll(io.LimitReader(h.reading(q), limit+1))
	if err != nil {
		return nil, &Error{Status: http.StatusBadRequest, Code: "SIZE_INVALID", Message: "the request ended before its body", Cause: err}
	}
	if int64(len(data)) > limit {
		return nil, tooLarge
	}
	return data, nil
}

func (h *Handler) deleteManifest(q *request) error {
	d, tag, err := q.reference()
	if err != nil {
		return err
	}
	c, err := q.condition()
	if err != nil {
		return err
	}
	if err := h.deleteReference(q.r.Context(), q.repo, d, tag, c); err != nil {
		if errors.Is(err, errs.Precondition) {
			return errConditional
		}
		if errors.Is(err, errs.Conflict) {
			return immutableTag(err)
		}
		return h.unknownManifest(q, err)
	}
	h.notify(q, Event{Action: "delete", Digest: d, Tag: tag})
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (h *Handler) deleteReference(ctx context.Context, repo content.Repository, d content.Digest, tag content.Tag, c metadata.Condition) error {
	if tag != "" {
		return h.Repositories.DeleteTag(ctx, repo, tag, c)
	}
	if c.OneOf != nil && !matchesOne(c.OneOf, d) {
		return errConditional
	}
	return h.Repositories.DeleteManifest(ctx, repo, d)
}

func matchesOne(list []content.Digest, d content.Digest) bool {
	for _, e := range list {
		if e == d {
			return true
		}
	}
	return false
}
