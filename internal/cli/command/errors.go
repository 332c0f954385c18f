package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// ExitError ends the program with Code. An empty Text prints nothing.
type ExitError struct {
	Code int
	Text string
}

// Error returns the text.
func (e *ExitError) Error() string { return e.Text }

// UsageError is a wrong invocation of Cmd.
type UsageError struct {
	Cmd  *cobra.Command
	Text string
	See  string // the verb before the advice to ask for help: "Run" or "See"
	Code int    // the exit code
}

// Error returns the text, the usage of the command and the advice to ask for help.
func (e *UsageError) Error() string {
	return fmt.Sprintf("%s\n\nUsage:  %s\n\n%s '%s --help' for more information", e.Text, UseLine(e.Cmd), e.See, e.Cmd.CommandPath())
}

// Errors are the errors of several objects. They print one per line.
type Errors []error

// Error returns the texts, one per line.
func (l Errors) Error() string {
	s := make([]string, len(l))
	for i, e := range l {
		s[i] = e.Error()
	}
	return strings.Join(s, "\n")
}

// Unwrap returns the errors.
func (l Errors) Unwrap() []error { return l }

// Each calls f for every argument. It collects errors, so that one missing object does not stop the rest; the end of ctx does.
func Each(ctx context.Context, args []string, f func(arg string) error) error {
	var list Errors
	for _, arg := range args {
		if err := f(arg); err != nil {
			list = append(list, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if len(list) > 0 {
		return list
	}
	return nil
}

// EndOf returns err, or the cause of the end of ctx when that is why the work failed.
func EndOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
