package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/registry/content"
)

const (
	maxPage      = 10_000  // entries of a page; a client that does not say how many it wants gets as many
	catalogChunk = 1000    // repositories read at once
	maxReferrers = 4 << 20 // bytes of a page of referrers
	referrersRun = 500     // referrers read at once
)

// page returns how many entries a request wants, and behind which.
func (q *request) page() (n int, last string, err error) {
	params := q.r.URL.Query()
	n = maxPage
	if s := params.Get("n"); s != "" {
		v, err := strconv.Atoi(s)
		if err != nil || v < 0 {
			return 0, "", errPage
		}
		n = min(v, maxPage)
	}
	return n, params.Get("last"), nil
}

// writeList writes a JSON document that ends with a newline, and a link to the next page when there is one.
func (h *Handler) writeList(q *request, v any, contentType, next string) error {
	body, err := json.Marshal(v)
	if err != nil {
		return errs.New(errs.Internal, "encode: %w", err)
	}
	body = append(body, '\n')
	head := q.w.Header()
	if next != "" {
		head.Set("Link", "<"+next+`>; rel="next"`)
	}
	head.Set("Content-Type", contentType)
	head.Set("Content-Length", strconv.Itoa(len(body)))
	if q.r.Method != http.MethodHead {
		h.writing(q, int64(len(body)))
		_, _ = q.w.Write(body)
	}
	return nil
}

func next(path string, params url.Values) string { return path + "?" + params.Encode() }

// catalog lists the repositories that the caller may pull.
func (h *Handler) catalog(q *request) error {
	n, last, err := q.page()
	if err != nil {
		return err
	}
	list := []content.Repository{}
	more := false
	for after := content.Repository(last); n > 0 && !more; {
		chunk, err := h.Repositories.Metadata.Repositories(q.r.Context(), after, catalogChunk)
		if err != nil {
			return err
		}
		for _, r := range chunk {
			if !q.caller.Sees(r) {
				continue
			}
			if len(list) == n {
				more = true
				break
			}
			list = append(list, r)
		}
		if len(chunk) < catalogChunk {
			break
		}
		after = chunk[len(chunk)-1]
	}
	link := ""
	if more {
		link = next("/v2/_catalog", url.Values{"n": {strconv.Itoa(n)}, "last": {string(list[n-1])}})
	}
	return h.writeList(q, map[string]any{"repositories": list}, "application/json; charset=utf-8", link)
}

func (h *Handler) tags(q *request) error {
	n, last, err := q.page()
	if err != nil {
		return err
	}
	tags, more, err := h.listTags(q, content.Tag(last), n)
	if err != nil {
		return missing(err, errRepository, map[string]any{"name": q.repo})
	}
	link := ""
	if more && n > 0 && len(tags) > 0 {
		link = next("/v2/"+string(q.repo)+"/tags/list", url.Values{"n": {strconv.Itoa(n)}, "last": {string(tags[len(tags)-1])}})
	}
	if tags == nil {
		tags = []content.Tag{}
	}
	return h.writeList(q, struct {
		Name content.Repository `json:"name"`
		Tags []content.Tag      `json:"tags"`
	}{q.repo, tags}, "application/json; charset=utf-8", link)
}

func (h *Handler) listTags(q *request, after content.Tag, n int) (tags []content.Tag, more bool, err error) {
	if h.copies(q.repo) && n > 0 {
		return h.Copies.Tags(q.r.Context(), q.repo, after, n)
	}
	limit := n
	if n > 0 {
		limit++ // to see whether there are more
	}
	tags, err = h.Repositories.Metadata.Tags(q.r.Context(), q.repo, after, limit)
	if len(tags) > n {
		return tags[:n], true, err
	}
	return tags, false, err
}

// referrers lists the manifests that have a subject, in pages that are manifests of a usual size.
func (h *Handler) referrers(q *request) error {
	subject, err := q.digest()
	if err != nil {
		return err
	}
	if h.copies(q.repo) {
		return h.copiedReferrers(q, subject)
	}
	params := q.r.URL.Query()
	filter, filtered := params.Get("artifactType"), params.Has("artifactType")
	after := content.Digest(params.Get("last"))
	if after != "" {
		if _, err := content.ParseDigest(string(after)); err != nil {
			return errPage
		}
	}
	manifests := []content.Descriptor{}
	size, link := 0, ""
	for link == "" {
		run, err := h.Repositories.Metadata.Referrers(q.r.Context(), q.repo, subject, after, referrersRun)
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		for _, m := range run {
			if filtered && m.ArtifactType != filter {
				after = m.Digest
				continue
			}
			d := content.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
			cost := 300
			for k, v := range m.Annotations {
				cost += 6 * (len(k) + len(v)) // as JSON may escape each byte
			}
			if size+cost > maxReferrers && len(manifests) > 0 {
				more := url.Values{"last": {string(after)}}
				if filtered {
					more.Set("artifactType", filter)
				}
				link = next("/v2/"+string(q.repo)+"/referrers/"+string(subject), more)
				break
			}
			size += cost
			manifests = append(manifests, d)
			after = m.Digest
		}
		if len(run) < referrersRun {
			break
		}
	}
	return h.writeReferrers(q, manifests, filtered, link)
}

// copiedReferrers lists the referrers of a copy, all on one page: the list is bounded when it is fetched.
func (h *Handler) copiedReferrers(q *request, subject content.Digest) error {
	params := q.r.URL.Query()
	filter, filtered := params.Get("artifactType"), params.Has("artifactType")
	list, err := h.Copies.Referrers(q.r.Context(), q.repo, subject)
	if err != nil {
		return err
	}
	manifests := []content.Descriptor{}
	for _, m := range list {
		if !filtered || m.ArtifactType == filter {
			manifests = append(manifests, m)
		}
	}
	return h.writeReferrers(q, manifests, filtered, "")
}

func (h *Handler) writeReferrers(q *request, manifests []content.Descriptor, filtered bool, link string) error {
	if filtered {
		q.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return h.writeList(q, struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		Manifests     []content.Descriptor `json:"manifests"`
	}{2, oci.MediaTypeOCIIndex, manifests}, oci.MediaTypeOCIIndex, link)
}
