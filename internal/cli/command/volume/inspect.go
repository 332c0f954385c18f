package volume

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
)

// Inspect returns the command volume inspect.
func Inspect(inv *command.Invocation) *cobra.Command {
	var tmpl string
	c := &cobra.Command{
		Use: "inspect [OPTIONS] VOLUME [VOLUME...]", Short: "Display detailed information on one or more volumes", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inv.Inspect(cmd.Context(), tmpl, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				return api.Raw(ctx, client.Request{Path: "/volumes/" + ref})
			})
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	return c
}
