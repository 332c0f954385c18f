package container

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Diff returns the command diff.
func Diff(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "Inspect changes to files or directories on a container's filesystem", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return errs.New(errs.Invalid, "container name cannot be empty")
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var out []wire.Change
			if err := api.Do(cmd.Context(), client.Request{Path: "/containers/" + args[0] + "/changes"}, &out); err != nil {
				return err
			}
			for _, ch := range out {
				kind := "?"
				if ch.Kind >= 0 && ch.Kind < 3 {
					kind = "CAD"[ch.Kind : ch.Kind+1]
				}
				fmt.Fprintln(inv.Out, kind, ch.Path)
			}
			return nil
		},
	}
}
