package system

import (
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
)

// Logs returns the command system logs.
func Logs(inv *command.Invocation) *cobra.Command {
	var follow bool
	var tail string
	c := &cobra.Command{
		Use: "logs [OPTIONS]", Short: "Show the log of the engine of this machine", Args: command.NoArgs,
		Long: `Show what plyd writes to its log: a file or, where systemd started it, the journal.

When plyd does not run, the log of the last one is shown.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n := -1
			if tail != "all" {
				var err error
				if n, err = strconv.Atoi(tail); err != nil || n < 0 {
					return errors.New(`invalid value for --tail: "` + tail + `" is neither a number nor "all"`)
				}
			}
			ctx := cmd.Context()
			_, state, err := localEngine(ctx, inv)
			if err != nil {
				return err
			}
			return inv.Daemon.Logs(ctx, state, n, follow, inv.Out, inv.Err)
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&follow, "follow", "f", false, "Go on with what is written")
	fs.StringVarP(&tail, "tail", "n", "all", "Number of lines to show from the end")
	return c
}
