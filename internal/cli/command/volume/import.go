package volume

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Import returns the command volume import.
func Import(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "import VOLUME [FILE|-]", Short: "Fill a new or empty volume from a tar archive", Args: command.RangeArgs(1, 2),
		Long: "Fill a volume from a tar archive, compressed or not, from a file or STDIN.\n\nThe volume is made unless it is there. One that has content, or that a container has, is refused. " +
			"After an error the volume is as it was.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			body := inv.Input(ctx)
			if len(args) > 1 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return errs.New(errs.Invalid, "%w", err)
				}
				defer f.Close()
				body = io.NopCloser(f)
			} else if inv.InTerm != nil {
				return errs.New(errs.Invalid, "the standard input is a terminal: name a file, or redirect one")
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			var v wire.Volume
			if err := api.Do(ctx, client.Request{Method: "POST", Path: "/volumes/" + args[0] + "/import", Body: body}, &v); err != nil {
				return command.EndOf(ctx, err)
			}
			fmt.Fprintln(inv.Out, v.Name)
			return nil
		},
	}
}
