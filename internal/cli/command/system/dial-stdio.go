package system

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// DialStdio returns the command system dial-stdio, which clients on other machines run by ssh.
func DialStdio(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "dial-stdio", Short: "Proxy the stdio stream to the engine. Should not be invoked manually.", Hidden: true, Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			return command.EndOf(cmd.Context(), api.DialStdio(cmd.Context(), inv.In, inv.Out))
		},
	}
}
