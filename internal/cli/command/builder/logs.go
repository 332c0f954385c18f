package builder

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Logs returns the command builder logs.
func Logs(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "logs BUILD", Short: "Show the whole log of a build", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			resp, err := api.Open(ctx, client.Request{Path: "/builds/" + args[0] + "/logs"})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if _, err := io.Copy(inv.Out, resp.Body); err != nil {
				return command.EndOf(ctx, fmt.Errorf("log of build %s: %w", args[0], err))
			}
			return nil
		},
	}
}
