package builder

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
)

// Inspect returns the command builder inspect.
func Inspect(inv *command.Invocation) *cobra.Command {
	var tmpl string
	c := &cobra.Command{
		Use: "inspect [OPTIONS] BUILD [BUILD...]", Short: "Display the steps of one or more builds", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inv.Inspect(cmd.Context(), tmpl, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				return api.Raw(ctx, client.Request{Path: "/builds/" + ref})
			})
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	return c
}
