package supervise_test

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
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

// Tests of streams, execs, signals and the end pass on another runtime as on the one in ply-shim.
func TestSuiteOnOtherRuntime(t *testing.T) {
	runtimeOfBoxes = otherRuntime(t)
	defer func() { runtimeOfBoxes = "" }()
	for name, test := range map[string]func(*testing.T){
		"AttachStreams":                          TestAttachStreams,
		"StdinHalfClose":                         TestStdinHalfClose,
		"StdinSurvivesDetach":                    TestStdinSurvivesDetach,
		"StdinOnceClosesWithFirstClient":         TestStdinOnceClosesWithFirstClient,
		"TerminalHasItsSizeBeforeTheFirstByte":   TestTerminalHasItsSizeBeforeTheFirstByte,
		"TtySizeOfConfig":                        TestTtySizeOfConfig,
		"ExecStreams":                            TestExecStreams,
		"ExecTty":                                TestExecTty,
		"ExecThatStartsADaemon":                  TestExecThatStartsADaemon,
		"ExecHasTheContainersRights":             TestExecHasTheContainersRights,
		"AllOutputIsInTheLogAtTheEnd":            TestAllOutputIsInTheLogAtTheEnd,
		"OwnOutputIsReadWhileAChildHoldsThePipe": TestOwnOutputIsReadWhileAChildHoldsThePipe,
		"DisconnectedClientsLeaveNoDescriptors":  TestDisconnectedClientsLeaveNoDescriptors,
		"KillProcessOfExec":                      TestKillProcessOfExec,
		"ManyExecsAtOnce":                        TestManyExecsAtOnce,
		"KillAtAnyTime":                          TestKillAtAnyTime,
		"ExitCodes":                              TestExitCodes,
		"SignalIsExitCode":                       TestSignalIsExitCode,
		"NothingRunsBeforeStart":                 TestNothingRunsBeforeStart,
		"ShutdownOfACreatedContainer":            TestShutdownOfACreatedContainer,
		"CleanupAfterKilledShim":                 TestCleanupAfterKilledShim,
		"CleanupKeepsTheExitCode":                TestCleanupKeepsTheExitCode,
		"Pause":                                  TestPause,
		"UserHasNoCaps":                          TestUserHasNoCaps,
		"HostPidNamespaceLeavesNobody":           TestHostPidNamespaceLeavesNobody,
		"NoDescriptorLeaks":                      TestNoDescriptorLeaks,
	} {
		t.Run(name, test)
	}
}

// Every one of many execs at the same time runs its own program as its own user, with a terminal and without.
func TestConcurrentExecsHaveTheirOwnUser(t *testing.T) {
	for name, runtime := range map[string]string{"built in": "", "other": otherRuntime(t)} {
		t.Run(name, func(t *testing.T) {
			b := sh(t, "sleep 100")
			b.cfg.Runtime = runtime
			b.launch().start()
			var group errgroup.Group
			group.SetLimit(12)
			for i := range 60 {
				group.Go(func() error {
					id, uid := fmt.Sprint("x", i), 1000+i
					p, _, err := runspec.Exec(b.in, b.spec, runspec.ExecInput{Args: []string{"/bin/sh", "-c", fmt.Sprintf("id -u; echo %d; exit %d", i, i)}, User: fmt.Sprint(uid), Tty: i%2 == 0})
					if err != nil {
						return err
					}
					if err := b.c.Exec(t.Context(), id, p, shim.ExecOptions{}); err != nil {
						return err
					}
					s, err := b.c.Attach(t.Context(), id, shim.AttachArgs{Stdout: true, Stderr: true})
					if err != nil {
						return err
					}
					defer s.Close()
					if err := b.c.Start(t.Context(), id); err != nil {
						return fmt.Errorf("start of exec %d: %w", i, err)
					}
					out, _, err := collect(s)
					if f := strings.Fields(out); err != nil || len(f) != 2 || f[0] != fmt.Sprint(uid) || f[1] != fmt.Sprint(i) {
						t.Errorf("exec %d as user %d: output %q, %v", i, uid, out, err)
					}
					if e, err := b.c.Wait(t.Context(), id); err != nil || e.Code != i {
						t.Errorf("exec %d: %+v, %v", i, e, err)
					}
					return nil
				})
			}
			if err := group.Wait(); err != nil {
				t.Error(err)
			}
			left, err := filepath.Glob(filepath.Join(b.cfg.Bundle, "command.*"))
			if err != nil || len(left) > 0 {
				t.Errorf("files of commands are left: %v, %v", left, err)
			}
		})
	}
}

func TestRuntimeThatFails(t *testing.T) {
	b := sh(t, "true")
	b.cfg.Runtime = "/bin/false"
	if err := b.launchErr(); err == nil || !strings.Contains(err.Error(), "/bin/false create") {
		t.Errorf("launch = %v", err)
	}
}
