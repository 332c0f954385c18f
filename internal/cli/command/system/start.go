package system

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/errs"
)

// Start returns the command system start.
func Start(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "start", Short: "Start the engine of this machine", Args: command.NoArgs,
		Long: `Start plyd, unless it runs already.

Where systemd has ply's units, it starts them. Otherwise plyd is started in a session of its own and writes its log to
/var/log/plyd.log. Commands that need an engine start it the same way.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			host, state, err := localEngine(ctx, inv)
			if err != nil {
				return err
			}
			if host != inv.Daemon.Host {
				return errs.New(errs.Invalid, "%s: only the engine at %s can be started", host, inv.Daemon.Host).WithHint("Start others with: plyd -H %s", host)
			}
			if state.Process != nil {
				fmt.Fprintf(inv.Out, "plyd runs already, process %d\n", state.PID)
				return nil
			}
			how, err := inv.Daemon.Up(ctx, func(ctx context.Context) error {
				_, err := inv.Running(ctx)
				return err
			})
			if err != nil {
				return command.EndOf(ctx, err)
			}
			if state, err = inv.Daemon.State(ctx, host); err != nil {
				return err
			}
			if how == "" || state.Process == nil {
				fmt.Fprintln(inv.Out, "plyd runs")
				return nil
			}
			fmt.Fprintf(inv.Out, "plyd runs, process %d, started by %s\n", state.PID, how)
			return nil
		},
	}
}

// writeNotRunning says that no engine runs, and what starts it.
func writeNotRunning(w io.Writer, waiting bool) {
	if waiting {
		fmt.Fprintln(w, "plyd does not run; systemd starts it for the next command")
		return
	}
	fmt.Fprintln(w, "plyd does not run")
}
