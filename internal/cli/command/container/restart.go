package container

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Restart returns the command restart.
func Restart(inv *command.Invocation) *cobra.Command {
	return newStop(inv, "restart", "Restart one or more containers")
}
