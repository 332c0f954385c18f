package errs

import (
	"errors"
	"io"
	"testing"

	"github.com/containerd/errdefs"
)

func TestErrorHasClassCauseAndHint(t *testing.T) {
	err := error(New(NotFound, "blob %s: %w", "x", io.ErrUnexpectedEOF).WithHint("Pull %s again.", "it"))
	if err.Error() != "blob x: unexpected EOF. Pull it again." {
		t.Errorf("text = %q", err)
	}
	if !errors.Is(err, NotFound) || !errdefs.IsNotFound(err) || errors.Is(err, Invalid) {
		t.Errorf("class of %v is not NotFound alone", err)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Msg != "blob x: unexpected EOF" || e.Hint != "Pull it again." {
		t.Errorf("parts = %+v", e)
	}
	if plain := New(Invalid, "no cause"); plain.Err != nil || plain.Error() != "no cause" {
		t.Errorf("without a cause: %+v", plain)
	}
}

func TestCloseKeepsBothErrors(t *testing.T) {
	first, second := errors.New("write"), errors.New("close")
	err := first
	Close(&err, closer{second})
	if !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("Close joins %v, want both errors", err)
	}
	err = nil
	if Close(&err, closer{nil}); err != nil {
		t.Errorf("Close without an error: %v", err)
	}
}

type closer struct{ err error }

func (c closer) Close() error { return c.err }
