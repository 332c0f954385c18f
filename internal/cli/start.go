package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/errs"
	"ply/internal/wire"
)

func (a *App) cmdStart() *cobra.Command {
	var attachOut, stdin bool
	var keys string
	c := &cobra.Command{
		Use:   "start [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Start one or more stopped containers",
		Args:  minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if attachOut || stdin {
				if len(args) > 1 {
					return errs.New(errs.Invalid, "you cannot start and attach multiple containers at once")
				}
				return a.startAttached(cmd.Context(), api, args[0], keys, stdin)
			}
			return a.startAll(cmd.Context(), api, args)
		},
	}
	c.Flags().BoolVarP(&attachOut, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	c.Flags().BoolVarP(&stdin, "interactive", "i", false, "Attach container's STDIN")
	c.Flags().StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	return c
}

func (a *App) startAll(ctx context.Context, api *client.Client, args []string) error {
	var failed []string
	for _, id := range args {
		if err := api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + id + "/start"}, nil); err != nil {
			fmt.Fprintln(a.Err, err)
			failed = append(failed, id)
			continue
		}
		fmt.Fprintln(a.Out, id)
	}
	if len(failed) > 0 {
		text := "Error: failed to start containers: "
		for i, id := range failed {
			if i > 0 {
				text += ", "
			}
			text += id
		}
		return errs.New(errs.Internal, "%s", text)
	}
	return nil
}

func (a *App) startAttached(ctx context.Context, api *client.Client, ref, keys string, stdin bool) error {
	var d wire.ContainerDetail
	if err := api.Do(ctx, client.Request{Path: "/containers/" + ref + "/json"}, &d); err != nil {
		return err
	}
	j := &job{app: a, api: api, id: d.ID, path: "ply start", tty: d.Config.Tty, keys: keys, autoRemove: d.HostConfig.AutoRemove,
		sigProxy: !d.Config.Tty, stdin: stdin && d.Config.OpenStdin, stdout: true, stderr: true}
	if err := a.checkTTY(j.stdin, j.tty); err != nil {
		return err
	}
	return j.foreground(ctx)
}

func (a *App) cmdAttach() *cobra.Command {
	var noStdin, sigProxy bool
	var keys string
	c := &cobra.Command{
		Use:   "attach [OPTIONS] CONTAINER",
		Short: "Attach local standard input, output, and error streams to a running container",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := a.engine(ctx)
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
			j := &job{app: a, api: api, id: d.ID, path: cmd.CommandPath(), tty: d.Config.Tty, keys: keys, started: true,
				sigProxy: sigProxy && !d.Config.Tty, stdin: !noStdin && d.Config.OpenStdin, stdout: true, stderr: true}
			if err := a.checkTTY(j.stdin, j.tty); err != nil {
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
