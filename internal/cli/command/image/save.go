package image

import (
	"net/http"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
)

// Save returns the command save.
func Save(inv *command.Invocation) *cobra.Command {
	var out, platform, layout string
	c := &cobra.Command{
		Use: "save [OPTIONS] IMAGE [IMAGE...]", Short: "Save one or more images to a tar archive (streamed to STDOUT by default)", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			q, err := opts.PlatformQuery(platform)
			if err != nil {
				return err
			}
			q["names"] = args
			if cmd.Flags().Changed("format") {
				q.Set("format", layout)
			}
			return inv.Deliver(ctx, "save image", out, func() (*http.Response, error) {
				api, err := inv.Engine(ctx)
				if err != nil {
					return nil, err
				}
				return api.Open(ctx, client.Request{Path: "/images/get", Query: q})
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "Write to a file, instead of STDOUT")
	c.Flags().StringVar(&layout, "format", "hybrid", `Layout of the archive: "hybrid" (all at once), "oci", "docker", or "legacy" (only what the oldest clients read)`)
	c.Flags().StringVar(&platform, "platform", "", `Save only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`)
	return c
}
