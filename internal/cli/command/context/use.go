package context

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
)

// Use returns the command context use.
func Use(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "use CONTEXT", Short: "Set the current docker context", Args: command.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			name, stored := args[0], args[0]
			if name == contexts.Default {
				stored = ""
			} else if _, err := inv.Contexts().Get(name); err != nil {
				return err
			}
			if inv.Config().CurrentContext() != stored {
				if err := inv.Config().UseContext(stored); err != nil {
					return err
				}
			}
			if err := done(inv, name, "Current context is now %q"); err != nil {
				return err
			}
			if variable := command.HostVariable(); variable != "" && stored != "" {
				fmt.Fprintf(inv.Err, "Warning: %s environment variable overrides the active context. To use %q, either set the global --context flag, or unset %s environment variable.\n", variable, name, variable)
			}
			return nil
		},
	}
}
