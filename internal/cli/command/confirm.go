package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Confirm prints a warning and asks whether to continue. The end of the input ends the program without an error.
func (inv *Invocation) Confirm(ctx context.Context, warning string) (bool, error) {
	fmt.Fprintf(inv.Out, "%s\nAre you sure you want to continue? [y/N] ", warning)
	type answer struct {
		line string
		err  error
	}
	ch := make(chan answer, 1)
	go func() {
		var l answer
		_, l.err = fmt.Fscanln(inv.In, &l.line)
		ch <- l
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(inv.Out)
		return false, context.Cause(ctx)
	case l := <-ch:
		if errors.Is(l.err, io.EOF) {
			fmt.Fprintln(inv.Out)
			return false, &ExitError{Code: 0}
		}
		return strings.EqualFold(l.line, "y"), nil
	}
}
