package builder

import (
	"os"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// BuildOrHistory returns the command build. Its first word may also be ls, logs, inspect or rm, as below builder, for the history of builds; a directory of that name in the
// working directory is a context all the same.
func BuildOrHistory(inv *command.Invocation) *cobra.Command {
	c := Build(inv)
	for _, verb := range []*cobra.Command{Ls(inv), Logs(inv), Inspect(inv), Rm(inv)} {
		if _, err := os.Lstat(verb.Name()); err != nil {
			verb.Aliases = nil
			c.AddCommand(verb)
		}
	}
	return c
}
