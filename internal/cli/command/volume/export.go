package volume

import (
	"net/http"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
)

// Export returns the command volume export.
func Export(inv *command.Invocation) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "export [OPTIONS] VOLUME", Short: "Export the content of a volume as a tar archive", Args: command.ExactArgs(1),
		Long: "Export the content of a volume as a tar archive.\n\nThe archive has the owners, modes, times and extended attributes of the files and of the volume's directory. " +
			"Stop the containers that write to the volume for a state of one moment.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			return inv.Deliver(ctx, "export volume", out, func() (*http.Response, error) {
				api, err := inv.Engine(ctx)
				if err != nil {
					return nil, err
				}
				return api.Open(ctx, client.Request{Path: "/volumes/" + args[0] + "/export"})
			})
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "Write to a file, instead of STDOUT")
	return c
}
