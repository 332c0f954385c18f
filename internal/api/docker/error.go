package docker

import (
	"errors"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/wire"
)

// statuses maps the class of an error to its status. This is the only such table.
var statuses = []struct {
	class  error
	status int
}{
	{errdefs.ErrNotModified, http.StatusNotModified},
	{errs.NotFound, http.StatusNotFound},
	{errs.Invalid, http.StatusBadRequest},
	{errs.Exists, http.StatusConflict},
	{errs.Conflict, http.StatusConflict},
	{errs.Precondition, http.StatusConflict},
	{errs.Unauthorized, http.StatusUnauthorized},
	{errs.Forbidden, http.StatusForbidden},
	{errs.Unavailable, http.StatusServiceUnavailable},
	{errs.Unimplemented, http.StatusNotImplemented},
	{errs.Exhausted, http.StatusInsufficientStorage},
	{errs.DataLoss, http.StatusInternalServerError},
	{errs.Internal, http.StatusInternalServerError},
}

// statusError is an error with a status that no class has.
type statusError struct {
	status int
	error
}

func (e *statusError) Unwrap() error { return e.error }

// statusOf returns the status of an error. The outermost class counts, because the service chose it.
func statusOf(err error) int {
	if special := (*statusError)(nil); errors.As(err, &special) {
		return special.status
	}
	if isNotModified(err) {
		return http.StatusNotModified
	}
	if e := (*errs.Error)(nil); errors.As(err, &e) {
		for _, s := range statuses {
			if e.Class == s.class {
				return s.status
			}
		}
	}
	for _, s := range statuses {
		if errors.Is(err, s.class) {
			return s.status
		}
	}
	return http.StatusInternalServerError
}

// isNotModified reports whether the container already was in the state that was asked for.
func isNotModified(err error) bool {
	return errors.Is(err, container.ErrNotModified) || errdefs.IsNotModified(err)
}

// messageOf returns the text that clients show.
func messageOf(err error) string {
	return strings.ToValidUTF8(err.Error(), "\uFFFD")
}

// writeError answers with the message of an error and returns the status.
func writeError(w http.ResponseWriter, err error) int {
	status := statusOf(err)
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return status
	}
	b, encErr := encode(wire.Error{Message: messageOf(err)})
	if encErr != nil {
		b = []byte(`{"message":"internal error"}` + "\n")
	}
	w.Header().Del("Content-Length")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // when this fails, the client is gone
	return status
}
