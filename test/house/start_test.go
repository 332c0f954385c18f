package house

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/version"
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

// confine makes the cgroups of this test the roots of their hierarchies in this mount namespace, so that a plyd that leaves its
// caller's cgroups stays within the limits of the test. No container can run then. It returns the path of the test's cgroup in each v1 hierarchy by controller.
func confine(t *testing.T) map[string]string {
	t.Helper()
	own := map[string]string{}
	for line := range strings.Lines(read(t, "/proc/self/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		dir := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(f[1], "name="))
		if f[1] == "" {
			if dir = "/sys/fs/cgroup"; f[0] == "0" {
				if _, err := os.Stat(filepath.Join(dir, "unified")); err == nil {
					dir = filepath.Join(dir, "unified")
				}
			}
		} else {
			own[f[1]] = f[2]
		}
		if f[2] != "/" {
			over(t, filepath.Join(dir, f[2]), dir)
		}
	}
	return own
}

// A plyd that a command starts has nothing of its caller: no descriptors, no variables but the proxies, no cgroup, and it is not
// looked for in the caller's PATH.
func TestStartedPlydHasNothingOfItsCaller(t *testing.T) {
	home(t)
	own := confine(t)
	caller := filepath.Join("/sys/fs/cgroup/memory", "ply-caller")
	const hierarchy = "memory"
	if _, v1 := own[hierarchy]; v1 {
		if err := os.Mkdir(caller, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(caller); err != nil {
				t.Error(err)
			}
		})
	} else {
		caller = ""
	}
	secret := filepath.Join(t.TempDir(), "secret")
	ply := command(t, "sh", "-euc", `[ -z "$3" ] || echo $$ >"$3/cgroup.procs"; umask 077; exec 7>"$2"; "$1" ps >/dev/null`, "sh", filepath.Join(bin, "ply"), secret, caller)
	ply.Env = append(ply.Env, "SECRET=s3cret", "LD_PRELOAD_X=1", "DOCKER_CERT_PATH=/x", "GODEBUG=x=1", "HTTPS_PROXY=http://proxy.example:1", "no_proxy=host.example", "LANG=C.UTF-8")
	ply.Dir = t.TempDir()
	if out, err := ply.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pid := peer(t, "/run/ply.sock")
	defer end(t, pid)
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	env := strings.Split(strings.TrimSuffix(read(t, filepath.Join(proc, "environ")), "\x00"), "\x00")
	slices.Sort(env)
	want := []string{"HTTPS_PROXY=http://proxy.example:1", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "no_proxy=host.example"}
	env = slices.DeleteFunc(env, func(kv string) bool { // of the machine that runs this test
		name, _, _ := strings.Cut(kv, "=")
		return !slices.Contains(want, kv) && (strings.HasSuffix(strings.ToLower(name), "_proxy") || name == "LC_ALL" || name == "TZ")
	})
	if !slices.Equal(env, want) {
		t.Errorf("environment %q, want %q", env, want)
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(filepath.Join(proc, "fd", fd.Name())); to == secret {
			t.Errorf("descriptor %s of the caller is open in plyd", fd.Name())
		}
	}
	if cwd, err := os.Readlink(filepath.Join(proc, "cwd")); err != nil || cwd != "/" {
		t.Errorf("plyd runs in %s, %v", cwd, err)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("plyd %d is in session %d, %v", pid, sid, err)
	}
	for line := range strings.Lines(read(t, filepath.Join(proc, "cgroup"))) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); strings.Contains(f[2], "ply-caller") || f[1] == hierarchy && f[2] != own[hierarchy] {
			t.Errorf("plyd is in cgroup %s", line)
		}
	}
}

// A plyd in a directory of PATH is not started, because root's PATH may hold directories of other users.
func TestPlydIsNotSearchedInPath(t *testing.T) {
	home(t)
	alone, evil := t.TempDir(), t.TempDir()
	must(t, "cp", filepath.Join(bin, "ply"), alone)
	ran := filepath.Join(evil, "ran")
	if err := os.WriteFile(filepath.Join(evil, "plyd"), []byte("#!/bin/sh\n: >"+ran+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin"} { // an installed plyd would be started
		fresh(t, dir)
	}
	ply := command(t, filepath.Join(alone, "ply"), "ps")
	ply.Env = append(ply.Env, "PATH="+evil+":"+os.Getenv("PATH"))
	out, err := ply.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "plyd was not found") {
		t.Errorf("ps: %v\n%s", err, out)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the plyd in PATH was started")
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
	if err := notify.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, err := notify.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "READY=1") {
		t.Fatalf("plyd tells its service manager %q (%v)", buf[:n], err)
	}
	if err := client.Wait(); err != nil {
		t.Fatalf("ply version: %v\n%s", err, answer.String())
	}
	if got := strings.TrimSpace(answer.String()); got != version.Docker {
		t.Errorf("the engine's version is %q, want %q", got, version.Docker)
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
