package container

import (
	"context"
	"encoding/json"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
)

// Inspect returns the command container inspect.
func Inspect(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var size bool
	c := &cobra.Command{
		Use: "inspect [OPTIONS] CONTAINER [CONTAINER...]", Short: "Display detailed information on one or more containers", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if size {
				q.Set("size", "1")
			}
			return inv.Inspect(cmd.Context(), tmpl, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				return api.Raw(ctx, client.Request{Path: "/containers/" + ref + "/json", Query: q})
			})
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	c.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes")
	return c
}
