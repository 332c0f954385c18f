package network

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Rm returns the command network rm.
func Rm(inv *command.Invocation) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm NETWORK [NETWORK...]", Aliases: []string{"remove"}, Short: "Remove one or more networks", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			return command.Each(cmd.Context(), args, func(name string) error {
				err := api.Do(cmd.Context(), client.Request{Method: "DELETE", Path: "/networks/" + name}, nil)
				if force && client.IsNotFound(err) {
					return nil
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(inv.Out, name)
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not error if the network does not exist")
	return c
}
