package container

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/attach"
	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Wait returns the command wait.
func Wait(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER [CONTAINER...]", Short: "Block until one or more containers stop, then print their exit codes", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			return command.Each(ctx, args, func(id string) error {
				for {
					ch, err := attach.Wait(ctx, api, id, "")
					if err == nil {
						res := <-ch
						if err = res.Err; err == nil {
							fmt.Fprintln(inv.Out, res.StatusCode)
							return nil
						}
					}
					if !client.Cut(err) || ctx.Err() != nil {
						return err
					}
					if err := api.AwaitReturn(ctx, inv.Err); err != nil {
						return err
					}
				}
			})
		},
	}
}
