package house

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// home makes plyd's default paths empty: sockets and pid file, data root, log and configuration.
func home(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/run", "/var/lib", "/var/log", "/etc/ply"} {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) && dir == "/etc/ply" {
			continue
		}
		fresh(t, dir)
	}
}

// peer returns the process that listens on a socket.
func peer(t *testing.T, path string) int {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return int(cred.Pid)
}

// end asks a process to end and waits for it.
func end(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("plyd %d: %v", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 30_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 || err != nil {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			t.Errorf("plyd %d does not end (%v)", pid, err)
		}
		return
	}
}

// On a machine where nothing runs yet, the first command starts plyd with its defaults, and the second one uses it.
func TestFirstCommandStartsPlyd(t *testing.T) {
	home(t)
	rootfs := filepath.Join(t.TempDir(), "box.tar")
	must(t, "sh", "-euc", `mkdir -p "$1.d/bin"; cp /bin/busybox "$1.d/bin/"; ln -s busybox "$1.d/bin/echo"; tar -C "$1.d" -cf "$1" .`, "sh", rootfs)
	ply := filepath.Join(bin, "ply")

	no := command(t, ply, "ps")
	no.Env = append(no.Env, "PLY_NO_START=1")
	if out, err := no.CombinedOutput(); err == nil || !strings.Contains(string(out), "Cannot connect") {
		t.Fatalf("with PLY_NO_START: %v\n%s", err, out)
	}
	first := command(t, ply, "import", rootfs, "box")
	var errw strings.Builder
	first.Stderr = &errw
	id, err := first.Output()
	if err != nil {
		log, _ := os.ReadFile("/var/log/plyd.log")
		t.Fatalf("import: %v\n%s\n%s", err, errw.String(), log)
	}
	pid := peer(t, "/run/ply.sock")
	defer end(t, pid)
	if !regexp.MustCompile(`^sha256:[0-9a-f]{64}\n$`).Match(id) || !strings.Contains(errw.String(), "starting "+filepath.Join(bin, "plyd")) {
		t.Errorf("import prints %q and %q", id, errw.String())
	}
	if out := must(t, ply, "run", "--rm", "box", "/bin/echo", "hello"); out != "hello\n" {
		t.Errorf("run prints %q", out)
	}
	if again := peer(t, "/run/ply.sock"); again != pid {
		t.Errorf("plyd was %d, now %d", pid, again)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("plyd %d is in session %d (%v): it would end with this terminal", pid, sid, err)
	}
	if st, err := os.Stat("/run/ply.sock"); err != nil || st.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket: %v %v", st.Mode(), err)
	}
	if _, err := os.Stat("/var/lib/ply/meta.db"); err != nil {
		t.Error(err)
	}
}

// plyd takes over the socket of a service manager, reports when it is ready, and does not remove the socket.
func TestSocketActivation(t *testing.T) {
	home(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "/run/ply.sock", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/run/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()

	// The client connects first, as it does when the socket starts the service.
	client := command(t, filepath.Join(bin, "ply"), "version", "--format", "{{.Server.Version}}")
	var answer strings.Builder
	client.Stdout, client.Stderr = &answer, &answer
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	plyd := command(t, "sh", "-c", `LISTEN_PID=$$ exec "$0" -H fd://`, filepath.Join(bin, "plyd"))
	plyd.Env = append(plyd.Env, "LISTEN_FDS=1", "NOTIFY_SOCKET=/run/notify")
	plyd.ExtraFiles = []*os.File{socket} // descriptor 3
	var log strings.Builder
	plyd.Stdout, plyd.Stderr = &log, &log
	plyd.Cancel = func() error { return plyd.Process.Signal(syscall.SIGTERM) }
	if err := plyd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := false
	wait := func() error { waited = true; return plyd.Wait() }
	defer func() {
		if !waited {
			_ = plyd.Process.Kill()
			_ = wait()
			t.Log(log.String())
		}
	}()
	buf := make([]byte, 256)
	if err := notify.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := notify.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "READY=1") {
		t.Fatalf("plyd tells its service manager %q (%v)", buf[:n], err)
	}
	if err := client.Wait(); err != nil {
		t.Fatalf("ply version: %v\n%s", err, answer.String())
	}
	want := strings.Fields(must(t, filepath.Join(bin, "plyd"), "--version"))
	if got := strings.TrimSpace(answer.String()); got != want[len(want)-1] {
		t.Errorf("the engine's version is %q, want %q", got, want[len(want)-1])
	}
	if err := plyd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err != nil {
		t.Errorf("plyd ended with %v\n%s", err, log.String())
	}
	if _, err := os.Lstat("/run/ply.sock"); err != nil {
		t.Errorf("plyd removed a socket that is not its own: %v", err)
	}
}

// Without descriptors plyd says so and changes nothing.
func TestNoSocketToActivate(t *testing.T) {
	home(t)
	out, err := command(t, filepath.Join(bin, "plyd"), "-H", "fd://").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), "no sockets found via socket activation") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat("/var/lib/ply"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a data root: %v", err)
	}
}
