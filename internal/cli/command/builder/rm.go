package builder

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Rm returns the command builder rm.
func Rm(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "rm BUILD [BUILD...]", Aliases: []string{"remove"}, Short: "Remove one or more builds from the history", Args: command.MinArgs(1),
		Long: "Remove one or more builds from the history. The images and the cache stay.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			return command.Each(cmd.Context(), args, func(id string) error {
				if err := api.Do(cmd.Context(), client.Request{Method: "DELETE", Path: "/builds/" + id}, nil); err != nil {
					return err
				}
				fmt.Fprintln(inv.Out, id)
				return nil
			})
		},
	}
}
