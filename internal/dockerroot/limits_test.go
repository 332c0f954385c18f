package dockerroot

import (
	"bufio"
	"context"
	"errors"
	"testing"
)

// SetLimits changes what the objects of one kind may have together, until undo is called.
func SetLimits(bytes, values int) (undo func()) {
	oldBytes, oldValues := maxBytes, maxValues
	maxBytes, maxValues = bytes, values
	return func() { maxBytes, maxValues = oldBytes, oldValues }
}

// newlines is a reader that never ends, and cancels a context on the way.
type newlines struct {
	n      int
	cancel func()
}

func (r *newlines) Read(p []byte) (int, error) {
	if r.n += len(p); r.n > 1<<20 {
		r.cancel()
	}
	for i := range p {
		p[i] = '\n'
	}
	return len(p), nil
}

// A recipe that is nothing but empty lines, of which a small file can have billions, does not keep an import from ending.
func TestRecipeOfEmptyLines(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := &recipe{ctx: ctx, lines: bufio.NewReader(&newlines{cancel: cancel})}
	if e, err := r.Next(); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v %v", e, err)
	}
}
