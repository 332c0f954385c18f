package checkpoint

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Rm returns the command checkpoint rm.
func Rm(inv *command.Invocation) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "rm [OPTIONS] CONTAINER CHECKPOINT", Aliases: []string{"remove"}, Short: "Remove a checkpoint", Args: command.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			return api.Do(cmd.Context(), client.Request{Method: "DELETE", Path: "/containers/" + args[0] + "/checkpoints/" + args[1], Query: query(dir)}, nil)
		},
	}
	addDir(c, &dir)
	return c
}
