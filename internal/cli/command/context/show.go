package context

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Show returns the command context show.
func Show(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print the name of the current context", Args: command.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			name, err := inv.ContextName()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(inv.Out, name)
			return err
		},
	}
}
