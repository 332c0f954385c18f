package image

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Ls returns the command image ls.
func Ls(inv *command.Invocation) *cobra.Command {
	f := &imagesFlags{}
	c := &cobra.Command{
		Use: "ls [OPTIONS] [REPOSITORY[:TAG]]", Aliases: []string{"list"}, Short: "List images", Args: command.MaxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return images(cmd.Context(), inv, f, args) },
	}
	f.add(c)
	return c
}
