package image

import (
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
)

// Inspect returns the command image inspect.
func Inspect(inv *command.Invocation) *cobra.Command {
	var tmpl, platform string
	c := &cobra.Command{
		Use: "inspect [OPTIONS] IMAGE [IMAGE...]", Short: "Display detailed information on one or more images", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inv.Inspect(cmd.Context(), tmpl, args, func(ctx context.Context, api *client.Client, ref string) (json.RawMessage, error) {
				q, err := opts.PlatformQuery(platform)
				if err != nil {
					return nil, err
				}
				return api.Raw(ctx, client.Request{Path: "/images/" + ref + "/json", Query: q})
			})
		},
	}
	c.Flags().StringVarP(&tmpl, "format", "f", "", format.DocumentHelp)
	c.Flags().StringVar(&platform, "platform", "", `Inspect a specific platform of the multi-platform image. 'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)`)
	return c
}
