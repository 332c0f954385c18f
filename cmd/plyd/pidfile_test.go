package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ply/internal/errs"
)

// A process that plyd had just forked when it was killed holds the lock for a moment. A plyd that runs holds it for good.
func TestPidfileIsLocked(t *testing.T) {
	name := filepath.Join(t.TempDir(), "plyd.pid")
	other, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := writePidfile(name); !errors.Is(err, errs.Conflict) {
		t.Errorf("while another process has the lock: %v", err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		other.Close()
	}()
	release, err := writePidfile(name)
	if err != nil {
		t.Fatalf("the lock became free while plyd started: %v", err)
	}
	b, err := os.ReadFile(name)
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(os.Getpid()) {
		t.Errorf("pid file: %q, %v", b, err)
	}
	release()
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pid file after the release: %v", err)
	}
}
