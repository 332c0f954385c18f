package run

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"ply/internal/cli/attach"
	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
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
	from                  checkpoint
	started               bool  // the container runs already
	detachResult          error // what foreground returns after the detach keys

	token string // identifies this process when it attaches again

	mu     sync.Mutex
	ending <-chan attach.Ending // of the newest wait
}

// foreground attaches to the container, starts it and waits for its end. It returns the exit code as a *command.ExitError, or nil for 0,
// and detachResult after the detach keys.
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
		conn, err := j.attach(ctx, nil)
		if err != nil {
			return runError(j.path, 125, err)
		}
		defer conn.Close()
		s = &attach.Session{Local: &j.inv.Streams, Conn: conn, TTY: j.tty, Stdin: j.stdin, Stdout: j.stdout, Stderr: j.stderr, Reopen: j.reopen}
		if j.tty {
			s.Keys = keys
		}
		// The terminal is in raw mode before the container writes its first byte, and restored before this process prints a line.
		defer j.inv.InTerm.Restore()
		go func() { streams <- s.Run(ctx) }()
	} else {
		streams <- nil
	}
	if err := j.wait(ctx); err != nil {
		return runError(j.path, 125, err)
	}
	if err := j.start(ctx); err != nil {
		cancel()
		j.inv.InTerm.Restore()
		if j.autoRemove {
			<-j.newest() // until the engine has removed it
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
		return j.detachResult
	}
	end := j.end(ctx)
	tellOOM(j.inv.Err, end)
	return exitStatus(j.inv.Err, end)
}

// tellOOM says that the kernel killed the container for its memory: the exit code alone is that of any SIGKILL.
func tellOOM(stderr io.Writer, end attach.Ending) {
	if end.OOMKilled && end.StatusCode == 128+int(syscall.SIGKILL) {
		fmt.Fprintln(stderr, "ply: the container was killed: it ran out of memory")
	}
}

// errDetached is the result of attach and exec after the detach keys, as with Docker's client; run and start succeed.
var errDetached = &command.ExitError{Code: 1, Text: "read escape sequence"}

// newest returns the channel of the newest wait.
func (j *job) newest() <-chan attach.Ending {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ending
}

// end waits for the end of the container, also when the engine is restarted meanwhile.
func (j *job) end(ctx context.Context) attach.Ending {
	for {
		ch := j.newest()
		e := <-ch
		if e.Err == nil || !client.Cut(e.Err) || ctx.Err() != nil {
			return e
		}
		if j.newest() != ch { // reopen has registered another wait
			continue
		}
		err := j.api.AwaitReturn(ctx, j.inv.Err)
		if err == nil {
			err = j.wait(ctx)
		}
		if err != nil {
			return attach.Ending{Err: err}
		}
	}
}

// reopen attaches again when the engine was away. The wait comes first: the container may end as soon as its output was taken.
func (j *job) reopen(ctx context.Context, behind wire.Position, cut time.Time) (*client.Conn, error) {
	for {
		if err := j.api.AwaitReturn(ctx, j.inv.Err); err != nil {
			return nil, err
		}
		err := j.wait(ctx)
		var conn *client.Conn
		if err == nil {
			q := url.Values{"position": {behind.String()}, "cut": {strconv.FormatFloat(float64(cut.UnixNano())/1e9, 'f', 9, 64)}}
			conn, err = j.attach(ctx, q)
		}
		if err == nil || !client.Cut(err) || ctx.Err() != nil {
			if err != nil {
				err = fmt.Errorf("the engine was away, and the rest of the output cannot be shown: %w", err)
			}
			return conn, err
		}
	}
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
	for {
		err := j.api.Do(ctx, client.Request{Method: "POST", Path: "/containers/" + j.id + "/start", Query: j.from.query()}, nil)
		if err == nil || !client.Cut(err) || ctx.Err() != nil {
			return err
		}
		// The engine went away during the start. Starting a container that runs does nothing.
		if err := j.api.AwaitReturn(ctx, j.inv.Err); err != nil {
			return err
		}
	}
}

// attach opens the connection for the streams of the container. more are further parameters.
func (j *job) attach(ctx context.Context, more url.Values) (*client.Conn, error) {
	if j.token == "" {
		j.token = rand.Text()
	}
	q := url.Values{"stream": {"1"}, "resumable": {j.token}}
	maps.Copy(q, more)
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

// wait registers a wait for the end of the container. Further calls are for engines that were started since.
func (j *job) wait(ctx context.Context) error {
	cond := "next-exit"
	if j.autoRemove {
		cond = "removed"
	} else if j.started {
		cond = "not-running"
	}
	again := j.newest() != nil
	if again && cond == "next-exit" {
		var d wire.ContainerDetail
		if err := j.api.Do(ctx, client.Request{Path: "/containers/" + j.id + "/json"}, &d); err != nil {
			return err
		}
		if d.State.Status != "created" { // its end may have been recorded already
			cond = "not-running"
		}
	}
	ch, err := attach.Wait(ctx, j.api, j.id, cond)
	if again && client.IsNotFound(err) {
		err = errs.New(errs.NotFound, "the container ended and was removed while the engine was away: its exit code is not known")
	}
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ending = ch
	return nil
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
