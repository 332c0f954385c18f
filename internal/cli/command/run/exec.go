package run

import (
	"context"

	"github.com/spf13/cobra"

	"ply/internal/cli/attach"
	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// execFlags are the flags of exec.
type execFlags struct {
	detach, stdin, tty, privileged bool
	keys, user, workdir            string
	env, envFile                   opts.List
}

// Exec returns the command exec.
func Exec(inv *command.Invocation) *cobra.Command {
	f := &execFlags{env: opts.List{Check: opts.Env}}
	c := &cobra.Command{
		Use:   "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		Short: "Execute a command in a running container",
		Args:  command.MinArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return execute(cmd.Context(), inv, f, args[0], args[1:])
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&f.detach, "detach", "d", false, "Detached mode: run command in the background")
	fs.StringVar(&f.keys, "detach-keys", "", "Override the key sequence for detaching a container")
	fs.VarP(&f.env, "env", "e", "Set environment variables")
	fs.Var(&f.envFile, "env-file", "Read in a file of environment variables")
	fs.BoolVarP(&f.stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.BoolVar(&f.privileged, "privileged", false, "Give extended privileges to the command")
	fs.BoolVarP(&f.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.StringVarP(&f.user, "user", "u", "", `Username or UID (format: "<name|uid>[:<group|gid>]")`)
	fs.StringVarP(&f.workdir, "workdir", "w", "", "Working directory inside the container")
	command.NoInterspersed(c)
	return c
}

// execute runs argv in a running container.
func execute(ctx context.Context, inv *command.Invocation, f *execFlags, container string, argv []string) error {
	env, err := opts.EnvFiles(f.envFile.Values)
	if err != nil {
		return err
	}
	keys, err := opts.DetachKeys(inv.DetachKeys(f.keys))
	if err != nil {
		return err
	}
	body := wire.ExecBody{User: f.user, Privileged: f.privileged, Tty: f.tty, Cmd: argv, WorkingDir: f.workdir,
		Env: append(env, f.env.Values...), DetachKeys: inv.DetachKeys(f.keys)}
	if !f.detach {
		body.AttachStdout, body.AttachStderr, body.AttachStdin = true, true, f.stdin
		if err := inv.CheckTTY(f.stdin, f.tty); err != nil {
			return err
		}
	}
	if f.tty && inv.OutTerm != nil {
		w, h := inv.OutTerm.Size()
		body.ConsoleSize = &[2]uint{uint(h), uint(w)}
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	var created wire.ExecCreated
	// Ask for the container first, as docker does, so that an error is about the container.
	if err := api.Do(ctx, client.Request{Path: "/containers/" + container + "/json"}, nil); err != nil {
		return err
	}
	if err := api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + container + "/exec", Body: body}, &created); err != nil {
		return err
	}
	path := "/exec/" + created.ID
	start := wire.ExecStart{Detach: f.detach, Tty: f.tty, ConsoleSize: body.ConsoleSize}
	if f.detach {
		return api.Do(ctx, client.Request{Method: "POST", Path: path + "/start", Body: start}, nil)
	}
	conn, err := api.Hijack(ctx, client.Request{Path: path + "/start", Body: start})
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &attach.Session{Local: &inv.Streams, Conn: conn, TTY: f.tty, Stdin: f.stdin, Stdout: true, Stderr: true}
	if f.tty {
		s.Keys = keys
		if inv.OutTerm != nil {
			defer attach.FollowSize(ctx, api, inv.OutTerm, path+"/resize", false)()
		}
	}
	if err := s.Run(ctx); err != nil {
		return err
	}
	inv.InTerm.Restore()
	return execStatus(ctx, api, path, s.Detached())
}

// execStatus returns the exit code of a finished exec as a *command.ExitError, nil for 0, errDetached for one that runs on after the detach
// keys, and another error for one that runs on for another reason.
func execStatus(ctx context.Context, api *client.Client, path string, detached bool) error {
	var d wire.ExecDetail
	if err := api.Do(ctx, client.Request{Path: path + "/json"}, &d); err != nil {
		return err
	}
	if d.Running {
		if detached {
			return errDetached
		}
		return errs.New(errs.Unavailable, "exec: the engine has closed the connection, but the command still runs")
	}
	if d.ExitCode != nil && *d.ExitCode != 0 {
		return &command.ExitError{Code: *d.ExitCode}
	}
	return nil
}
