package container

import (
	"net/http"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Export returns the command export.
func Export(inv *command.Invocation) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "export [OPTIONS] CONTAINER", Short: "Export a container's filesystem as a tar archive", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return inv.Deliver(ctx, "export container", out, func() (*http.Response, error) {
				api, err := inv.Engine(ctx)
				if err != nil {
					return nil, err
				}
				return api.Open(ctx, client.Request{Path: "/containers/" + args[0] + "/export"})
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "Write to a file, instead of STDOUT")
	return c
}
