package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// When systemd shuts the machine down, plyd stops the containers with their own signals, also with live-restore. The systemd of this test is a directory in
// /run and a program systemctl.
func TestShutdownOfTheMachine(t *testing.T) {
	w := prepareWorld(t)
	tools := filepath.Join(w.dir, "tools")
	if err := os.Mkdir(tools, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tools, "systemctl"), []byte("#!/bin/sh\necho stopping\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	env, wrap := w.env, w.wrap
	w.env = append(env[:len(env):len(env)], "PATH="+tools+":"+os.Getenv("PATH"))
	w.wrap = append(wrap[:len(wrap):len(wrap)], "unshare", "--mount", "--", "sh", "-euc", `mount -t tmpfs run /run; mkdir -p /run/systemd/system; exec "$@"`, "sh")
	w.startPlyd()
	if got := w.ply("info", "-f", "{{.LiveRestoreEnabled}}"); got != "true" {
		t.Errorf("live-restore = %s", got)
	}
	w.busybox()
	w.ply("run", "-d", "--name", "told", "--stop-signal", "USR1", "busybox", "sh", "-c", `trap "echo stopped; exit 3" USR1; while :; do sleep 0.1; done`)
	w.ply("run", "-d", "--name", "always", "--restart", "always", "busybox", "sleep", "600")
	w.stopPlyd()
	w.env, w.wrap = env, wrap
	w.startPlyd()
	if got := w.ply("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "told"); got != "exited 3" {
		t.Errorf("after the shutdown: %s", got)
	}
	if got := w.ply("logs", "told"); got != "stopped" {
		t.Errorf("it printed %q", got)
	}
	for deadline := time.Now().Add(30 * time.Second); w.ply("inspect", "-f", "{{.State.Status}}", "always") != "running"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the container with a restart policy does not run after the boot")
		}
	}
}
