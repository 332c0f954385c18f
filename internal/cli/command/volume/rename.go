package volume

import (
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Rename returns the command volume rename.
func Rename(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "rename VOLUME NEW_NAME", Short: "Rename a volume", Args: command.ExactArgs(2),
		Long: "Rename a volume. A volume that a container has, running or not, is refused.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{"name": {args[1]}}
			return api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/volumes/" + args[0] + "/rename", Query: q}, nil)
		},
	}
}
