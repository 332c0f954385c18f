package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

func (a *App) cmdRun() *cobra.Command {
	r := newRunFlags()
	c := &cobra.Command{
		Use:   "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create and run a new container from an image",
		Args:  minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), cmd.CommandPath(), r, args)
		},
	}
	r.add(c.Flags(), true)
	noInterspersed(c)
	return c
}

func (a *App) cmdCreate() *cobra.Command {
	r := newRunFlags()
	c := &cobra.Command{
		Use:   "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Short: "Create a new container",
		Args:  minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := r.build(args[0], args[1:], a.proxies())
			if err != nil {
				return usageOf(cmd.CommandPath(), err)
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			id, err := a.create(cmd.Context(), api, r, body)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, id)
			return nil
		},
	}
	r.add(c.Flags(), false)
	noInterspersed(c)
	return c
}

func (a *App) proxies() map[string]string {
	host, _, err := a.host()
	if err != nil {
		return nil
	}
	return a.config().ProxyEnv(host)
}

// runError gives an error of run docker's form and exit code.
func runError(path string, code int, err error) error {
	var ee *exitError
	if errors.As(err, &ee) {
		return err
	}
	return &exitError{code, fmt.Sprintf("ply: %v\n\nRun '%s --help' for more information", err, path)}
}

// run creates, attaches, registers the wait, starts, and stays until the end unless detached.
func (a *App) run(sigctx context.Context, path string, r *runFlags, args []string) error {
	body, err := r.build(args[0], args[1:], a.proxies())
	if err != nil {
		return usageOf(path, err)
	}
	if r.detach && len(r.attach.Values) > 0 {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --attach and --detach")
	}
	if !r.detach {
		if err := a.checkTTY(body.AttachStdin, body.Tty); err != nil {
			return &exitError{1, err.Error()}
		}
	}
	if a.OutTerm != nil && body.Tty {
		w, h := a.OutTerm.Size()
		body.HostConfig.ConsoleSize = [2]uint{uint(h), uint(w)}
	}
	api, err := a.engine(sigctx)
	if err != nil {
		return runError(path, 125, err)
	}
	id, err := a.create(sigctx, api, r, body)
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
		fmt.Fprintln(a.Out, id)
		return nil
	}
	j := &job{app: a, api: api, id: id, path: path, tty: body.Tty, autoRemove: r.rm, keys: r.detachKeys, sigProxy: r.sigProxy && !body.Tty,
		stdin: body.AttachStdin, stdout: body.AttachStdout, stderr: body.AttachStderr}
	return j.foreground(sigctx)
}

// create pulls when it must and may, creates, writes the cidfile, prints warnings.
func (a *App) create(ctx context.Context, api *client.Client, r *runFlags, body *wire.CreateBody) (string, error) {
	if _, err := parseName(body.Image); err != nil && !isID(body.Image) {
		return "", err
	}
	cid, err := openCIDFile(r.cidfile)
	if err != nil {
		return "", err
	}
	defer cid.close()
	switch r.pull {
	case "always", "missing", "never", "":
	default:
		return "", errs.New(errs.Invalid, "invalid pull option: '%s': must be one of \"always\", \"missing\" or \"never\"", r.pull)
	}
	if r.pull == "always" {
		if err := a.pullForRun(ctx, api, r, body.Image); err != nil {
			return "", err
		}
	}
	if r.mac != "" && !api.AtLeast(ctx, "1.44") {
		body.MacAddress = r.mac // where older engines look for it
	}
	q := url.Values{}
	if r.name != "" {
		q.Set("name", r.name)
	}
	if r.platform != "" {
		q.Set("platform", r.platform)
	}
	req := client.Request{Method: "POST", Path: "/containers/create", Query: q, Body: body}
	var out wire.Created
	err = api.Do(ctx, req, &out)
	if client.IsNotFound(err) && r.pull != "never" && r.pull != "always" && missingImage(err) {
		if !r.quiet {
			fmt.Fprintf(a.Err, "Unable to find image '%s' locally\n", withTag(body.Image))
		}
		if perr := a.pullForRun(ctx, api, r, body.Image); perr != nil {
			return "", perr
		}
		err = api.Do(ctx, req, &out)
	}
	if err != nil {
		return "", err
	}
	for _, w := range out.Warnings {
		fmt.Fprintf(a.Err, "WARNING: %s\n", w)
	}
	return out.ID, cid.write(out.ID)
}

// isID reports a full image ID, which is no valid name.
func isID(s string) bool {
	s = strings.TrimPrefix(s, "sha256:")
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// cidFile is --cidfile: it must not exist before, and does not stay behind empty.
type cidFile struct {
	f       *os.File
	written bool
}

func openCIDFile(path string) (*cidFile, error) {
	if path == "" {
		return &cidFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, errs.New(errs.Exists, "container ID file found, make sure the other container isn't running or delete %s", path)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "failed to create the container ID file: %w", err)
	}
	return &cidFile{f: f}, nil
}

func (c *cidFile) write(id string) error {
	if c.f == nil {
		return nil
	}
	if _, err := io.WriteString(c.f, id); err != nil {
		return errs.New(errs.Invalid, "failed to write the container ID (%s) to file: %w", id, err)
	}
	c.written = true
	return nil
}

func (c *cidFile) close() {
	if c.f == nil {
		return
	}
	c.f.Close()
	if !c.written {
		os.Remove(c.f.Name())
	}
}

// job is a container run in the foreground.
type job struct {
	app                   *App
	api                   *client.Client
	id, path              string
	tty, autoRemove       bool
	sigProxy              bool
	keys                  string
	stdin, stdout, stderr bool
	started               bool // attach to what runs already: no start
}

// foreground attaches, waits, starts; it ends with the container's exit code as *exitError, or nil for 0.
func (j *job) foreground(ctx context.Context) error {
	if j.sigProxy {
		ctx = context.WithoutCancel(ctx) // signals are the container's
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if j.sigProxy {
		defer proxySignals(ctx, j.api, j.id)()
	}
	keys, err := opts.DetachKeys(j.app.detachKeys(j.keys))
	if err != nil {
		return usageOf(j.path, err)
	}
	var s *session
	streams := make(chan error, 1)
	if j.stdin || j.stdout || j.stderr {
		conn, err := j.attach(ctx)
		if err != nil {
			return runError(j.path, 125, err)
		}
		defer conn.Close()
		s = &session{app: j.app, conn: conn, tty: j.tty, stdin: j.stdin, stdout: j.stdout, stderr: j.stderr}
		if j.tty {
			s.keys = keys
		}
		// raw mode before the container writes its first byte, restored before we print anything of our own
		defer j.app.InTerm.Restore()
		go func() { streams <- s.run(ctx) }()
	} else {
		streams <- nil
	}
	wait, err := j.wait(ctx)
	if err != nil {
		return runError(j.path, 125, err)
	}
	if err := j.start(ctx); err != nil {
		cancel()
		j.app.InTerm.Restore()
		if j.autoRemove {
			<-wait // the engine removes it
		}
		return runError(j.path, startStatus(err), err)
	}
	if j.tty && j.app.OutTerm != nil {
		defer j.app.followSize(ctx, j.api, "/containers/"+j.id+"/resize", j.started)()
	}
	serr := <-streams
	j.app.InTerm.Restore()
	if serr != nil {
		return serr
	}
	if j.detached(ctx, s) {
		return nil
	}
	res := <-wait
	return res.status(j.app)
}

// detached reports that the stream ended because of the detach keys and not with the container.
func (j *job) detached(ctx context.Context, s *session) bool {
	if s == nil || !s.detached.Load() {
		return false
	}
	var d wire.ContainerDetail
	if err := j.api.Do(ctx, client.Request{Path: "/containers/" + j.id + "/json"}, &d); err != nil {
		return false
	}
	return d.State.Running
}

func (j *job) start(ctx context.Context) error {
	if j.started {
		return nil
	}
	return j.api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + j.id + "/start"}, nil)
}

func (j *job) attach(ctx context.Context) (*client.Conn, error) {
	return attach(ctx, j.api, j.id, j.app.detachKeys(j.keys), j.stdin, j.stdout, j.stderr)
}

func (a *App) detachKeys(flag string) string {
	if flag != "" {
		return flag
	}
	return a.config().DetachKeys()
}

func attach(ctx context.Context, api *client.Client, id, keys string, stdin, stdout, stderr bool) (*client.Conn, error) {
	q := url.Values{"stream": {"1"}}
	for name, on := range map[string]bool{"stdin": stdin, "stdout": stdout, "stderr": stderr} {
		if on {
			q.Set(name, "1")
		}
	}
	if keys != "" {
		q.Set("detachKeys", keys)
	}
	return api.Hijack(ctx, client.Request{Path: "/containers/" + id + "/attach", Query: q})
}

// ending is the end of a container, or why it is not known.
type ending struct {
	wire.WaitResult
	err error
}

func (e ending) status(a *App) error {
	if e.err != nil {
		fmt.Fprintf(a.Err, "Error waiting for container: %v\n", e.err)
		return &exitError{code: 125}
	}
	if e.Error != nil && e.Error.Message != "" {
		fmt.Fprintf(a.Err, "Error waiting for container: %v\n", e.Error.Message)
		return &exitError{code: 125}
	}
	if e.StatusCode != 0 {
		return &exitError{code: e.StatusCode}
	}
	return nil
}

// wait is registered in the engine when it returns: the answer's header has come.
func (j *job) wait(ctx context.Context) (<-chan ending, error) {
	cond := "next-exit"
	if j.autoRemove {
		cond = "removed"
	} else if j.started {
		cond = "not-running"
	}
	return waitFor(ctx, j.api, j.id, cond)
}

func waitFor(ctx context.Context, api *client.Client, id, cond string) (<-chan ending, error) {
	q := url.Values{}
	if cond != "" {
		q.Set("condition", cond)
	}
	resp, err := api.Open(ctx, client.Request{Method: http.MethodPost, Path: "/containers/" + id + "/wait", Query: q})
	if err != nil {
		return nil, err
	}
	out := make(chan ending, 1)
	go func() {
		defer resp.Body.Close()
		var e ending
		e.err = json.NewDecoder(resp.Body).Decode(&e.WaitResult)
		out <- e
	}()
	return out, nil
}
