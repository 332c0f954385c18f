package container

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Prune returns the command container prune.
func Prune(inv *command.Invocation) *cobra.Command {
	return command.NewPrune(inv, command.PruneOptions{
		Kind: "container", Short: "Remove all stopped containers", FilterHelp: `Provide filter values (e.g. "until=<timestamp>")`, Space: true,
		Warning: func(bool) string { return "WARNING! This will remove all stopped containers." },
	})
}
