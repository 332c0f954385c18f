package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"

	"ply/internal/errs"
	"ply/internal/registry/blobs"
	"ply/internal/registry/metadata"
	"ply/internal/registry/repository"
)

// Error is an error in the form of the specification.
type Error struct {
	Status  int    // of HTTP
	Code    string // of the specification
	Message string
	Detail  any
	Cause   error // for the log; may be nil
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

func fail(status int, code, message string) *Error {
	return &Error{Status: status, Code: code, Message: message}
}

var (
	errNotFound     = fail(http.StatusNotFound, "NOT_FOUND", "there is nothing at this path")
	errName         = fail(http.StatusBadRequest, "NAME_INVALID", "invalid repository name")
	errBlobUnknown  = fail(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
	errUpload       = fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
	errManifest     = fail(http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
	errRepository   = fail(http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
	errPage         = fail(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "invalid number of results requested")
	errDenied       = fail(http.StatusForbidden, "DENIED", "requested access to the resource is denied")
	errConditional  = fail(http.StatusPreconditionFailed, "DENIED", "the tag is not what the request expects")
	errUnauthorized = fail(http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	errTags         = fail(http.StatusRequestURITooLong, "TAG_INVALID", "too many tags in one request")
)

// invalid returns an error about something that the client sent.
func invalid(code string, err error) *Error {
	return &Error{Status: http.StatusBadRequest, Code: code, Message: err.Error(), Cause: err}
}

// immutableTag returns the error about a tag that may neither move nor go.
func immutableTag(err error) *Error {
	return &Error{Status: http.StatusConflict, Code: "DENIED", Message: err.Error(), Cause: err}
}

// missing replaces an error of class errs.NotFound by one of the specification.
func missing(err error, as *Error, detail any) error {
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	e := *as
	e.Detail, e.Cause = detail, err
	return &e
}

// translate gives an error the form of the specification.
func translate(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*metadata.MissingError](err); ok {
		detail := map[string]any{}
		if len(e.Blobs) > 0 {
			detail["digest"] = e.Blobs[0]
		} else if len(e.Manifests) > 0 {
			detail["digest"] = e.Manifests[0]
		}
		return &Error{Status: http.StatusNotFound, Code: "MANIFEST_BLOB_UNKNOWN", Message: e.Error(), Detail: detail, Cause: err}
	}
	if e, ok := errors.AsType[*repository.DigestError](err); ok {
		return invalid("DIGEST_INVALID", e)
	}
	if e, ok := errors.AsType[*blobs.SourceError](err); ok {
		if errors.Is(e, os.ErrDeadlineExceeded) {
			return &Error{Status: http.StatusRequestTimeout, Code: "BLOB_UPLOAD_INVALID", Message: "no data for too long", Cause: err}
		}
		return &Error{Status: http.StatusBadRequest, Code: "BLOB_UPLOAD_INVALID", Message: "the request ended before its body", Cause: err}
	}
	status, code := http.StatusInternalServerError, "UNKNOWN"
	message := "the registry has an internal error"
	switch {
	case errors.Is(err, errs.Invalid):
		status, code, message = http.StatusBadRequest, "UNSUPPORTED", err.Error()
	case errors.Is(err, errs.NotFound):
		status, code, message = http.StatusNotFound, "NOT_FOUND", err.Error()
	case errors.Is(err, errs.Precondition):
		status, code, message = http.StatusPreconditionFailed, "DENIED", err.Error()
	case errors.Is(err, errs.Conflict):
		status, code, message = http.StatusConflict, "BLOB_UPLOAD_INVALID", err.Error()
	case errors.Is(err, errs.Unauthorized):
		status, code, message = http.StatusUnauthorized, "UNAUTHORIZED", err.Error()
	case errors.Is(err, errs.Forbidden):
		status, code, message = http.StatusForbidden, "DENIED", err.Error()
	case errors.Is(err, errs.Exhausted):
		status, code, message = http.StatusInsufficientStorage, "INSUFFICIENT_STORAGE", err.Error()
	case errors.Is(err, errs.Unavailable):
		status, code, message = http.StatusServiceUnavailable, "UNAVAILABLE", err.Error()
	case errors.Is(err, errs.DataLoss):
		message = err.Error()
	}
	return &Error{Status: status, Code: code, Message: message, Cause: err}
}

func writeError(w http.ResponseWriter, r *http.Request, e *Error) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	body, err := json.Marshal(map[string][]item{"errors": {{e.Code, e.Message, e.Detail}}})
	if err != nil {
		body = []byte(`{"errors":[{"code":"UNKNOWN","message":""}]}`)
	}
	body = append(body, '\n')
	h := w.Header()
	for _, name := range []string{"ETag", "Docker-Content-Digest", "Content-Range", "Accept-Ranges"} {
		h.Del(name)
	}
	if e.Status == http.StatusServiceUnavailable || e.Status == http.StatusTooManyRequests {
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", "5")
		}
	}
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}
