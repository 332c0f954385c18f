package volume

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Rm returns the command volume rm.
func Rm(inv *command.Invocation) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [OPTIONS] VOLUME [VOLUME...]", Aliases: []string{"remove"}, Short: "Remove one or more volumes", Args: command.MinArgs(1),
		Long: "Remove one or more volumes. You cannot remove a volume that is in use by a container.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			return command.Each(cmd.Context(), args, func(name string) error {
				if err := api.Do(cmd.Context(), client.Request{Method: "DELETE", Path: "/volumes/" + name, Query: q}, nil); err != nil {
					return err
				}
				fmt.Fprintln(inv.Out, name)
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of one or more volumes")
	return c
}
