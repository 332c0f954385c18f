package network

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Prune returns the command network prune.
func Prune(inv *command.Invocation) *cobra.Command {
	return command.NewPrune(inv, command.PruneOptions{
		Kind: "network", Short: "Remove all unused networks", FilterHelp: `Provide filter values (e.g. "until=<timestamp>")`,
		Warning: func(bool) string {
			return "WARNING! This will remove all custom networks not used by at least one container."
		},
	})
}
