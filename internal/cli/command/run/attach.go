package run

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Attach returns the command attach.
func Attach(inv *command.Invocation) *cobra.Command {
	var noStdin, sigProxy bool
	var keys string
	c := &cobra.Command{
		Use:   "attach [OPTIONS] CONTAINER",
		Short: "Attach local standard input, output, and error streams to a running container",
		Args:  command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			var d wire.ContainerDetail
			if err := api.Do(ctx, client.Request{Path: "/containers/" + args[0] + "/json"}, &d); err != nil {
				return err
			}
			switch {
			case !d.State.Running:
				return errs.New(errs.Precondition, "You cannot attach to a stopped container, start it first")
			case d.State.Paused:
				return errs.New(errs.Precondition, "You cannot attach to a paused container, unpause it first")
			case d.State.Restarting:
				return errs.New(errs.Precondition, "You cannot attach to a restarting container, wait until it is running")
			}
			j := &job{inv: inv, api: api, id: d.ID, path: cmd.CommandPath(), tty: d.Config.Tty, keys: keys, started: true,
				sigProxy: sigProxy && !d.Config.Tty, stdin: !noStdin && d.Config.OpenStdin, stdout: true, stderr: true, detachResult: errDetached}
			if err := inv.CheckTTY(j.stdin, j.tty); err != nil {
				return err
			}
			return j.foreground(ctx)
		},
	}
	c.Flags().BoolVar(&noStdin, "no-stdin", false, "Do not attach STDIN")
	c.Flags().BoolVar(&sigProxy, "sig-proxy", true, "Proxy all received signals to the process")
	c.Flags().StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	return c
}
