package network

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/wire"
)

// Disconnect returns the command network disconnect.
func Disconnect(inv *command.Invocation) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "disconnect [OPTIONS] NETWORK CONTAINER", Short: "Disconnect a container from a network", Args: command.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			body := wire.NetworkDisconnect{Container: args[1], Force: force}
			return api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/networks/" + args[0] + "/disconnect", Body: body}, nil)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the container to disconnect from a network")
	return c
}
