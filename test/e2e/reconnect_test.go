package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// follower is a command of ply that runs while plyd is killed and started.
type follower struct {
	cmd      *exec.Cmd
	out, err syncBuffer
	done     chan error
}

// syncBuffer is a buffer that may be read while a command writes to it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// follow starts a command of ply.
func (w *world) follow(args ...string) *follower {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	w.t.Cleanup(cancel)
	f := &follower{cmd: exec.CommandContext(ctx, w.program("ply"), args...), done: make(chan error, 1)}
	f.cmd.Env = append(os.Environ(), w.clientEnv()...)
	f.cmd.Stdout, f.cmd.Stderr = &f.out, &f.err
	if err := f.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { f.done <- f.cmd.Wait() }()
	return f
}

// until waits until the output of a command has a text.
func (f *follower) until(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(f.out.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("ply %v: no %q in\n%.2000s\n%s", f.cmd.Args[1:], text, f.out.String(), f.err.String())
		}
	}
}

// ended waits for the end of a command and checks its exit code.
func (f *follower) ended(t *testing.T, code int) {
	t.Helper()
	var exit *exec.ExitError
	switch err := <-f.done; {
	case err == nil && code == 0:
	case errors.As(err, &exit) && exit.ExitCode() == code:
	default:
		t.Errorf("ply %v: %v, want exit code %d\n%s", f.cmd.Args[1:], err, code, f.notes())
	}
}

// notes returns what ply itself has said.
func (f *follower) notes() string {
	var notes strings.Builder
	for line := range strings.Lines(f.err.String()) {
		if !strings.HasPrefix(line, "err ") {
			notes.WriteString(line)
		}
	}
	return notes.String()
}

// checkLines checks that the lines "name N" of text have each number once and in order, from 0 unless anywhere, and returns the last number.
func checkLines(t *testing.T, what, text, name string, anywhere bool) int {
	t.Helper()
	next := 0
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name+" ")
		if !ok {
			continue
		}
		n := -1
		if _, err := fmt.Sscanf(rest, "%d\n", &n); err != nil || !strings.HasSuffix(rest, "\n") {
			t.Fatalf("%s: torn line %q", what, line)
		}
		if anywhere {
			next, anywhere = n, false
		}
		if n != next {
			t.Fatalf("%s: line %q, want number %d", what, strings.TrimSpace(line), next)
		}
		next++
	}
	if next == 0 {
		t.Fatalf("%s: no lines", what)
	}
	return next - 1
}

// writer writes numbered lines to both streams until the file stop is there, and exits with 7.
const writer = `i=0; while [ ! -e /ctl/stop ]; do n=$((i+200)); while [ $i -lt $n ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; sleep 0.01; done; echo last $((i-1)); exit 7`

// Commands that wait go on when plyd is killed or restarted under them: no line is lost or printed twice, and the exit codes arrive.
func TestReconnect(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	ctl := filepath.Join(w.dir, "ctl")
	if err := os.Mkdir(ctl, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := ctl + ":/ctl"
	events := w.follow("events", "--filter", "event=create", "--format", "{{.Actor.Attributes.name}}")
	w.ply("run", "-d", "--name", "writer", "-v", mount, "busybox", "sh", "-c", writer)
	logs := w.follow("logs", "-f", "writer")
	wait := w.follow("wait", "writer")
	run := w.follow("run", "--rm", "--name", "fore", "-v", mount, "busybox", "sh", "-c", writer)
	run.until(t, "out 400\n")
	joined := w.follow("attach", "--no-stdin", "--sig-proxy=false", "fore")
	joined.until(t, "out ")
	typed := w.follow("run", "-i", "--rm", "--name", "typed", "busybox", "sh", "-c", "echo ready; exec sleep 600")
	typed.until(t, "ready")
	const rounds = 6
	for i := range rounds {
		name := fmt.Sprintf("made-%d", i)
		w.ply("create", "--name", name, "busybox")
		events.until(t, name+"\n")
		if i%3 == 2 {
			w.stopPlyd()
		} else {
			w.kill9()
		}
		time.Sleep(time.Duration(i*50) * time.Millisecond)
		w.startPlyd()
		have := len(run.out.String())
		for deadline := time.Now().Add(time.Minute); len(run.out.String()) == have; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: run prints nothing more\n%s\n%s", i, run.notes(), w.tail())
			}
		}
	}
	// The containers end while no engine is there: what they print and how they end is not lost either.
	w.kill9()
	if err := os.WriteFile(filepath.Join(ctl, "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	w.startPlyd()
	run.ended(t, 7)
	joined.ended(t, 7)
	wait.ended(t, 0)
	logs.ended(t, 0)
	w.ply("kill", "typed")
	typed.ended(t, 137)
	for _, f := range []struct {
		what     string
		f        *follower
		anywhere bool
	}{{"run", run, false}, {"logs", logs, false}, {"attach", joined, true}} {
		out := checkLines(t, f.what+": stdout", f.f.out.String(), "out", f.anywhere)
		errs := checkLines(t, f.what+": stderr", f.f.err.String(), "err", f.anywhere)
		if !strings.HasSuffix(f.f.out.String(), fmt.Sprintf("\nlast %d\n", out)) || out != errs {
			t.Errorf("%s: ends with %d and %d:\n%s\n%s", f.what, out, errs, f.f.out.String()[max(0, len(f.f.out.String())-200):], f.f.notes())
		}
	}
	if got := wait.out.String(); got != "7\n" {
		t.Errorf("wait printed %q", got)
	}
	if !strings.Contains(run.notes(), "went away; waiting up to 30s") {
		t.Errorf("run has not said that it waits: %q", run.notes())
	}
	for i := range rounds {
		if n := strings.Count(events.out.String(), fmt.Sprintf("made-%d\n", i)); n != 1 {
			t.Errorf("event of made-%d came %d times:\n%s", i, n, events.out.String())
		}
	}
	_ = events.cmd.Process.Signal(os.Interrupt)
	<-events.done
}
