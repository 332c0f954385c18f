package procid

import (
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSelfAlive(t *testing.T) {
	id, err := Self()
	if err != nil {
		t.Fatal(err)
	}
	if !Alive(id) {
		t.Errorf("Alive(%+v) = false for this process", id)
	}
	for name, other := range map[string]ID{
		"other start": {id.Boot, id.PID, id.Start + 1},
		"other boot":  {"00000000-0000-0000-0000-000000000000", id.PID, id.Start},
		"no process":  {id.Boot, 1 << 30, id.Start},
		"zero":        {},
	} {
		if Alive(other) {
			t.Errorf("%s: Alive(%+v) = true", name, other)
		}
		if _, err := Open(other); !errors.Is(err, ErrGone) {
			t.Errorf("%s: Open = %v, want ErrGone", name, err)
		}
	}
}

func TestKillAndZombie(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := Kill(ID{id.Boot, id.PID, id.Start + 1}, unix.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("Kill of another process with the same pid = %v, want ErrGone", err)
	}
	if !Alive(id) {
		t.Fatal("a signal for another process with the same pid reached this one")
	}
	pidfd, err := Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	if err := Kill(id, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, 10_000); err != nil {
		t.Fatal(err)
	}
	if Alive(id) {
		t.Error("a zombie counts as alive")
	}
	_ = cmd.Wait() // it was killed above
	if _, err := Of(id.PID); !errors.Is(err, ErrGone) {
		t.Errorf("Of after the end = %v, want ErrGone", err)
	}
}
