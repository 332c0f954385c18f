package api

import (
	"errors"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
)

func (q *request) digest() (content.Digest, error) {
	d, err := content.ParseDigest(q.ref)
	if err != nil {
		return "", invalid("DIGEST_INVALID", err)
	}
	return d, nil
}

// slowest is the speed at which a client must take a body, in bytes per second, on average.
const slowest = 16 << 10

// writing limits how long a client may take for a body of n bytes. One deadline is set for all of it, because the kernel sends a
// file without returning here.
func (h *Handler) writing(q *request, n int64) {
	_ = http.NewResponseController(q.w).SetWriteDeadline(time.Now().Add(2*h.Stall + time.Duration(n/slowest)*time.Second))
}

// reading returns the body of a request. A client that sends nothing for too long is cut off.
func (h *Handler) reading(q *request) io.Reader {
	return &stalling{r: q.r.Body, c: http.NewResponseController(q.w), limit: h.Stall}
}

type stalling struct {
	r     io.Reader
	c     *http.ResponseController
	limit time.Duration
	set   time.Time
}

func (s *stalling) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(s.set) > time.Second {
		s.set = now
		_ = s.c.SetReadDeadline(now.Add(s.limit)) // not every server supports it
	}
	return s.r.Read(p)
}

func (h *Handler) getBlob(q *request) error {
	d, err := q.digest()
	if err != nil {
		return err
	}
	if done, err := h.redirect(q, d); done || err != nil {
		return err
	}
	r, size, err := h.content(q.repo).OpenBlob(q.r.Context(), q.repo, d)
	if err != nil {
		return missing(err, errBlobUnknown, map[string]any{"digest": d})
	}
	defer r.Close()
	blobHeader(q.w.Header(), d)
	h.writing(q, size)
	// ServeContent hands a file to the kernel, and knows ranges and conditions.
	http.ServeContent(q.w, q.r, "", time.Time{}, r)
	return nil
}

// redirect tells the client to read a blob from where the store has it. It does nothing about what the registry does not have yet.
func (h *Handler) redirect(q *request, d content.Digest) (bool, error) {
	if !h.Redirect || q.r.Method != http.MethodGet || h.copies(q.repo) { // the use of a copy is counted
		return false, nil
	}
	at, err := h.Repositories.Redirect(q.r.Context(), q.repo, d)
	if at == "" || err != nil {
		if errors.Is(err, errs.NotFound) {
			err = nil
		}
		return false, err
	}
	blobHeader(q.w.Header(), d)
	q.w.Header().Set("Location", at)
	q.w.Header().Set("Cache-Control", "no-store")
	q.w.WriteHeader(http.StatusTemporaryRedirect)
	return true, nil
}

func blobHeader(head http.Header, d content.Digest) {
	head.Set("Content-Type", "application/octet-stream")
	head.Set("Docker-Content-Digest", string(d))
	head.Set("ETag", `"`+string(d)+`"`)
}

func (h *Handler) headBlob(q *request) error {
	d, err := q.digest()
	if err != nil {
		return err
	}
	size, err := h.content(q.repo).StatBlob(q.r.Context(), q.repo, d)
	if err != nil {
		return missing(err, errBlobUnknown, map[string]any{"digest": d})
	}
	blobHeader(q.w.Header(), d)
	if matches(q.r.Header.Values("If-None-Match"), d) {
		q.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	q.w.Header().Set("Accept-Ranges", "bytes")
	q.w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	return nil
}

func (h *Handler) deleteBlob(q *request) error {
	d, err := q.digest()
	if err != nil {
		return err
	}
	if err := h.Repositories.Metadata.DeleteLink(q.r.Context(), q.repo, d); err != nil {
		return missing(err, errBlobUnknown, map[string]any{"digest": d})
	}
	h.notify(q, Event{Action: "delete", Digest: d, MediaType: blobType})
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// beginUpload serves the POST that starts an upload, mounts a blob, or sends a whole one.
func (h *Handler) beginUpload(q *request) error {
	params := q.r.URL.Query()
	if params.Has("mount") {
		done, err := h.mount(q, params.Get("mount"), params.Get("from"))
		if done || err != nil {
			return err
		}
	}
	algorithm, err := content.ParseAlgorithm(params.Get("digest-algorithm"))
	if err != nil {
		return invalid("DIGEST_INVALID", err)
	}
	var d content.Digest
	if params.Has("digest") {
		if d, err = content.ParseDigest(params.Get("digest")); err != nil {
			return invalid("DIGEST_INVALID", err)
		}
		algorithm = d.Algorithm()
	}
	u, err := h.Repositories.Begin(q.r.Context(), q.repo, q.caller.Name(), algorithm)
	if err != nil {
		if errors.Is(err, errs.Exhausted) {
			return &Error{Status: http.StatusTooManyRequests, Code: "TOOMANYREQUESTS", Message: err.Error(), Cause: err}
		}
		return err
	}
	if d == "" {
		return q.accepted(u)
	}
	defer h.closeUpload(u)
	err = h.Repositories.Room(q.r.Context(), q.repo, max(q.r.ContentLength, 0))
	if err == nil {
		err = u.Append(q.r.Context(), h.reading(q), q.r.ContentLength)
	}
	if err != nil {
		return errors.Join(err, u.Cancel(q.r.Context()))
	}
	return h.finish(q, u, d)
}

// closeUpload closes an upload of which the client is told nothing more.
func (h *Handler) closeUpload(u blobs.Upload) {
	if err := u.Close(); err != nil {
		h.Log.Error("upload cannot be resumed", "upload", u.Session().ID, "err", err)
	}
}

// accepted closes an upload, and tells the client how far it has come when that is kept.
func (q *request) accepted(u blobs.Upload) error {
	id, offset := u.Session().ID, u.Offset() // of someone else from the close on
	if err := u.Close(); err != nil {
		return err
	}
	q.uploadAt(id, offset)
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount links a blob of another repository. When that is not possible the client uploads the blob, and learns nothing about where it is.
func (h *Handler) mount(q *request, digest, source string) (bool, error) {
	d, err := content.ParseDigest(digest)
	if err != nil {
		return false, invalid("DIGEST_INVALID", err)
	}
	var from content.Repository
	if source != "" {
		if from, err = content.ParseRepository(source); err != nil {
			return false, invalid("NAME_INVALID", err)
		}
	}
	err = h.Repositories.Mount(q.r.Context(), from, q.repo, d, func(r content.Repository) bool { return q.caller.May(r, access.Pull) })
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	if err == nil {
		h.notify(q, Event{Action: "mount", Digest: d, MediaType: blobType, From: from})
		h.blobAt(q, d)
	}
	return true, err
}

func (h *Handler) blobAt(q *request, d content.Digest) {
	head := q.w.Header()
	head.Set("Location", "/v2/"+string(q.repo)+"/blobs/"+string(d))
	head.Set("Docker-Content-Digest", string(d))
	head.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
}

// uploadAt tells the client where the upload is and how far it has come.
func (q *request) uploadAt(id string, offset int64) {
	head := q.w.Header()
	head.Set("Location", "/v2/"+string(q.repo)+"/blobs/uploads/"+id)
	head.Set("Docker-Upload-UUID", id)
	head.Set("Range", "0-"+strconv.FormatInt(max(offset-1, 0), 10))
	head.Set("Content-Length", "0")
}

func (h *Handler) resume(q *request) (blobs.Upload, error) {
	if !blobs.IsID(q.ref) {
		return nil, errUpload
	}
	u, err := h.Repositories.Resume(q.r.Context(), q.repo, q.caller.Name(), q.ref)
	return u, missing(err, errUpload, nil)
}

func (h *Handler) getUpload(q *request) error {
	u, err := h.resume(q)
	if err != nil {
		return err
	}
	defer h.closeUpload(u)
	q.uploadAt(u.Session().ID, u.Offset())
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Handler) cancelUpload(q *request) error {
	u, err := h.resume(q)
	if err != nil {
		return err
	}
	defer h.closeUpload(u)
	if err := u.Cancel(q.r.Context()); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Handler) patchUpload(q *request) error {
	u, err := h.resume(q)
	if err != nil {
		return err
	}
	received := false
	defer func() {
		if !received {
			h.closeUpload(u)
		}
	}()
	if err := h.receive(q, u); err != nil {
		return err
	}
	received = true
	return q.accepted(u)
}

func (h *Handler) putUpload(q *request) error {
	d, err := content.ParseDigest(q.r.URL.Query().Get("digest"))
	if err != nil {
		return invalid("DIGEST_INVALID", err)
	}
	u, err := h.resume(q)
	if err != nil {
		return err
	}
	defer h.closeUpload(u)
	if err := h.receive(q, u); err != nil {
		return err
	}
	return h.finish(q, u, d)
}

func (h *Handler) finish(q *request, u blobs.Upload, d content.Digest) error {
	if err := h.Repositories.Finish(q.r.Context(), u, d); err != nil {
		if errors.Is(err, errs.Invalid) {
			return invalid("DIGEST_INVALID", err)
		}
		return err
	}
	h.notify(q, Event{Action: "push", Digest: d, MediaType: blobType, Size: u.Offset()})
	h.blobAt(q, d)
	return nil
}

// A range of bytes, as the specification has it, or with the words around it that HTTP wants.
var contentRange = regexp.MustCompile(`^(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/(?:\*|[0-9]{1,18}))?$`)

// receive appends the body of a request to an upload. A chunk that says where it belongs must belong at the end.
func (h *Handler) receive(q *request, u blobs.Upload) error {
	size := q.r.ContentLength
	if err := h.Repositories.Room(q.r.Context(), q.repo, u.Offset()+max(size, 0)); err != nil {
		return err
	}
	body := h.reading(q)
	if s := strings.TrimSpace(q.r.Header.Get("Content-Range")); s != "" && size != 0 {
		m := contentRange.FindStringSubmatch(s)
		if m == nil {
			return fail(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "Content-Range must be FIRST-LAST")
		}
		first, _ := strconv.ParseInt(m[1], 10, 64)
		last, _ := strconv.ParseInt(m[2], 10, 64)
		if first != u.Offset() {
			q.uploadAt(u.Session().ID, u.Offset())
			return fail(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID",
				"the chunk begins at "+m[1]+", the upload has "+strconv.FormatInt(u.Offset(), 10)+" bytes")
		}
		length := last - first + 1
		if length < 1 || size >= 0 && size != length {
			return fail(http.StatusBadRequest, "SIZE_INVALID", "Content-Range and the length of the body differ")
		}
		if size < 0 { // a body of unknown length ends where its range says
			limited := &exactly{r: body, left: length}
			if err := u.Append(q.r.Context(), limited, length); err != nil {
				return err
			}
			return nil
		}
	}
	if size == 0 {
		return nil
	}
	return u.Append(q.r.Context(), body, size)
}

// exactly is a reader that fails unless its source has the given number of bytes.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		var one [1]byte
		if n, _ := io.ReadFull(e.r, one[:]); n > 0 {
			return 0, errors.New("the body is longer than its range")
		}
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
