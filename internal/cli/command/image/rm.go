package image

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Rm returns the command image rm, which is rmi under another name.
func Rm(inv *command.Invocation) *cobra.Command {
	c := Rmi(inv)
	c.Use, c.Aliases = "rm [OPTIONS] IMAGE [IMAGE...]", []string{"remove"}
	return c
}
