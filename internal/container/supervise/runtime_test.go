package supervise_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/procid"
	"ply/test/private"
)

// otherRuntime is Debian's runc, which the package docker.io depends on.
func otherRuntime(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Fatalf("this test drives another OCI runtime: %v", err)
	}
	return path
}

func TestOtherRuntime(t *testing.T) {
	runc := otherRuntime(t)
	t.Run("streams and exit", func(t *testing.T) {
		b := newBox(t, "/bin/sh", "-c", "cat; echo err >&2; exit 6")
		b.cfg.Runtime, b.cfg.Stdin, b.cfg.StdinOnce = runc, true, true
		b.launch()
		s := b.attach("", shim.AttachArgs{Stdin: true, Stdout: true, Stderr: true})
		b.start()
		if _, err := s.Write([]byte("in")); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if out, errOut, err := collect(s); err != nil || out != "in" || errOut != "err\n" {
			t.Errorf("%q %q %v", out, errOut, err)
		}
		if e := b.wait(); e.Code != 6 {
			t.Errorf("exit %+v", e)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		b := sh(t, "stty size; sleep 0.1")
		b.cfg.Runtime, b.cfg.Tty = runc, true
		b.launch()
		if err := b.c.Resize(t.Context(), "", 5, 6); err != nil {
			t.Fatal(err)
		}
		b.start()
		b.wait()
		if out := b.output(); out != "5 6\r\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("exec, pause, stats, kill", func(t *testing.T) {
		b := sh(t, "sleep 100")
		b.cfg.Runtime = runc
		b.in.Spec.Resources = spec.Resources{Memory: 64 << 20}
		b.launch().start()
		for _, tty := range []bool{false, true} {
			p, _, err := runspec.Exec(b.in, b.spec, runspec.ExecInput{Args: []string{"/bin/sh", "-c", "echo hi; exit 8"}, Tty: tty})
			if err != nil {
				t.Fatal(err)
			}
			id := map[bool]string{false: "p", true: "t"}[tty]
			if err := b.c.Exec(t.Context(), id, p, shim.ExecOptions{}); err != nil {
				t.Fatal(err)
			}
			s := b.attach(id, shim.AttachArgs{Stdout: true})
			if err := b.c.Start(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if out, _, err := collect(s); err != nil || strings.TrimSpace(out) != "hi" {
				t.Errorf("exec (tty %v) gave %q, %v", tty, out, err)
			}
			if e, err := b.c.Wait(t.Context(), id); err != nil || e.Code != 8 {
				t.Errorf("exec (tty %v): %+v, %v", tty, e, err)
			}
		}
		if st, err := b.c.Stats(t.Context()); err != nil || st.MemoryLimit != 64<<20 || st.MemoryUsage == 0 {
			t.Errorf("stats %+v, %v", st, err)
		}
		if pids, err := b.c.Pids(t.Context()); err != nil || len(pids) == 0 {
			t.Errorf("pids %v, %v", pids, err)
		}
		next, _, err := runspec.LinuxResources(spec.Resources{Memory: 96 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.c.Update(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		if err := b.c.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGKILL)}); err != nil {
			t.Fatal(err)
		}
		if e := b.wait(); e.Code != 137 {
			t.Errorf("exit %+v", e)
		}
	})
	t.Run("program missing", func(t *testing.T) {
		b := newBox(t, "nosuch")
		b.cfg.Runtime = runc
		var p *shim.ProgramError
		if err := b.launchErr(); !errors.As(err, &p) || p.Code != 127 || p.Msg != `exec: "nosuch": executable file not found in $PATH` {
			t.Errorf("launch = %v", err)
		}
	})
	t.Run("cleanup", func(t *testing.T) {
		bin, err := private.Shim()
		if err != nil {
			t.Fatal(err)
		}
		b := sh(t, "sleep 100")
		b.cfg.Runtime = runc
		b.launch().start()
		st, err := b.c.State(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		id, err := procid.Of(st.PID)
		if err != nil {
			t.Fatal(err)
		}
		if err := procid.Kill(procid.ID(b.c.Identity()), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "end of the shim", func() bool { return !procid.Alive(procid.ID(b.c.Identity())) })
		if e, err := shim.Cleanup(t.Context(), bin, b.cfg.Bundle); err != nil || e.Code != 137 {
			t.Errorf("cleanup = %+v, %v", e, err)
		}
		if procid.Alive(id) {
			t.Error("the container's process still runs")
		}
	})
}

func TestRuntimeThatFails(t *testing.T) {
	b := sh(t, "true")
	b.cfg.Runtime = "/bin/false"
	if err := b.launchErr(); err == nil || !strings.Contains(err.Error(), "/bin/false create") {
		t.Errorf("launch = %v", err)
	}
}
