package context

import (
	"bytes"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/contexts"
	"ply/internal/errs"
)

// Export returns the command context export.
func Export(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "export CONTEXT [FILE|-]", Short: "Export a context to a tar archive FILE or a tar stream on STDOUT.", Args: command.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := inv.Contexts().Get(args[0])
			if err != nil {
				return err
			}
			var b bytes.Buffer
			if err := contexts.Export(&b, c); err != nil {
				return err
			}
			name := args[0] + ".dockercontext"
			if len(args) > 1 {
				name = args[1]
			}
			if name == "-" {
				if inv.OutTerm != nil {
					return errs.New(errs.Invalid, "cowardly refusing to export to a terminal, specify a file path")
				}
				_, err := inv.Out.Write(b.Bytes())
				return err
			}
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = f.Write(b.Bytes())
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				os.Remove(name)
				return err
			}
			fmt.Fprintf(inv.Err, "Written file %q\n", name)
			return nil
		},
	}
}
