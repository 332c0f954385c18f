package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestShuttingDown(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	t.Setenv("PATH", dir)
	state := func(word string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\necho "+word+"\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	state("stopping")
	if shuttingDown(root) {
		t.Error("a system without systemd is shut down")
	}
	if err := os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !shuttingDown(root) {
		t.Error("stopping is not shutting down")
	}
	for _, word := range []string{"running", "degraded", "starting", "''"} {
		if state(word); shuttingDown(root) {
			t.Errorf("%s is shutting down", word)
		}
	}
	if err := os.Remove(filepath.Join(dir, "systemctl")); err != nil {
		t.Fatal(err)
	}
	if shuttingDown(root) {
		t.Error("no systemctl is shutting down")
	}
}
