package supervise_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/errs"
)

// tracePattern matches a finished or begun system call of strace -f: PID TIME CALL(ARGUMENTS.
var tracePattern = regexp.MustCompile(`(?m)^\d+ +(\w+)\((.*)$`)

// strace attaches Debian's strace to every thread of the shim.
func (b *box) strace(args ...string) *exec.Cmd {
	b.t.Helper()
	cmd := exec.Command("strace", append([]string{"-f", "-p", strconv.Itoa(b.c.Identity().PID)}, args...)...)
	cmd.Stderr = new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		b.t.Fatalf("these tests run Debian's strace: %v", err)
	}
	b.t.Cleanup(func() { _ = cmd.Process.Kill() })
	tasks := fmt.Sprintf("/proc/%d/task/*/status", b.c.Identity().PID)
	eventually(b.t, "a traced shim", func() bool {
		threads, err := filepath.Glob(tasks)
		for _, name := range threads {
			data, rerr := os.ReadFile(name)
			err = errors.Join(err, rerr)
			if strings.Contains(string(data), "TracerPid:\t0\n") {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
	return cmd
}

// traceShim records the system calls of a shim that write, sync and rename. stop ends the trace and returns the calls.
func (b *box) traceShim() (stop func() []string) {
	b.t.Helper()
	out := filepath.Join(b.t.TempDir(), "trace")
	cmd := b.strace("-y", "-s", "400", "-o", out, "-e", "trace=write,writev,pwrite64,sendto,sendmsg,fsync,fdatasync,rename,renameat,renameat2")
	return func() (calls []string) {
		b.t.Helper()
		_ = cmd.Process.Signal(unix.SIGINT)
		_ = cmd.Wait() // it reports the signal
		data, err := os.ReadFile(out)
		if err != nil {
			b.t.Fatalf("%v: %s", err, cmd.Stderr)
		}
		for _, m := range tracePattern.FindAllStringSubmatch(string(data), -1) {
			calls = append(calls, m[1]+" "+m[2])
		}
		return calls
	}
}

// slowLog makes every write to the log take a while.
func (b *box) slowLog(delay time.Duration) {
	b.t.Helper()
	b.strace("-P", b.cfg.Log.Path, "-e", "trace=write", "-e", fmt.Sprintf("inject=write:delay_enter=%d", delay.Microseconds()), "-o", os.DevNull)
}

// A client learns of the end when all output is in the log, however long the log takes.
func TestEndWaitsForASlowLog(t *testing.T) {
	b := sh(t, "seq 1 10000").launch() // two reads of the pipe
	b.slowLog(300 * time.Millisecond)
	b.start()
	b.wait()
	if out := b.output(); strings.Count(out, "\n") != 10000 || !strings.HasSuffix(out, "\n10000\n") {
		t.Errorf("at the end the log has %d lines of 10000", strings.Count(out, "\n"))
	}
}

// The output is in the log, and the exit file is durable, before a waiting or attached client learns of the end. A power cut
// at any moment then loses nothing that a client was told.
func TestOrderOfTheEnd(t *testing.T) {
	b := sh(t, "trap 'echo last words; exit 5' TERM; echo up; while :; do sleep 0.05; done").launch().start()
	b.logged("up\n")
	stop := b.traceShim()
	s := b.attach("", shim.AttachArgs{Stdout: true})
	waited := make(chan error, 1)
	go func() {
		e, err := b.c.Wait(t.Context(), "")
		if err == nil && e.Code != 5 {
			err = fmt.Errorf("exit code %d", e.Code)
		}
		waited <- err
	}()
	time.Sleep(100 * time.Millisecond) // the request has arrived
	if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if out, _, err := collect(s); err != nil || out != "last words\n" {
		t.Errorf("attached client: %q, %v", out, err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	calls := stop()
	dir, file := filepath.Dir(b.cfg.ExitPath), filepath.Base(b.cfg.ExitPath)
	at := 0
	for _, step := range []struct {
		what string
		is   func(call string) bool
	}{
		{"write of the last output to the log", func(c string) bool {
			return strings.HasPrefix(c, "write") && strings.Contains(c, b.cfg.Log.Path) && strings.Contains(c, "last words")
		}},
		{"write of the exit file", func(c string) bool {
			return strings.HasPrefix(c, "write") && strings.Contains(c, dir) && strings.Contains(c, `\"code\":5`)
		}},
		{"fsync of the exit file", func(c string) bool { return strings.HasPrefix(c, "fsync") && strings.Contains(c, dir+"/") }},
		{"rename to the name of the exit file", func(c string) bool { return strings.HasPrefix(c, "rename") && strings.Contains(c, file+`"`) }},
		{"fsync of its directory", func(c string) bool { return strings.HasPrefix(c, "fsync") && strings.Contains(c, dir+">") }},
	} {
		i := at
		for i < len(calls) && !step.is(calls[i]) {
			i++
		}
		if i == len(calls) {
			t.Fatalf("no %s after call %d of:\n%s", step.what, at, strings.Join(calls, "\n"))
		}
		at = i + 1
	}
	told := func(c string) bool {
		return strings.Contains(c, "socket:") && (strings.Contains(c, `\"code\":5`) || strings.Contains(c, `"\3\0\0\0`))
	}
	n := 0
	for i, c := range calls {
		if told(c) {
			if n++; i < at {
				t.Errorf("a client learns of the end too early, by call %d (%s) of:\n%s", i, c, strings.Join(calls, "\n"))
			}
		}
	}
	if n != 2 {
		t.Errorf("%d clients were told, want 2:\n%s", n, strings.Join(calls, "\n"))
	}
}

// A client whose connection broke is waited for, but not when the container is killed, or was never started: whoever removes it gets its end at once.
func TestKillDoesNotWaitForABrokenClient(t *testing.T) {
	broken := func(b *box) {
		b.attach("", shim.AttachArgs{Stdout: true, Resume: "a"}).Close()
		time.Sleep(100 * time.Millisecond) // the shim has seen it
	}
	const returnLimit = 25 * time.Second // shorter than the time for which the shim waits for a client
	soon := func(t *testing.T, what string, f func() error) {
		t.Helper()
		begun := time.Now()
		if err := f(); err != nil || time.Since(begun) > returnLimit {
			t.Errorf("%s took %v: %v", what, time.Since(begun), err)
		}
	}
	kill := func(b *box) func() error {
		return func() error {
			if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGKILL)}); err != nil && !errors.Is(err, errs.Precondition) {
				return err
			}
			_, err := b.c.Wait(t.Context(), "")
			return err
		}
	}
	t.Run("has ended", func(t *testing.T) {
		b := sh(t, "exit 3").launch()
		broken(b)
		b.start()
		eventually(t, "end of the process", func() bool {
			e, err := shim.FindExit(b.cfg.Run, b.cfg.ExitPath, b.cfg.Bundle)
			return err == nil && e.Code == 3
		})
		if st, err := b.c.State(t.Context(), ""); err != nil || st.Status != "running" {
			t.Fatalf("a client that is away is not waited for: %+v, %v", st, err)
		}
		if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGTERM)}); !errors.Is(err, errs.Precondition) {
			t.Errorf("SIGTERM: %v", err)
		}
		soon(t, "kill", kill(b))
		if e := b.wait(); e.Code != 3 {
			t.Errorf("exit code %d", e.Code)
		}
	})
	t.Run("runs", func(t *testing.T) {
		b := sh(t, "sleep 100").launch()
		broken(b)
		soon(t, "kill", kill(b.start()))
	})
	t.Run("never started", func(t *testing.T) {
		b := sh(t, "sleep 100").launch()
		broken(b)
		soon(t, "shutdown", func() error { return b.c.Shutdown(t.Context()) })
	})
}
