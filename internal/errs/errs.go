// Package errs classifies errors by what the caller should do about them.
//
// A class is one of containerd/errdefs' sentinels, so any client or library that
// knows those classes knows ours. A message never repeats its class: the text is for
// people, the class for code. Test with errors.Is(err, errs.NotFound).
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
	Invalid       = errdefs.ErrInvalidArgument    // mend the request or the input bytes
	Conflict      = errdefs.ErrConflict           // resolve what stands in the way, then retry
	Precondition  = errdefs.ErrFailedPrecondition // change the state first
	Unauthorized  = errdefs.ErrUnauthenticated    // log in
	Forbidden     = errdefs.ErrPermissionDenied   // ask for the right
	Unavailable   = errdefs.ErrUnavailable        // retry later
	Exhausted     = errdefs.ErrResourceExhausted  // free space, or raise the limit
	Unimplemented = errdefs.ErrNotImplemented     // do without
	DataLoss      = errdefs.ErrDataLoss           // the stored object is damaged: pull or load it again
	Internal      = errdefs.ErrInternal           // report it
)

// Error is a classified error with a message of its own and, when one is known, the way out.
type Error struct {
	Class error  // one of the sentinels above
	Msg   string // complete text, without the class and without the hint
	Hint  string // what to do next, a full sentence, or ""
	Err   error  // cause, already part of Msg; may be nil
}

// Error gives the message and, after a blank, the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Msg
	}
	return e.Msg + ". " + e.Hint
}

// Is reports whether target is the class of e.
func (e *Error) Is(target error) bool { return target == e.Class }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error of a class. The format may hold one %w: its text becomes part of the
// message and its chain stays reachable.
func New(class error, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Class: class, Msg: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint sets the way out and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Close closes c and joins its error to *err. Meant for defer on writers, whose Close can lose data.
func Close(err *error, c io.Closer) {
	*err = errors.Join(*err, c.Close())
}
