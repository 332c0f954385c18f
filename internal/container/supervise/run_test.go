package supervise_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/errs"
	"ply/internal/procid"
	"ply/test/private"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		line string
		want int
	}{
		{"exit 0", 0}, {"exit 3", 3}, {"exit 255", 255},
		{"kill -9 $$; exit 4", 4}, // the first process of a pid namespace ignores signals from inside
		{"sh -c 'kill -9 $$'; exit $?", 137},
	} {
		t.Run(c.line, func(t *testing.T) {
			b := sh(t, c.line)
			_, e := b.run()
			if e.Code != c.want {
				t.Errorf("exit code = %d, want %d", e.Code, c.want)
			}
			if got, err := shim.ReadExit(b.cfg.ExitPath); err != nil || got.Code != c.want {
				t.Errorf("exit file = %+v, %v", got, err)
			}
		})
	}
}

func TestSignalIsExitCode(t *testing.T) {
	for sig, want := range map[unix.Signal]int{unix.SIGKILL: 137, unix.SIGTERM: 143} {
		b := newBox(t, "/bin/sh", "-c", "trap 'exit 143' TERM; echo up; while :; do sleep 0.1; done").launch().start()
		b.logged("up")
		if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(sig)}); err != nil {
			t.Fatal(err)
		}
		if e := b.wait(); e.Code != want {
			t.Errorf("signal %d: exit code %d, want %d", sig, e.Code, want)
		}
		if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(sig)}); !errors.Is(err, errs.Precondition) {
			t.Errorf("kill after the end = %v, want errs.Precondition", err)
		}
	}
}

func TestProgramErrors(t *testing.T) {
	for _, c := range []struct {
		arg  string
		code int
		msg  string
	}{
		{"nosuch", 127, `exec: "nosuch": executable file not found in $PATH`},
		{"/nosuch", 127, `exec: "/nosuch": stat /nosuch: no such file or directory`},
		{"/etc/passwd", 126, `exec: "/etc/passwd": permission denied`},
		{"/etc", 126, `exec: "/etc": is a directory`},
	} {
		b := newBox(t, c.arg)
		err := b.launchErr()
		var p *shim.ProgramError
		if !errors.As(err, &p) || p.Code != c.code || p.Msg != c.msg {
			t.Errorf("launch %s = %#v, want code %d, %q", c.arg, err, c.code, c.msg)
		}
		if _, err := os.Stat(filepath.Join(b.cfg.StateDir, b.cfg.ID)); err == nil {
			t.Errorf("launch %s: runtime state is left", c.arg)
		}
		b.noCgroups()
	}
	b := sh(t, "sleep 100").launch().start()
	for _, c := range []struct {
		arg  string
		code int
	}{{"nosuch", 127}, {"/etc/passwd", 126}} {
		p := execProcess(b, c.arg)
		if err := b.c.Exec(t.Context(), "e"+c.arg[1:2], p, shim.ExecOptions{}); err != nil {
			t.Fatal(err)
		}
		var pe *shim.ProgramError
		if err := b.c.Start(t.Context(), "e"+c.arg[1:2]); !errors.As(err, &pe) || pe.Code != c.code {
			t.Errorf("exec %s = %v, want code %d", c.arg, err, c.code)
		}
		if e, err := b.c.Wait(t.Context(), "e"+c.arg[1:2]); err != nil || e.Code != c.code {
			t.Errorf("exec %s: wait = %+v, %v", c.arg, e, err)
		}
	}
}

func TestNothingRunsBeforeStart(t *testing.T) {
	b := sh(t, "echo ran").launch()
	if st, err := b.c.State(t.Context(), ""); err != nil || st.Status != "created" || st.PID == 0 {
		t.Fatalf("state = %+v, %v", st, err)
	}
	if out := b.output(); out != "" {
		t.Fatalf("before start it printed %q", out)
	}
	b.start()
	if e := b.wait(); e.Code != 0 {
		t.Fatalf("exit %+v", e)
	}
	if out := b.output(); out != "ran\n" {
		t.Errorf("output %q", out)
	}
	if err := b.c.Start(t.Context(), ""); err == nil {
		t.Error("a second start was accepted")
	}
}

// The exit file of an earlier run is gone when the container is created again.
func TestLaunchRemovesTheExitFile(t *testing.T) {
	b := sh(t, "sleep 100")
	writeJSON(t, b.cfg.ExitPath, shim.Exit{Code: 9})
	b.launch()
	if e, err := shim.ReadExit(b.cfg.ExitPath); !errors.Is(err, errs.NotFound) {
		t.Errorf("exit file %+v, %v, want errs.NotFound", e, err)
	}
}

func TestShutdownOfACreatedContainer(t *testing.T) {
	b := sh(t, "echo ran").launch()
	if err := b.c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if procid.Alive(procid.ID(b.c.Identity())) {
		t.Error("the shim still runs")
	}
	if out := b.output(); out != "" {
		t.Errorf("it printed %q", out)
	}
}

func TestShimOutlivesClient(t *testing.T) {
	b := sh(t, "trap 'echo ended; exit 7' TERM; echo up; while :; do sleep 0.1; done").launch().start()
	b.logged("up")
	again, err := shim.Connect(b.cfg.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	if again.Identity() != b.c.Identity() {
		t.Errorf("identity %+v, want %+v", again.Identity(), b.c.Identity())
	}
	if st, err := again.State(t.Context(), ""); err != nil || st.Status != "running" {
		t.Fatalf("state = %+v, %v", st, err)
	}
	if err := again.Shutdown(t.Context()); !errors.Is(err, errs.Conflict) {
		t.Errorf("shutdown of a running container = %v, want errs.Conflict", err)
	}
	if err := again.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(); e.Code != 7 {
		t.Errorf("exit %+v", e)
	}
	if !strings.HasSuffix(b.output(), "ended\n") {
		t.Errorf("log %q", b.output())
	}
	if err := again.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Connect(b.cfg.Bundle); !errors.Is(err, errs.NotFound) {
		t.Errorf("connect after the end = %v, want errs.NotFound", err)
	}
	if e, err := b.c.Wait(t.Context(), ""); err != nil || e.Code != 7 {
		t.Errorf("wait after the end of the shim = %+v, %v, want the exit file's content", e, err)
	}
}

func TestConnectRefusesAnotherProcess(t *testing.T) {
	b := sh(t, "sleep 100").launch()
	id := b.c.Identity()
	id.Start++
	writeJSON(t, filepath.Join(b.cfg.Bundle, shim.PidFile), id)
	if _, err := shim.Connect(b.cfg.Bundle); !errors.Is(err, errs.NotFound) {
		t.Errorf("connect with another start time = %v, want errs.NotFound", err)
	}
}

func TestCleanupAfterKilledShim(t *testing.T) {
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	b := sh(t, "echo up; sleep 100").launch().start()
	b.logged("up")
	st, err := b.c.State(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shim.Cleanup(t.Context(), bin, b.cfg.Bundle); !errors.Is(err, errs.Conflict) {
		t.Errorf("cleanup under a running shim = %v, want errs.Conflict", err)
	}
	initID, err := procid.Of(st.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := procid.Kill(procid.ID(b.c.Identity()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the shim", func() bool { return !procid.Alive(procid.ID(b.c.Identity())) })
	if _, err := b.c.State(t.Context(), ""); !errors.Is(err, errs.Unavailable) {
		t.Errorf("state without a shim = %v, want errs.Unavailable", err)
	}
	for range 2 {
		e, err := shim.Cleanup(t.Context(), bin, b.cfg.Bundle)
		if err != nil || e.Code != 137 {
			t.Fatalf("cleanup = %+v, %v", e, err)
		}
	}
	if procid.Alive(initID) {
		t.Error("the container's process still runs")
	}
}

// The exit code that a shim recorded before it was killed is kept.
func TestCleanupKeepsTheExitCode(t *testing.T) {
	b := sh(t, "exit 5").launch().start()
	b.wait()
	b.killShim()
	if e := b.cleanup(); e.Code != 5 {
		t.Errorf("cleanup = %+v, want exit code 5", e)
	}
}

// The first process is killed even if the runtime's state is lost.
func TestCleanupWithoutRuntimeState(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	first, err := shim.ReadIdentity(filepath.Join(b.cfg.Bundle, shim.InitFile))
	if err != nil {
		t.Fatal(err)
	}
	b.killShim()
	if err := os.RemoveAll(filepath.Join(b.cfg.StateDir, b.cfg.ID)); err != nil {
		t.Fatal(err)
	}
	if e := b.cleanup(); e.Code != 137 {
		t.Errorf("cleanup = %+v", e)
	}
	eventually(t, "end of the first process", func() bool { return !procid.Alive(procid.ID(first)) })
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*/ply-test/" + b.cfg.ID) // only the lost state names them
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(cgroups, "/sys/fs/cgroup/ply-test/"+b.cfg.ID) {
		eventually(t, "removal of "+dir, func() bool { err := os.Remove(dir); return err == nil || errors.Is(err, os.ErrNotExist) })
	}
}

func TestLaunchCancelled(t *testing.T) {
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{time.Millisecond, 8 * time.Millisecond, 20 * time.Millisecond} {
		b := sh(t, "echo ran")
		ctx, cancel := context.WithTimeout(t.Context(), after)
		b.spec = nil
		b.c = nil
		err := func() error {
			defer cancel()
			return b.launchIn(ctx, bin)
		}()
		if err == nil {
			continue // the launch was complete before the cancellation
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("launch = %v, want the context's error", err)
		}
		b.noCgroups()
		if _, err := os.Stat(filepath.Join(b.cfg.StateDir, b.cfg.ID)); err == nil {
			t.Errorf("cancelled after %v: runtime state is left", after)
		}
	}
}
