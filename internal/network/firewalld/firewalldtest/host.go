// Package firewalldtest runs Debian's firewalld for tests, with a message bus of its own, in the network namespace of the test. It reads and writes no
// file of the machine's firewalld.
package firewalldtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long firewalld may take to start; it is slow on a busy machine.
const patience = 2 * time.Minute

// Host is a host with a message bus, on which firewalld can run.
type Host struct {
	t       testing.TB
	dir     string
	Address string // of the bus
	daemon  *exec.Cmd
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path=SOCKET</listen><policy context="default">
<allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
</policy></busconfig>
`

// New starts the bus. It ends with the test, and so does firewalld.
func New(t testing.TB) *Host {
	t.Helper()
	for _, program := range []string{"dbus-daemon", "firewalld", "firewall-cmd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("the packages dbus and firewalld are needed: %v", err)
		}
	}
	dir, err := os.MkdirTemp("", "fw") // short, because the path of a socket is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	h := &Host{t: t, dir: dir, Address: "unix:path=" + filepath.Join(dir, "bus")}
	h.write("bus.conf", strings.ReplaceAll(busConfig, "SOCKET", filepath.Join(dir, "bus")))
	h.write("etc/firewalld.conf", "DefaultZone=public\nLogDenied=off\n")
	h.run("dbus-daemon", "--config-file="+filepath.Join(dir, "bus.conf"), "--nofork", "--nopidfile", "--nosyslog")
	h.wait("the message bus", func() bool {
		_, err := os.Stat(filepath.Join(dir, "bus"))
		return err == nil
	})
	return h
}

func (h *Host) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// run starts a program that ends with the test.
func (h *Host) run(name string, args ...string) *exec.Cmd {
	h.t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+h.Address, "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		h.end(cmd)
		if h.t.Failed() {
			h.t.Logf("%s: %s", name, out.Bytes())
		}
	})
	return cmd
}

func (h *Host) end(cmd *exec.Cmd) {
	if cmd.ProcessState != nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM) // firewalld takes its rules away
	kill := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait() // ended by a signal
	kill.Stop()
}

func (h *Host) wait(what string, ready func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(patience); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s does not start", what)
		}
	}
}

// Start starts firewalld and waits until it answers.
func (h *Host) Start() {
	h.t.Helper()
	h.daemon = h.run("firewalld", "--nofork", "--nopid", "--system-config", filepath.Join(h.dir, "etc"), "--log-target", "console")
	h.wait("firewalld", func() bool { _, err := h.command("--state"); return err == nil })
}

// Stop ends firewalld, which takes its rules away.
func (h *Host) Stop() {
	h.t.Helper()
	if err := h.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	_ = h.daemon.Wait() // ended by a signal
}

// Command runs firewall-cmd and returns what it prints.
func (h *Host) Command(args ...string) string {
	h.t.Helper()
	out, err := h.command(args...)
	if err != nil {
		h.t.Fatalf("firewall-cmd %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (h *Host) command(args ...string) (string, error) {
	cmd := exec.Command("firewall-cmd", args...)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+h.Address, "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
