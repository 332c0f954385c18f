package cli

import (
	"context"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

type execFlags struct {
	detach, stdin, tty, privileged bool
	keys, user, workdir            string
	env, envFile                   opts.List
}

func (a *App) cmdExec() *cobra.Command {
	f := &execFlags{env: opts.List{Check: opts.Env}}
	c := &cobra.Command{
		Use:   "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		Short: "Execute a command in a running container",
		Args:  minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd.Context(), f, args[0], args[1:])
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
	noInterspersed(c)
	return c
}

func (a *App) exec(ctx context.Context, f *execFlags, container string, command []string) error {
	env, err := opts.EnvFiles(f.envFile.Values)
	if err != nil {
		return err
	}
	keys, err := opts.DetachKeys(a.detachKeys(f.keys))
	if err != nil {
		return err
	}
	body := wire.ExecBody{User: f.user, Privileged: f.privileged, Tty: f.tty, Cmd: command, WorkingDir: f.workdir,
		Env: append(env, f.env.Values...), DetachKeys: a.detachKeys(f.keys)}
	if !f.detach {
		body.AttachStdout, body.AttachStderr, body.AttachStdin = true, true, f.stdin
		if err := a.checkTTY(f.stdin, f.tty); err != nil {
			return err
		}
	}
	if f.tty && a.OutTerm != nil {
		w, h := a.OutTerm.Size()
		body.ConsoleSize = &[2]uint{uint(h), uint(w)}
	}
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	var created struct {
		ID string `json:"Id"`
	}
	// docker looks at the container first, so that the error is about the container
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
	s := &session{app: a, conn: conn, tty: f.tty, stdin: f.stdin, stdout: true, stderr: true}
	if f.tty {
		s.keys = keys
		if a.OutTerm != nil {
			defer a.followSize(ctx, api, path+"/resize", false)()
		}
	}
	if err := s.run(ctx); err != nil {
		return err
	}
	a.InTerm.Restore()
	return a.execStatus(ctx, api, path, s)
}

// execStatus gives the exit code of a finished exec.
func (a *App) execStatus(ctx context.Context, api *client.Client, path string, s *session) error {
	var d wire.ExecDetail
	if err := api.Do(ctx, client.Request{Path: path + "/json"}, &d); err != nil {
		return err
	}
	if d.Running && s.detached.Load() {
		return nil
	}
	if d.ExitCode != nil && *d.ExitCode != 0 {
		return &exitError{code: *d.ExitCode}
	}
	return nil
}
