package command

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/format"
)

// AnyArgs, NoArgs, ExactArgs, MinArgs, MaxArgs and RangeArgs check the number of arguments, in docker's words. All of them
// refuse an argument that begins with a Unicode dash where a flag may stand.

// AnyArgs accepts any number of arguments.
func AnyArgs(cmd *cobra.Command, args []string) error { return refuseDashes(cmd, args) }

// NoArgs accepts no arguments.
func NoArgs(cmd *cobra.Command, args []string) error {
	if err := refuseDashes(cmd, args); err != nil || len(args) == 0 {
		return err
	}
	return argError(cmd, "Run", "accepts no arguments")
}

// ExactArgs accepts n arguments.
func ExactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := refuseDashes(cmd, args); err != nil || len(args) == n {
			return err
		}
		return argError(cmd, "Run", fmt.Sprintf("requires %d %s", n, format.Plural("argument", n)))
	}
}

// MinArgs accepts n arguments or more.
func MinArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := refuseDashes(cmd, args); err != nil || len(args) >= n {
			return err
		}
		return argError(cmd, "See", fmt.Sprintf("requires at least %d %s", n, format.Plural("argument", n)))
	}
}

// MaxArgs accepts n arguments or fewer.
func MaxArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := refuseDashes(cmd, args); err != nil || len(args) <= n {
			return err
		}
		return argError(cmd, "Run", fmt.Sprintf("requires at most %d %s", n, format.Plural("argument", n)))
	}
}

// RangeArgs accepts from low to high arguments.
func RangeArgs(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := refuseDashes(cmd, args); err != nil || len(args) >= low && len(args) <= high {
			return err
		}
		return argError(cmd, "Run", fmt.Sprintf("requires at least %d and at most %d %s", low, high, format.Plural("argument", high)))
	}
}

func argError(cmd *cobra.Command, see, what string) error {
	return &UsageError{Cmd: cmd, See: see, Code: 1, Text: fmt.Sprintf("ply: '%s' %s", cmd.CommandPath(), what)}
}

// UseLine returns the usage of a command, without cobra's additions.
func UseLine(cmd *cobra.Command) string {
	if cmd.HasParent() {
		parent := cmd.Parent().CommandPath() + " "
		return parent + strings.ReplaceAll(cmd.Use, "\n", "\n\t"+parent)
	}
	return cmd.Use + " [ARG...]"
}
