package context

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/errs"
)

// Rm returns the command context rm.
func Rm(inv *command.Invocation) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm CONTEXT [CONTEXT...]", Aliases: []string{"remove"}, Short: "Remove one or more contexts", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			current, err := inv.ContextName()
			if err != nil {
				return err
			}
			return command.Each(cmd.Context(), args, func(name string) error {
				if name == contexts.Default {
					return errs.New(errs.Invalid, `context "default" cannot be removed`)
				}
				if name == current && !force {
					return errs.New(errs.Conflict, "context %q is in use, set -f flag to force remove", name)
				}
				if err := inv.Contexts().Remove(name); err != nil && (!force || !errors.Is(err, errs.NotFound)) {
					return err
				}
				if name == inv.Config().CurrentContext() {
					if err := inv.Config().UseContext(""); err != nil {
						return err
					}
				}
				_, err := fmt.Fprintln(inv.Out, name)
				return err
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of a context in use")
	return c
}
