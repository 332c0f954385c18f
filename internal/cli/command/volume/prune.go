package volume

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/opts"
)

// Prune returns the command volume prune.
func Prune(inv *command.Invocation) *cobra.Command {
	return command.NewPrune(inv, command.PruneOptions{
		Kind: "volume", Short: "Remove unused local volumes", FilterHelp: `Provide filter values (e.g. "label=<label>")`, Space: true,
		AllHelp: "Remove all unused volumes, not just anonymous ones",
		Warning: func(all bool) string {
			if all {
				return "WARNING! This will remove all local volumes not used by at least one container."
			}
			return "WARNING! This will remove anonymous local volumes not used by at least one container."
		},
		Adjust: func(f *opts.Filters, all bool) {
			if all {
				f.Add("all", "1")
			}
		},
	})
}
