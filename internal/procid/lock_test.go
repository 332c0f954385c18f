package procid

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The second lock of a file fails, and the error names the process that holds the first one.
func TestLockFileNamesTheHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	first := open()
	if err := LockFile(first, 0); err != nil {
		t.Fatal(err)
	}
	var locked *LockedError
	if err := LockFile(open(), 0); !errors.As(err, &locked) {
		t.Fatalf("second lock = %v, want a *LockedError", err)
	}
	// A file system whose device numbers differ between stat and /proc/locks hides the holder.
	if own := Describe(os.Getpid()); locked.Holder != own && locked.Holder != "another process" {
		t.Errorf("holder %q, want %q", locked.Holder, own)
	}
	go func() {
		time.Sleep(20 * time.Millisecond)
		first.Close()
	}()
	if err := LockFile(open(), time.Minute); err != nil {
		t.Errorf("lock after the holder closed the file: %v", err)
	}
}

func TestHolderIn(t *testing.T) {
	locks := "1: POSIX  ADVISORY  WRITE 7 fe:00:99 0 EOF\n2: FLOCK  ADVISORY  WRITE 1234 fe:00:99 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 8 fe:00:99 0 EOF\n" +
		"3: FLOCK  ADVISORY  WRITE x fe:00:5 0 EOF\n4: FLOCK\n"
	for file, want := range map[string]int{"fe:00:99": 1234, "fe:00:5": 0, "fe:00:1": 0} {
		if got := holderIn(locks, file); got != want {
			t.Errorf("holderIn(%s) = %d, want %d", file, got, want)
		}
	}
	if got, want := Describe(os.Getpid()), fmt.Sprintf(", pid %d", os.Getpid()); len(got) <= len(want) || got[len(got)-len(want):] != want {
		t.Errorf("Describe = %q", got)
	}
}
