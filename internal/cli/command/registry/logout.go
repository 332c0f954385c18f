package registry

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/config"
)

// Logout returns the command logout.
func Logout(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "logout [SERVER]", Short: "Log out from a registry", Args: command.MaxArgs(1),
		Long: "Log out from a registry.\nIf no server is specified, the default is defined by the daemon.",
		RunE: func(cmd *cobra.Command, args []string) error {
			server := config.Hub
			if len(args) > 0 {
				server = config.Key(serverName(args[0]))
			}
			fmt.Fprintf(inv.Out, "Removing login credentials for %s\n", server)
			_, err := inv.Config().Erase(cmd.Context(), server)
			if err != nil {
				return fmt.Errorf("WARNING: could not erase credentials: %w", err)
			}
			return nil
		},
	}
}
