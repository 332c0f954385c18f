package container

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Pause returns the command pause.
func Pause(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "pause CONTAINER [CONTAINER...]", Short: "Pause all processes within one or more containers", Args: command.MinArgs(1),
		RunE: postEach(inv, "pause", nil),
	}
}
