package container

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Ls returns the command container ls, which is ps under another name.
func Ls(inv *command.Invocation) *cobra.Command {
	c := Ps(inv)
	c.Use, c.Aliases = "ls [OPTIONS]", []string{"list", "ps"}
	return c
}
