package container

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Unpause returns the command unpause.
func Unpause(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "unpause CONTAINER [CONTAINER...]", Short: "Unpause all processes within one or more containers", Args: command.MinArgs(1),
		RunE: postEach(inv, "unpause", nil),
	}
}
