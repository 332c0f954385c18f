package context

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/errs"
)

// Import returns the command context import.
func Import(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "import CONTEXT FILE|-", Short: "Import a context from a tar or zip file", Args: command.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			store := inv.Contexts()
			if err := contexts.CheckName(args[0]); err != nil {
				return err
			}
			if _, err := store.Get(args[0]); err == nil {
				return errs.New(errs.Conflict, "context %q already exists", args[0])
			}
			r := inv.In
			if args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer f.Close()
				r = io.Reader(f)
			}
			c, err := contexts.Import(r, args[0])
			if err != nil {
				return err
			}
			if err := store.Put(c); err != nil {
				return err
			}
			return done(inv, c.Name, "Successfully imported context %q")
		},
	}
}
