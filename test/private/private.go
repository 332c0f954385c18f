// Package private runs tests in a network namespace and a mount namespace of their own, where they can make bridges, packet
// filter rules, ports and mounts without touching the machine. It also builds the binaries that the tests run, and finds the clients of others.
package private

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// marker is the environment variable that is set in the process that runs inside the namespaces, to the directory that is its
// /var/tmp.
const marker = "PLY_TEST_INSIDE"

// Clients returns the directory into which test/setup/clients installs.
func Clients() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		panic(err) // there is no home directory
	}
	return filepath.Join(cache, "ply-clients")
}

// Main is called by TestMain and does not return. It runs the test binary again in new namespaces, in which the loopback
// interface is up and mounts do not reach the machine. There it calls prepare, unless that is nil, with a directory that is
// removed at the end, and then runs the tests. If they pass and have left processes, mounts, network interfaces, cgroups of containers,
// or files in /var/tmp or /dev/shm, which are empty at their start, Main names these and fails.
func Main(m *testing.M, prepare func(dir string) error) {
	code, err := inside(m, prepare)
	if err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		code = 1
	}
	os.Exit(code)
}

// inside runs the tests if this process is in the new namespaces, and otherwise creates them. It returns the exit code.
func inside(m *testing.M, prepare func(dir string) error) (code int, err error) {
	own := os.Getenv(marker)
	if own == "" {
		return again()
	}
	if err := os.Unsetenv(marker); err != nil { // the tests may start another test binary that calls Main
		return 0, err
	}
	if err := loopbackUp(); err != nil {
		return 0, fmt.Errorf("lo: %w", err)
	}
	before, err := take(own)
	if err != nil {
		return 0, err
	}
	if code, err = run(m, prepare, before); err != nil || code != 0 {
		return code, err
	}
	return 0, before.compare()
}

func run(m *testing.M, prepare func(dir string) error, before *state) (code int, err error) {
	if prepare != nil {
		dir, err := os.MkdirTemp("/var/tmp", "ply-test.") // on a disk: /tmp may be in memory
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if err := prepare(dir); err != nil {
			return 0, err
		}
		if before.mounts, err = mounts(); err != nil { // those that prepare has made stay for all tests
			return 0, err
		}
	}
	return m.Run(), nil
}

// again runs this program in new namespaces. The program unshare creates them, because a Go program cannot move all of its
// threads into another namespace. This process adopts the processes whose parents end, and fails when one of them outlives the tests.
func again() (int, error) {
	private, err := os.MkdirTemp("/var/tmp", "ply-suite.")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(private) }() // what it has then was reported
	cmd := exec.Command("unshare", append([]string{"--net", "--mount", "--propagation", "private", "--", os.Args[0]}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), marker+"="+private)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// When this process is killed, the tests must not keep running. SIGQUIT makes them print their stacks and end.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	code, err := reap(cmd.Process.Pid)
	if left := descendants(); err == nil && code == 0 && len(left) > 0 {
		err = fmt.Errorf("processes are left:\n%s", strings.Join(left, "\n"))
	}
	return code, err
}

// reap waits for a child and for the processes that this process adopts meanwhile.
func reap(pid int) (code int, err error) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case got == pid && status.Signaled():
			return 0, fmt.Errorf("the tests were ended by %v", status.Signal())
		case got == pid:
			return status.ExitStatus(), nil
		}
	}
}

// loopbackUp brings the loopback interface up.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return err
	}
	ifi, err := net.InterfaceByName("lo")
	if err == nil && ifi.Flags&net.FlagUp == 0 {
		err = errors.New("the interface stays down")
	}
	return err
}

// Root returns the directory of this source tree: the nearest one with a go.mod at or above the working directory, which is
// the directory of the test's package.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
	}
	return "", fmt.Errorf("no go.mod above %s", dir)
}

// Binaries returns the directory that holds ply, plyd and ply-shim: the one that PLY_BIN names, otherwise the one into which
// it builds them.
func Binaries() (string, error) {
	if dir := os.Getenv("PLY_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	if out, err := exec.Command("make", "-C", root, "build").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return filepath.Join(root, "bin"), nil
}

var shim struct {
	sync.Once
	path string
	dir  string // what RemoveShim removes; "" = nothing was built
	err  error
}

// Shim returns the path of a ply-shim of this tree: the one in PLY_BIN, or one that the first call builds, as a release is built; RemoveShim removes that.
func Shim() (string, error) {
	shim.Do(func() {
		if os.Getenv("PLY_BIN") != "" {
			var bin string
			if bin, shim.err = Binaries(); shim.err == nil {
				shim.path = filepath.Join(bin, "ply-shim")
			}
			return
		}
		dir, err := os.MkdirTemp("", "ply-shim-test-")
		if err != nil {
			shim.err = err
			return
		}
		shim.dir, shim.path = dir, filepath.Join(dir, "ply-shim")
		cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "netgo,osusergo,seccomp", "-ldflags", "-extldflags -static", "-o", shim.path, "ply/cmd/ply-shim")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			shim.err = fmt.Errorf("build of ply-shim: %w: %s", err, out)
		}
	})
	return shim.path, shim.err
}

// RemoveShim removes what Shim built. TestMain calls it after the tests.
func RemoveShim() {
	if shim.dir != "" {
		_ = os.RemoveAll(shim.dir)
	}
}
