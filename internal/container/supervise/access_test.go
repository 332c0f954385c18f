package supervise_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
)

// askAs connects to a shim's socket as a user, sends a request and returns the response.
func (b *box) askAs(uid int, request string) (response string, err error) {
	type result struct {
		response string
		err      error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, which changes its user, ends with the goroutine
		text, err := func() (string, error) {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				return "", errno
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(b.cfg.Bundle, shim.SocketFile)}); err != nil {
				return "", err
			}
			if _, err := unix.Write(fd, []byte("\x00\x00\x00"+string(rune(len(request)))+request)); err != nil {
				return "", err
			}
			buf := make([]byte, 1000)
			n, err := unix.Read(fd, buf)
			return string(buf[:max(n, 0)]), err
		}()
		done <- result{text, err}
	}()
	r := <-done
	return r.response, r.err
}

// Only root and the shim's own user can send requests, even if the socket's mode would admit others.
func TestSocketServesRootOnly(t *testing.T) {
	b := sh(t, "sleep 100").launch().start()
	const request = `{"op":"state"}`
	if got, err := b.askAs(0, request); err != nil || !strings.Contains(got, "running") {
		t.Fatalf("root: %q, %v", got, err)
	}
	if err := os.Chmod(filepath.Dir(b.cfg.Bundle), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.cfg.Bundle, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := b.askAs(1000, request); err != unix.EACCES {
		t.Errorf("another user could connect: %q, %v", got, err)
	}
	if err := os.Chmod(filepath.Join(b.cfg.Bundle, shim.SocketFile), 0o666); err != nil {
		t.Fatal(err)
	}
	if got, err := b.askAs(1000, request); got != "" {
		t.Errorf("another user got %q, %v", got, err)
	}
}

// An exec has the rights of the container and no more, unless it is privileged.
func TestExecHasTheContainersRights(t *testing.T) {
	b := sh(t, "sleep 100")
	b.in.Spec.SecurityOpt = []string{"no-new-privileges"}
	b.launch().start()
	p := execProcess(b, "/bin/sh", "-c", "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; mount -t tmpfs none /tmp 2>/dev/null || echo no mount")
	if err := b.c.Exec(t.Context(), "x", p, shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	s := b.attach("x", shim.AttachArgs{Stdout: true})
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	out, _, err := collect(s)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err = runspec.Exec(b.in, b.spec, runspec.ExecInput{Args: []string{"/bin/sh", "-c", "grep CapEff /proc/self/status; grep CapEff /proc/1/status"}, Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.c.Exec(t.Context(), "y", p, shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	s = b.attach("y", shim.AttachArgs{Stdout: true})
	if err := b.c.Start(t.Context(), "y"); err != nil {
		t.Fatal(err)
	}
	privileged, _, err := collect(s)
	if lines := strings.Split(privileged, "\n"); err != nil || len(lines) != 3 || lines[0] <= lines[1] || lines[1] != "CapEff:\t00000000a80425fb" {
		t.Errorf("privileged exec: %q, %v", privileged, err)
	}
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb",
		"CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "no mount",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}
