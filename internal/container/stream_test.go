package container_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/container"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/errs"
)

// buffer is a bytes.Buffer for concurrent use.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// attach attaches in the background; the channel receives Attach's result.
func (w *world) attach(id string, o session.AttachOptions) <-chan error {
	w.t.Helper()
	ready := make(chan struct{})
	done := make(chan error, 1)
	o.Stream = true
	o.Ready = func() error { close(ready); return nil }
	go func() { done <- w.sessions.Attach(context.Background(), id, o) }()
	select {
	case <-ready:
	case err := <-done:
		w.t.Fatalf("attach: %v", err)
	case <-time.After(patience):
		w.t.Fatal("attach is not ready")
	}
	return done
}

func result(t testing.TB, c <-chan error) error {
	t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(patience):
		t.Fatal("no end")
		return nil
	}
}

// A client that attaches before the start receives all output, and its input reaches the process.
func TestAttachBeforeStart(t *testing.T) {
	w := newWorld(t)
	spec := sh("echo first; cat; echo last >&2; exit 4")
	spec.OpenStdin, spec.StdinOnce, spec.AttachStdin = true, true, true
	id := w.create(spec)
	var out, errOut buffer
	in, typed := io.Pipe()
	done := w.attach(id, session.AttachOptions{Stdin: in, Stdout: &out, Stderr: &errOut})
	var second buffer
	done2 := w.attach(id, session.AttachOptions{Stdout: &second})
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	if _, err := io.WriteString(typed, "through\n"); err != nil {
		t.Fatal(err)
	}
	typed.Close()
	if err := errors.Join(result(t, done), result(t, done2)); err != nil {
		t.Fatal(err)
	}
	if e := recv(t, exit); e.Code != 4 {
		t.Errorf("exit %+v", e)
	}
	if out.String() != "first\nthrough\n" || errOut.String() != "last\n" || second.String() != "first\nthrough\n" {
		t.Errorf("got %q %q %q", out.String(), errOut.String(), second.String())
	}
}

func TestDetachKeys(t *testing.T) {
	w := newWorld(t)
	spec := sh("stty -echo; echo ready; while read l; do echo got-$l; done")
	spec.OpenStdin, spec.Tty, spec.AttachStdin = true, true, true
	id := w.create(spec)
	w.start(id)
	w.waitLog(id, "ready")
	var out buffer
	in, typed := io.Pipe()
	done := w.attach(id, session.AttachOptions{Stdin: in, Stdout: &out})
	if _, err := io.WriteString(typed, "one\n"); err != nil {
		t.Fatal(err)
	}
	w.eventually("echo of one", func() bool { return strings.Contains(out.String(), "got-one") })
	if _, err := io.WriteString(typed, "\x10\x11"); err != nil {
		t.Fatal(err)
	}
	if err := result(t, done); !errors.Is(err, session.ErrDetached) {
		t.Fatalf("attach ended with %v", err)
	}
	if st := w.get(id).State.Status; st != container.StatusRunning {
		t.Errorf("container is %s after a detach", st)
	}
	in, typed = io.Pipe()
	done = w.attach(id, session.AttachOptions{Stdin: in, Stdout: &out, DetachKeys: "ctrl-x,x"})
	if _, err := io.WriteString(typed, "\x18x"); err != nil {
		t.Fatal(err)
	}
	if err := result(t, done); !errors.Is(err, session.ErrDetached) {
		t.Fatalf("attach with own keys ended with %v", err)
	}
	wantErr(t, w.sessions.Attach(context.Background(), id, session.AttachOptions{DetachKeys: "ctrl-xx", Stream: true}), errs.Invalid, "Invalid detach keys (ctrl-xx) provided")
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.up(func(s *spec.Spec) { s.Env = []string{"OF=container"}; s.WorkingDir = "/made/here" })
	for _, c := range []struct {
		spec spec.ExecSpec
		code int
		out  string
	}{
		{spec.ExecSpec{Cmd: []string{"sh", "-c", "echo a; exit 9"}}, 9, "a\n"},
		{spec.ExecSpec{Cmd: []string{"sh", "-c", "echo $OF $MINE $FROM"}, Env: []string{"MINE=exec"}}, 0, "container exec image\n"},
		{spec.ExecSpec{Cmd: []string{"id", "-u"}, User: "user"}, 0, "1000\n"},
		{spec.ExecSpec{Cmd: []string{"sh", "-c", "pwd"}}, 0, "/made/here\n"},
		{spec.ExecSpec{Cmd: []string{"sh", "-c", "pwd"}, WorkingDir: "/tmp"}, 0, "/tmp\n"},
		{spec.ExecSpec{Cmd: []string{"sh", "-c", "test -t 1 && echo tty"}, Tty: true}, 0, "tty\r\n"},
	} {
		c.spec.AttachStdout, c.spec.AttachStderr = true, true
		if code, out := w.execSpec(id, c.spec); code != c.code || out != c.out {
			t.Errorf("%v: %d %q, want %d %q", c.spec.Cmd, code, out, c.code, c.out)
		}
	}
	if code, msg := w.exec(id, "nothing-here"); code != 127 || !strings.Contains(msg, "executable file not found in $PATH") {
		t.Errorf("missing program: %d %q", code, msg)
	}
	for _, dir := range []string{"/proc/self/fd/7", "/proc/1/cwd", "relative"} {
		_, err := w.sessions.ExecCreate(ctx, id, spec.ExecSpec{Cmd: []string{"true"}, WorkingDir: dir})
		wantErr(t, err, errs.Invalid, "the working directory")
	}
	e, err := w.sessions.ExecCreate(ctx, id, spec.ExecSpec{Cmd: []string{"sh", "-c", "echo x > /tmp/detached"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.sessions.ExecStart(ctx, e, session.AttachOptions{}, true, [2]uint{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("detached exec", func() bool {
		x, err := w.sessions.ExecGet(ctx, e)
		return err == nil && x.ExitCode != nil && *x.ExitCode == 0
	})
	wantErr(t, w.sessions.ExecStart(ctx, e, session.AttachOptions{}, true, [2]uint{}), errs.Conflict, "has already run")
	if _, out := w.exec(id, "cat", "/tmp/detached"); out != "x\n" {
		t.Errorf("detached exec left %q", out)
	}
	if err := w.s.Kill(ctx, id, "KILL"); err != nil {
		t.Fatal(err)
	}
	_, err = w.sessions.ExecCreate(ctx, id, spec.ExecSpec{Cmd: []string{"true"}})
	wantErr(t, err, errs.Conflict, "is not running")
	_, err = w.sessions.ExecGet(ctx, "nope")
	wantErr(t, err, errs.NotFound, "No such exec instance: nope")
}

// Many short execs and aborted attaches leave no open descriptor.
func TestExecLeaksNothing(t *testing.T) {
	w := newWorld(t)
	id := w.up(func(s *spec.Spec) { s.OpenStdin = true })
	round := func() {
		w.exec(id, "true")
		ctx, cancel := context.WithCancel(context.Background())
		in, _ := io.Pipe()
		done := make(chan error, 1)
		ready := make(chan struct{})
		go func() {
			done <- w.sessions.Attach(ctx, id, session.AttachOptions{Stream: true, Stdin: in, Stdout: io.Discard, Ready: func() error { close(ready); return nil }})
		}()
		<-ready
		cancel()
		in.Close()
		result(t, done)
	}
	round()
	before := countFDs(t)
	for range 40 {
		round()
	}
	w.eventually("descriptors come back", func() bool { return countFDs(t) <= before+3 })
}

func countFDs(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create(sh("echo one; echo two; echo bad >&2; echo three"))
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	recv(t, exit)
	get := func(o session.LogOptions) string {
		t.Helper()
		var b bytes.Buffer
		if err := w.sessions.Logs(ctx, id, o, &b, &b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	if got := get(session.LogOptions{Stdout: true, Tail: 2}); got != "two\nthree\n" && got != "three\n" {
		t.Errorf("tail %q", got)
	}
	if got := get(session.LogOptions{Stderr: true, Tail: -1}); got != "bad\n" {
		t.Errorf("stderr %q", got)
	}
	if got := get(session.LogOptions{Stdout: true, Tail: -1, Follow: true}); got != "one\ntwo\nthree\n" {
		t.Errorf("follow of an ended container %q", got)
	}
	first, _, _ := strings.Cut(get(session.LogOptions{Stdout: true, Tail: -1, Timestamps: true}), " ")
	if _, err := time.Parse("2006-01-02T15:04:05.000000000Z07:00", first); err != nil {
		t.Error(err)
	}
	if got := get(session.LogOptions{Stdout: true, Tail: -1, Since: time.Now().Add(time.Hour)}); got != "" {
		t.Errorf("since the future %q", got)
	}
	wantErr(t, w.sessions.Logs(ctx, id, session.LogOptions{}, nil, nil), errs.Invalid, "you must choose at least one stream")

	follow := w.up(nil)
	var out buffer
	done := make(chan error, 1)
	go func() {
		done <- w.sessions.Logs(ctx, follow, session.LogOptions{Stdout: true, Tail: -1, Follow: true}, &out, nil)
	}()
	w.eventually("follower sees ready", func() bool { return out.String() == "ready\n" })
	if err := w.s.Stop(ctx, follow, "", nil); err != nil {
		t.Fatal(err)
	}
	if err := result(t, done); err != nil {
		t.Errorf("follow: %v", err)
	}
}

func TestLogDriverNone(t *testing.T) {
	w := newWorld(t)
	spec := sh("echo unheard")
	spec.LogDriver = "none"
	id := w.create(spec)
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	recv(t, exit)
	err := w.sessions.Logs(context.Background(), id, session.LogOptions{Stdout: true, Tail: -1}, io.Discard, nil)
	wantErr(t, err, errs.Unimplemented, "")
	spec.LogDriver = "splunk"
	_, _, err = w.s.Create(context.Background(), spec)
	wantErr(t, err, errs.Invalid, "no log driver named 'splunk' is registered")
}

func TestHealth(t *testing.T) {
	w := newWorld(t)
	id := w.up(func(s *spec.Spec) {
		s.Healthcheck = health("CMD-SHELL", "echo looked; test ! -e /tmp/ill")
	})
	w.eventually("healthy", func() bool { h := w.get(id).State.Health; return h != nil && h.Status == "healthy" })
	if log := w.get(id).State.Health.Log; log[0].Output != "looked\n" || log[0].ExitCode != 0 {
		t.Errorf("health log %+v", log[0])
	}
	w.exec(id, "touch", "/tmp/ill")
	w.eventually("unhealthy", func() bool { return w.get(id).State.Health.Status == "unhealthy" })
}

// patientWriter stalls at its first write until go on is closed.
type patientWriter struct {
	bytes.Buffer
	stalled, goOn chan struct{}
	once          sync.Once
}

func (w *patientWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.stalled); <-w.goOn })
	return w.Buffer.Write(p)
}

// A client that follows a log slowly gets every line of the files that there were when the container was removed.
func TestLogsOutliveTheContainer(t *testing.T) {
	for name, edit := range map[string]func(*spec.Spec){
		"json-file": func(s *spec.Spec) { s.LogOpts = map[string]string{"max-size": "10k", "max-file": "20"} },
		"local": func(s *spec.Spec) {
			s.LogDriver = "local"
			s.LogOpts = map[string]string{"max-size": "10k", "max-file": "20"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			dir := t.TempDir()
			sp := sh("echo 0; while test ! -e /data/go; do sleep 0.05; done; i=1; while test $i -le 500; do echo $i; i=$((i+1)); done")
			sp.AutoRemove, sp.LogDriver, sp.Binds = true, "json-file", []string{dir + ":/data"}
			edit(&sp)
			id := w.create(sp)
			gone := w.wait(id, container.WaitRemoved)
			w.start(id)
			out := &patientWriter{stalled: make(chan struct{}), goOn: make(chan struct{})}
			read := make(chan error, 1)
			go func() {
				read <- w.sessions.Logs(context.Background(), id, session.LogOptions{Stdout: true, Stderr: true, Follow: true, Tail: -1}, out, out)
			}()
			<-out.stalled
			if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			recv(t, gone)
			close(out.goOn)
			if err := <-read; err != nil {
				t.Error(err)
			}
			var want strings.Builder
			for i := range 501 {
				fmt.Fprintln(&want, i)
			}
			if got := out.String(); got != want.String() {
				t.Errorf("%d bytes, want %d; the end is %q", len(got), want.Len(), got[max(0, len(got)-20):])
			}
		})
	}
}

// A client that has read all output asks for the exit code next, or removes the network. So Attach ends when the end of the run is recorded and
// the network is free, not before.
func TestAttachEndsAfterRecord(t *testing.T) {
	w := newWorld(t)
	sp := sh("echo done; exit 7")
	sp.NetworkMode = "bridge"
	id := w.create(sp)
	detaching, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.net.detaching = func() {
		once.Do(func() { close(detaching) })
		<-free
	}
	var out buffer
	done := w.attach(id, session.AttachOptions{Stdout: &out})
	w.start(id)
	select {
	case <-detaching:
	case <-time.After(patience):
		t.Fatal("the network was not detached")
	}
	w.eventually("the output is there", func() bool { return out.String() == "done\n" })
	select {
	case err := <-done:
		t.Errorf("Attach = %v before the network was detached", err)
	case <-time.After(300 * time.Millisecond):
	}
	close(free)
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	if st := w.get(id).State; st.Status != container.StatusExited || st.ExitCode != 7 {
		t.Errorf("state after Attach = %s with code %d, want exited with code 7", st.Status, st.ExitCode)
	}
}

// A client that leaves before it is told that it is attached holds nothing up: nobody would read its output.
func TestAttachOfClientThatLeft(t *testing.T) {
	w := newWorld(t)
	sp := sh("read go; head -c 20000000 /dev/zero")
	sp.OpenStdin = true
	id := w.create(sp)
	w.start(id)
	left := errors.New("left")
	for range 3 {
		if err := w.sessions.Attach(t.Context(), id, session.AttachOptions{Stream: true, Stdout: io.Discard, Ready: func() error { return left }}); !errors.Is(err, left) {
			t.Errorf("Attach = %v", err)
		}
	}
	in, typed := io.Pipe()
	defer typed.Close()
	done := w.attach(id, session.AttachOptions{Stdin: in, Stdout: io.Discard})
	if _, err := io.WriteString(typed, "go\n"); err != nil {
		t.Fatal(err)
	}
	if err := result(t, done); err != nil {
		t.Error(err)
	}
}

// Who sees a container run again does not see the health of the run before: a client that waits for it to be healthy would go on too early.
func TestHealthOfRunBefore(t *testing.T) {
	w := newWorld(t)
	id := w.up(func(s *spec.Spec) {
		s.Healthcheck = health("CMD-SHELL", "true")
	})
	for range 15 {
		w.eventually("the container is healthy", func() bool { return w.get(id).State.Health.Status == "healthy" })
		before := w.get(id).State.Started
		seen := make(chan container.State)
		go func() {
			for {
				if st := w.get(id).State; st.Status == container.StatusRunning && !st.Started.Equal(before) {
					seen <- st
					return
				}
			}
		}()
		if err := w.s.Restart(context.Background(), id, "", new(int)); err != nil {
			t.Fatal(err)
		}
		st := <-seen
		if log := st.Health.Log; len(log) > 0 && log[len(log)-1].Start.Before(st.Started) {
			t.Fatalf("a run that began at %s has the health %s of a check at %s", st.Started, st.Health.Status, log[len(log)-1].Start)
		}
	}
}
