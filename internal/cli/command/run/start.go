package run

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Start returns the command start.
func Start(inv *command.Invocation) *cobra.Command {
	var attachOut, stdin bool
	var keys string
	var from checkpoint
	c := &cobra.Command{
		Use:   "start [OPTIONS] CONTAINER [CONTAINER...]",
		Short: "Start one or more stopped containers",
		Args:  command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if from.name == "" && from.dir != "" {
				return errs.New(errs.Invalid, "--checkpoint-dir needs --checkpoint")
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			if attachOut || stdin {
				if len(args) > 1 {
					return errs.New(errs.Invalid, "you cannot start and attach multiple containers at once")
				}
				return startAttached(cmd.Context(), inv, api, args[0], keys, stdin, from)
			}
			if from.name != "" && len(args) > 1 {
				return errs.New(errs.Invalid, "you cannot restore multiple containers at once")
			}
			return startAll(cmd.Context(), inv, api, args, from)
		},
	}
	c.Flags().BoolVarP(&attachOut, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	c.Flags().BoolVarP(&stdin, "interactive", "i", false, "Attach container's STDIN")
	c.Flags().StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	c.Flags().StringVar(&from.name, "checkpoint", "", "Restore from this checkpoint")
	c.Flags().StringVar(&from.dir, "checkpoint-dir", "", "Use a custom checkpoint storage directory (absolute path on the engine's host)")
	return c
}

// checkpoint is what a container is started from; the zero value is its program.
type checkpoint struct{ name, dir string }

// query returns the parameters of a start.
func (p checkpoint) query() url.Values {
	q := url.Values{}
	if p.name != "" {
		q.Set("checkpoint", p.name)
	}
	if p.dir != "" {
		q.Set("checkpoint-dir", p.dir)
	}
	return q
}

// startAll starts containers and prints the names of those that started.
func startAll(ctx context.Context, inv *command.Invocation, api *client.Client, args []string, from checkpoint) error {
	var failed []string
	for _, id := range args {
		if err := api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + id + "/start", Query: from.query()}, nil); err != nil {
			fmt.Fprintln(inv.Err, err)
			failed = append(failed, id)
			continue
		}
		if from.name == "" { // Docker's client does not print the name of a container that it restores
			fmt.Fprintln(inv.Out, id)
		}
	}
	if len(failed) > 0 {
		return errs.New(errs.Internal, "Error: failed to start containers: %s", strings.Join(failed, ", "))
	}
	return nil
}

// startAttached starts one container in the foreground.
func startAttached(ctx context.Context, inv *command.Invocation, api *client.Client, ref, keys string, stdin bool, from checkpoint) error {
	var d wire.ContainerDetail
	if err := api.Do(ctx, client.Request{Path: "/containers/" + ref + "/json"}, &d); err != nil {
		return err
	}
	j := &job{inv: inv, api: api, id: d.ID, path: "ply start", tty: d.Config.Tty, keys: keys, autoRemove: d.HostConfig.AutoRemove,
		sigProxy: !d.Config.Tty, stdin: stdin && d.Config.OpenStdin, stdout: true, stderr: true, from: from}
	if err := inv.CheckTTY(j.stdin, j.tty); err != nil {
		return err
	}
	return j.foreground(ctx)
}
