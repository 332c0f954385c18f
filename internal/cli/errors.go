package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// exitError carries an exit code; an empty text prints nothing.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

// usageError is a wrong invocation of cmd.
type usageError struct {
	cmd  *cobra.Command
	text string
	see  string // "Run" or "See"
	code int
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%s\n\nUsage:  %s\n\n%s '%s --help' for more information", e.text, useLine(e.cmd), e.see, e.cmd.CommandPath())
}

// engineErrors joins what went wrong for several objects, one a line, and ends with exit code 1.
type engineErrors []error

func (l engineErrors) Error() string {
	s := make([]string, len(l))
	for i, e := range l {
		s[i] = e.Error()
	}
	return strings.Join(s, "\n")
}

func (l engineErrors) Unwrap() []error { return l }

// each calls f for every argument; errors are collected so that one missing object does not stop the rest.
func each(ctx context.Context, args []string, f func(arg string) error) error {
	var list engineErrors
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

// startStatus maps an error of create or start to run's exit code.
func startStatus(err error) int {
	s := err.Error()
	switch {
	case strings.Contains(s, "executable file not found"), strings.Contains(s, "no such file or directory"),
		strings.Contains(s, "system cannot find the file specified"):
		return 127
	case strings.Contains(s, "permission denied"), strings.Contains(s, "is a directory"):
		return 126
	}
	return 125
}

// exactArgs, minArgs, maxArgs, rangeArgs and noArgs check the number of arguments in docker's words.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := dashes(cmd, args); err != nil || len(args) == n {
			return err
		}
		return argError(cmd, "Run", fmt.Sprintf("requires %d %s", n, plural("argument", n)))
	}
}

func minArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := dashes(cmd, args); err != nil || len(args) >= n {
			return err
		}
		return argError(cmd, "See", fmt.Sprintf("requires at least %d %s", n, plural("argument", n)))
	}
}

func maxArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := dashes(cmd, args); err != nil || len(args) <= n {
			return err
		}
		return argError(cmd, "Run", fmt.Sprintf("requires at most %d %s", n, plural("argument", n)))
	}
}

func rangeArgs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := dashes(cmd, args); err != nil || len(args) >= low && len(args) <= high {
			return err
		}
		return argError(cmd, "Run", fmt.Sprintf("requires at least %d and at most %d %s", low, high, plural("argument", high)))
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := dashes(cmd, args); err != nil || len(args) == 0 {
		return err
	}
	return argError(cmd, "Run", "accepts no arguments")
}

func argError(cmd *cobra.Command, see, what string) error {
	return &usageError{cmd: cmd, see: see, code: 1, text: fmt.Sprintf("ply: '%s' %s", cmd.CommandPath(), what)}
}

func plural(word string, n int) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// outcome decides how Main ends: the exit code, and what is said on stderr.
func outcome(err error) (code int, text string) {
	var ee *exitError
	if errors.As(err, &ee) {
		return ee.code, ee.text
	}
	var ue *usageError
	if errors.As(err, &ue) {
		return ue.code, ue.Error()
	}
	var sig *signalError
	if errors.As(err, &sig) {
		return 128 + sig.number(), ""
	}
	if errors.Is(err, context.Canceled) {
		return 130, ""
	}
	return 1, err.Error()
}
