package system

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/daemon"
	"ply/internal/cli/format"
	"ply/internal/wire"
)

// Stop returns the command system stop.
func Stop(inv *command.Invocation) *cobra.Command {
	var seconds uint
	c := &cobra.Command{
		Use: "stop [OPTIONS]", Short: "Stop the engine of this machine", Args: command.NoArgs,
		Long: `Stop plyd and wait until it has ended. Containers run on, unless daemon.json says "live-restore": false.

Where systemd started it, systemd stops it, and its socket too. The next command that needs an engine starts it again,
unless PLY_NO_START is set.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			_, state, err := localEngine(ctx, inv)
			if err != nil {
				return err
			}
			if state.Process == nil && !state.Waiting {
				writeNotRunning(inv.Out, false)
				return nil
			}
			text := "systemd no longer listens for plyd"
			if state.Process != nil {
				text = fmt.Sprintf("plyd, process %d, has stopped", state.PID) + whatRunsOn(ctx, inv)
			}
			if err := inv.Daemon.Stop(ctx, state, time.Duration(min(seconds, 1<<20))*time.Second); err != nil {
				return command.EndOf(ctx, err)
			}
			fmt.Fprintln(inv.Out, text)
			return nil
		},
	}
	c.Flags().UintVarP(&seconds, "timeout", "t", 60, "Seconds to wait for the end of plyd")
	return c
}

// localEngine finds the engine that the command line means, which must be of this machine.
func localEngine(ctx context.Context, inv *command.Invocation) (host string, state daemon.State, err error) {
	if host, _, err = inv.Host(); err == nil {
		state, err = inv.Daemon.State(ctx, host)
	}
	return host, state, err
}

// whatRunsOn asks the engine how many containers its end leaves running, and returns that as the end of a sentence.
func whatRunsOn(ctx context.Context, inv *command.Invocation) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // an engine that hangs can be stopped, too
	defer cancel()
	api, err := inv.Running(ctx)
	if err != nil {
		return ""
	}
	var info wire.Info
	if api.Do(ctx, client.Request{Path: "/info"}, &info) != nil || info.ContainersRunning == 0 || !info.LiveRestoreEnabled {
		return ""
	}
	n := info.ContainersRunning
	if n == 1 {
		return "; 1 container runs on"
	}
	return fmt.Sprintf("; %d %s run on", n, format.Plural("container", n))
}
