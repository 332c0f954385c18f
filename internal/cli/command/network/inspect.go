package network

import (
	"context"
	"encoding/json"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
)

// Inspect returns the command network inspect.
func Inspect(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var verbose bool
	c := &cobra.Command{
		Use: "inspect [OPTIONS] NETWORK [NETWORK...]", Short: "Display detailed information on one or more networks", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if verbose {
				q.Set("verbose", "1")
			}
			return inv.Inspect(cmd.Context(), tmpl, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				return api.Raw(ctx, client.Request{Path: "/networks/" + ref, Query: q})
			})
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Verbose output for diagnostics")
	return c
}
