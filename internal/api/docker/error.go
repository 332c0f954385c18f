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

// statuses is the one place where a class becomes a status.
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

// statusError is an error whose status no class has.
type statusError struct {
	status int
	error
}

func (e *statusError) Unwrap() error { return e.error }

// statusOf gives the status of an error: the outermost class counts, because it is what the service meant.
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

// isNotModified: the container is in the state that was asked for.
func isNotModified(err error) bool {
	return errors.Is(err, container.ErrNotModified) || errdefs.IsNotModified(err)
}

// messageOf is the text that a client shows.
func messageOf(err error) string {
	return strings.ToValidUTF8(err.Error(), "\uFFFD")
}

// writeError answers with {"message": …} and gives the status.
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
	_, _ = w.Write(b) // the client is gone: nobody to tell
	return status
}
