package image

import (
	"strconv"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/opts"
)

// Prune returns the command image prune.
func Prune(inv *command.Invocation) *cobra.Command {
	return command.NewPrune(inv, command.PruneOptions{
		Kind: "image", Short: "Remove unused images", FilterHelp: `Provide filter values (e.g. "until=<timestamp>")`, Space: true,
		AllHelp: "Remove all unused images, not just dangling ones",
		Warning: func(all bool) string {
			if all {
				return "WARNING! This will remove all images without at least one container associated to them."
			}
			return "WARNING! This will remove all dangling images."
		},
		Adjust: func(f *opts.Filters, all bool) { f.Add("dangling", strconv.FormatBool(!all)) },
	})
}
