package volume

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/wire"
)

// Cp returns the command volume cp.
func Cp(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "cp VOLUME NEW_VOLUME", Aliases: []string{"copy"}, Short: "Make a volume from the content of another one", Args: command.ExactArgs(2),
		Long: "Make a volume with the content and the labels of another one. Where the file system can, the two share their blocks.\n\n" +
			"Stop the containers that write to the volume for a state of one moment.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var v wire.Volume
			q := url.Values{"name": {args[1]}}
			if err := api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/volumes/" + args[0] + "/copy", Query: q}, &v); err != nil {
				return err
			}
			fmt.Fprintln(inv.Out, v.Name)
			return nil
		},
	}
}
