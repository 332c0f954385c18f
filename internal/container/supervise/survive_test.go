package supervise_test

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/procid"
	"ply/test/private"
)

// job says what the daemon of TestDaemonIsKilled does.
type job struct {
	Binary string
	Config shim.Config
	Input  runspec.Input
	Start  bool
}

// TestHelperDaemon is not a test. TestDaemonIsKilled runs it as the daemon that is killed.
func TestHelperDaemon(t *testing.T) {
	raw := os.Getenv("PLY_TEST_JOB")
	if raw == "" {
		return
	}
	var j job
	if err := json.Unmarshal([]byte(raw), &j); err != nil {
		t.Fatal(err)
	}
	spec, _, err := runspec.Build(j.Input)
	if err != nil {
		t.Fatal(err)
	}
	c, err := shim.Launch(t.Context(), j.Binary, j.Config, spec)
	if err != nil {
		t.Fatal(err)
	}
	if j.Start {
		if err := c.Start(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	os.Stdout.WriteString("ready\n")
	select {} // wait to be killed
}

func TestDaemonIsKilled(t *testing.T) {
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	for _, started := range []bool{true, false} {
		b := sh(t, "i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 12")
		raw, err := json.Marshal(job{bin, b.cfg, b.in, started})
		if err != nil {
			t.Fatal(err)
		}
		daemon := exec.Command(os.Args[0], "-test.run", "^TestHelperDaemon$")
		daemon.Env = append(os.Environ(), "PLY_TEST_JOB="+string(raw))
		daemon.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
		out, err := daemon.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := daemon.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatalf("the daemon printed %q, %v", line, err)
		}
		// Kill the process group, as a service manager does.
		if err := unix.Kill(-daemon.Process.Pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = daemon.Wait() // reports the signal
		if b.c, err = shim.Connect(b.cfg.Bundle); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.clean)
		if !started {
			if st, err := b.c.State(t.Context(), ""); err != nil || st.Status != "created" {
				t.Fatalf("state %+v, %v", st, err)
			}
			b.start()
		}
		if e := b.wait(); e.Code != 12 {
			t.Errorf("exit %+v", e)
		}
		if out := b.output(); !strings.HasPrefix(out, "0\n") || !strings.HasSuffix(out, "39\n") || strings.Count(out, "\n") != 40 {
			t.Errorf("log %q", out)
		}
	}
}

func TestSignalsAndUmaskAreDefaults(t *testing.T) {
	// A shell that starts plyd in the background leaves it like this, and the shim inherits it.
	signal.Ignore(unix.SIGINT, unix.SIGQUIT)
	defer signal.Reset(unix.SIGINT, unix.SIGQUIT)
	act := [8]uintptr{1} // SIG_IGN, for a signal that os/signal cannot ignore
	var was [8]uintptr
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, 32, uintptr(unsafe.Pointer(&act)), uintptr(unsafe.Pointer(&was)), 8, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	defer unix.RawSyscall6(unix.SYS_RT_SIGACTION, 32, uintptr(unsafe.Pointer(&was)), 0, 8, 0, 0)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	b := sh(t, "cat /proc/self/status; umask; stat -c %a /made; sleep 100")
	b.in.Spec.WorkingDir = "/made/for/it"
	b.launch().start()
	b.logged("755")
	p := execProcess(b, "/bin/sh", "-c", "cat /proc/self/status; umask")
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	s := b.attach("x", shim.AttachArgs{Stdout: true})
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	execOut, _, err := collect(s)
	if err != nil {
		t.Fatal(err)
	}
	for who, out := range map[string]string{"first process": b.output(), "exec": execOut} {
		for _, want := range []string{"SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "\n0022\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", who, want, out)
			}
		}
	}
}

// The container's processes, and not the shim, are in the container's cgroup, in every hierarchy of the host.
func TestOnlyTheContainerIsInItsCgroups(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	st, err := b.c.State(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for pid, inside := range map[int]bool{st.PID: true, b.c.Identity().PID: false} {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if got := f[2] == "/ply-test/"+b.cfg.ID; got != inside {
				t.Errorf("process %d: %s", pid, line)
			}
		}
	}
	if !procid.Alive(procid.ID(b.c.Identity())) {
		t.Error("the shim is not alive")
	}
}
