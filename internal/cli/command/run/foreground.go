package run

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"ply/internal/cli/attach"
	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// job is a container that runs in the foreground of this process.
type job struct {
	inv                   *command.Invocation
	api                   *client.Client
	id                    string
	path                  string // the command, for errors
	tty, autoRemove       bool   // of the container
	sigProxy              bool   // forward signals to the container
	keys                  string // value of --detach-keys
	stdin, stdout, stderr bool   // which streams to attach
	started               bool   // the container runs already
}

// foreground attaches to the container, starts it and waits for its end. It returns the exit code as a *command.ExitError, or nil for 0
// and after the detach keys.
func (j *job) foreground(ctx context.Context) error {
	if j.sigProxy {
		ctx = context.WithoutCancel(ctx) // signals end the container, not this process
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var caught <-chan struct{}
	if j.sigProxy {
		var stop func()
		caught, stop = attach.ProxySignals(ctx, j.api, j.id)
		defer stop()
	}
	keys, err := opts.DetachKeys(j.inv.DetachKeys(j.keys))
	if err != nil {
		return usageOf(j.path, err)
	}
	var s *attach.Session
	streams := make(chan error, 1)
	if j.stdin || j.stdout || j.stderr {
		conn, err := j.attach(ctx)
		if err != nil {
			return runError(j.path, 125, err)
		}
		defer conn.Close()
		s = &attach.Session{Local: &j.inv.Streams, Conn: conn, TTY: j.tty, Stdin: j.stdin, Stdout: j.stdout, Stderr: j.stderr}
		if j.tty {
			s.Keys = keys
		}
		// The terminal is in raw mode before the container writes its first byte, and restored before this process prints a line.
		defer j.inv.InTerm.Restore()
		go func() { streams <- s.Run(ctx) }()
	} else {
		streams <- nil
	}
	wait, err := j.wait(ctx)
	if err != nil {
		return runError(j.path, 125, err)
	}
	if err := j.start(ctx); err != nil {
		cancel()
		j.inv.InTerm.Restore()
		if j.autoRemove {
			<-wait // until the engine has removed it
		}
		return runError(j.path, startStatus(err), err)
	}
	if caught != nil {
		<-caught
	}
	if j.tty && j.inv.OutTerm != nil {
		defer attach.FollowSize(ctx, j.api, j.inv.OutTerm, "/containers/"+j.id+"/resize", j.started)()
	}
	serr := <-streams
	j.inv.InTerm.Restore()
	if serr != nil {
		return serr
	}
	if j.detached(ctx, s) {
		return nil
	}
	res := <-wait
	return exitStatus(j.inv.Err, res)
}

// detached reports whether the stream ended because of the detach keys, and not because the container ended.
func (j *job) detached(ctx context.Context, s *attach.Session) bool {
	if s == nil || !s.Detached() {
		return false
	}
	var d wire.ContainerDetail
	if err := j.api.Do(ctx, client.Request{Path: "/containers/" + j.id + "/json"}, &d); err != nil {
		return false
	}
	return d.State.Running
}

// start starts the container, unless it runs already.
func (j *job) start(ctx context.Context) error {
	if j.started {
		return nil
	}
	return j.api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + j.id + "/start"}, nil)
}

// attach opens the connection for the streams of the container.
func (j *job) attach(ctx context.Context) (*client.Conn, error) {
	q := url.Values{"stream": {"1"}}
	for name, on := range map[string]bool{"stdin": j.stdin, "stdout": j.stdout, "stderr": j.stderr} {
		if on {
			q.Set(name, "1")
		}
	}
	if keys := j.inv.DetachKeys(j.keys); keys != "" {
		q.Set("detachKeys", keys)
	}
	return j.api.Hijack(ctx, client.Request{Path: "/containers/" + j.id + "/attach", Query: q})
}

// wait registers a wait for the end of the container.
func (j *job) wait(ctx context.Context) (<-chan attach.Ending, error) {
	cond := "next-exit"
	if j.autoRemove {
		cond = "removed"
	} else if j.started {
		cond = "not-running"
	}
	return attach.Wait(ctx, j.api, j.id, cond)
}

// exitStatus returns the exit code of an ended container as a *command.ExitError, or nil for 0. When the end is not known, it says
// so on stderr.
func exitStatus(stderr io.Writer, e attach.Ending) error {
	if e.Err != nil {
		fmt.Fprintf(stderr, "Error waiting for container: %v\n", e.Err)
		return &command.ExitError{Code: 125}
	}
	if e.Error != nil && e.Error.Message != "" {
		fmt.Fprintf(stderr, "Error waiting for container: %v\n", e.Error.Message)
		return &command.ExitError{Code: 125}
	}
	if e.StatusCode != 0 {
		return &command.ExitError{Code: e.StatusCode}
	}
	return nil
}

// startStatus returns the exit code of run for an error of create or start. The API answers all of these errors with the same status, so
// only the text tells them apart, as in Docker's client.
func startStatus(err error) int {
	s := err.Error()
	switch {
	case strings.Contains(s, "executable file not found"), strings.Contains(s, "no such file or directory"),
		strings.Contains(s, "system cannot find the file specified"):
		return 127
	case strings.Contains(s, "permission denied"), strings.Contains(s, "is a directory"):
		return 126
	}
	return 125
}
