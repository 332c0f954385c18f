// Package errs classifies errors by what the caller should do about them.
//
// A class is one of the sentinels of containerd/errdefs, so clients and libraries that know those classes know these. A
// message does not repeat its class: the text is for people, the class for code. Test it with errors.Is(err, errs.NotFound).
package errs

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// The classes. The comment says what a caller should do.
var (
	NotFound      = errdefs.ErrNotFound           // name something else
	Exists        = errdefs.ErrAlreadyExists      // use what is there, or another name
	Invalid       = errdefs.ErrInvalidArgument    // correct the request or the input bytes
	Conflict      = errdefs.ErrConflict           // remove the cause of the conflict, then retry
	Precondition  = errdefs.ErrFailedPrecondition // change the state first
	Unauthorized  = errdefs.ErrUnauthenticated    // log in
	Forbidden     = errdefs.ErrPermissionDenied   // get the permission
	Unavailable   = errdefs.ErrUnavailable        // retry later
	Exhausted     = errdefs.ErrResourceExhausted  // free space, or raise the limit
	Unimplemented = errdefs.ErrNotImplemented     // use another way
	DataLoss      = errdefs.ErrDataLoss           // the stored object is damaged: pull or load it again
	Internal      = errdefs.ErrInternal           // report a bug
)

// Error is an error of a class, with a message and, where one is known, a hint what to do.
type Error struct {
	Class error  // one of the sentinels above
	Msg   string // complete text, without the class and without the hint
	Hint  string // what to do next, a full sentence, or ""
	Err   error  // cause, already part of Msg; may be nil
}

// Error returns the message and the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Msg
	}
	return e.Msg + ". " + e.Hint
}

// Is reports whether target is the class of e.
func (e *Error) Is(target error) bool { return target == e.Class }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of a class. The format may contain one %w: the text of that error becomes part of the message, and
// errors.Is and errors.As find it.
func New(class error, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Class: class, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint sets the hint and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Close closes c and joins its error to *err. It is for defer on writers, whose Close may fail to write data.
func Close(err *error, c io.Closer) {
	*err = errors.Join(*err, c.Close())
}
