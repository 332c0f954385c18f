package run

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/errs"
)

// Run returns the command run.
func Run(inv *command.Invocation) *cobra.Command {
	r := newRunFlags()
	c := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create and run a new container from an image",
		Args:  command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runContainer(cmd.Context(), inv, cmd.CommandPath(), r, args)
		},
	}
	r.add(c.Flags(), true)
	command.NoInterspersed(c)
	return c
}

// AddFlags defines the flags of run on fs, so that a caller can tell whether a command line is one of run.
func AddFlags(fs *pflag.FlagSet) { newRunFlags().add(fs, true) }

// runContainer creates and starts a container. Unless --detach is given, it attaches before the start and returns when the container
// has ended. The end of sigctx is a signal to this process; path is the command as typed.
func runContainer(sigctx context.Context, inv *command.Invocation, path string, r *runFlags, args []string) error {
	body, err := r.build(args[0], args[1:], inv.Proxies())
	if err != nil {
		return usageOf(path, err)
	}
	if r.detach && len(r.attach.Values) > 0 {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --attach and --detach")
	}
	if !r.detach {
		if err := inv.CheckTTY(body.AttachStdin, body.Tty); err != nil {
			return &command.ExitError{Code: 1, Text: err.Error()}
		}
	}
	if inv.OutTerm != nil && body.Tty {
		w, h := inv.OutTerm.Size()
		body.HostConfig.ConsoleSize = [2]uint{uint(h), uint(w)}
	}
	api, err := inv.Engine(sigctx)
	if err != nil {
		return runError(path, 125, err)
	}
	id, err := createContainer(sigctx, inv, api, r, body)
	if err != nil {
		if sigctx.Err() != nil {
			return context.Cause(sigctx)
		}
		return runError(path, 125, err)
	}
	if r.detach {
		if err := api.Do(sigctx, client.Request{Method: "POST", Path: "/containers/" + id + "/start"}, nil); err != nil {
			return runError(path, startStatus(err), err)
		}
		fmt.Fprintln(inv.Out, id)
		return nil
	}
	j := &job{inv: inv, api: api, id: id, path: path, tty: body.Tty, autoRemove: r.host.AutoRemove, keys: r.detachKeys, sigProxy: r.sigProxy && !body.Tty,
		stdin: body.AttachStdin, stdout: body.AttachStdout, stderr: body.AttachStderr}
	return j.foreground(sigctx)
}

// runError returns err in docker's form, with the exit code of run.
func runError(path string, code int, err error) error {
	var ee *command.ExitError
	if errors.As(err, &ee) {
		return err
	}
	return &command.ExitError{Code: code, Text: fmt.Sprintf("ply: %v\n\nRun '%s --help' for more information", err, path)}
}
