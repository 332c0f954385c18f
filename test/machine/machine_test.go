package machine

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ply/test/private"
)

var (
	keep = flag.String("machine.disk", "", "directory in which the disk is kept for the next run")
	cuts = flag.Int("machine.cuts", 10, "power cuts of TestPowerCuts")
)

// bin is the directory of the binaries, root the source tree; scratch is removed at the end.
var (
	bin, root, scratch string
	base               disk
)

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("PLY_NIGHTLY") == "" {
		fmt.Println("skipped: PLY_NIGHTLY=1 runs whole machines")
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if root, err = private.Root(); err != nil {
		return 1, err
	}
	if bin, err = private.Binaries(); err != nil {
		return 1, err
	}
	if scratch, err = os.MkdirTemp("/var/tmp", "ply-machine."); err != nil {
		return 1, err
	}
	defer func() {
		if rerr := os.RemoveAll(scratch); err == nil {
			err = rerr
		}
	}()
	where := *keep
	if where == "" {
		where = filepath.Join(scratch, "disk")
	}
	if base, err = makeDisk(where); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// machine is a running machine.
type machine struct {
	t       *testing.T
	dir     string
	port    int
	console string // the file with what it prints
	qemu    *exec.Cmd
	ended   chan struct{} // closed when qemu has ended
	given   string        // a directory whose files the machine sees at the same path
}

// Limits of what a machine without KVM on a busy host may take.
const (
	bootLimit   = 6 * time.Minute
	scriptLimit = 10 * time.Minute
)

// boot starts a machine with ply installed and running. It ends with the test.
func boot(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.start()
	m.sh(`
install -m 755 -t /usr/local/bin ` + bin + `/ply*
` + root + `/packaging/install /usr/local
systemctl enable -q --now ply.socket ply.service
ply import -c 'CMD ["sh"]' ` + filepath.Join(m.given, "busybox.tar") + ` busybox`)
	return m
}

// newMachine makes the disk of a machine.
func newMachine(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "machine.")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, console: filepath.Join(dir, "console"), given: filepath.Join(dir, "given")}
	if out, err := exec.Command("sh", "-euc", makeImage, "sh", m.given).CombinedOutput(); err != nil {
		t.Fatalf("image: %v: %s", err, out)
	}
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path("disk.raw"), "-F", "raw", filepath.Join(dir, "disk")).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	t.Cleanup(func() {
		m.cut()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

// makeImage makes busybox.tar in $1, the root file system of the image. The machine would take a minute for it.
const makeImage = `r=$1/root
mkdir -p "$r"/bin "$r"/etc "$r"/tmp
cp /bin/busybox "$r"/bin/
for a in $(busybox --list); do [ "$a" = busybox ] || ln -s busybox "$r/bin/$a"; done
tar -C "$r" -cf "$1"/busybox.tar .
rm -rf "$r"`

// start boots the machine and waits until it can be logged into.
func (m *machine) start() {
	m.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	m.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	console, err := os.OpenFile(m.console, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	defer console.Close()
	args := []string{
		"-accel", accelerator(), "-cpu", "max", "-smp", "2", "-m", "3072", "-display", "none", "-nodefaults", "-no-user-config", "-serial", "stdio",
		// An emulated timer is late on a busy host, and then the kernel does not boot without no_timer_check, nor all units within 90 seconds.
		"-kernel", base.path("kernel"), "-initrd", base.path("initrd"), "-append", "root=/dev/vda rw console=ttyS0 quiet no_timer_check systemd.default_timeout_start_sec=600",
		// What the machine has flushed is on the disk when its power is cut, and nothing else has to be.
		"-drive", "file=" + filepath.Join(m.dir, "disk") + ",format=qcow2,if=virtio,cache=writeback",
		"-netdev", fmt.Sprintf("user,id=n,hostfwd=tcp:127.0.0.1:%d-:22", m.port), "-device", "virtio-net-pci,netdev=n",
	}
	for i, dir := range m.shares() {
		args = append(args, "-virtfs", fmt.Sprintf("local,path=%s,mount_tag=share%d,security_model=none,readonly=on", dir, i))
	}
	m.qemu = exec.Command("qemu-system-x86_64", args...)
	m.qemu.Stdout, m.qemu.Stderr = console, console
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := m.qemu.Start(); err != nil {
		m.t.Fatal(err)
	}
	qemu, ended := m.qemu, make(chan struct{})
	m.ended = ended
	go func() {
		_ = qemu.Wait() // it is killed
		close(ended)
	}()
	m.await("")
	m.mountShares()
}

// accelerator returns KVM where a processor of it can be started, and else the emulator. That /dev/kvm exists shows little.
var accelerator = sync.OnceValue(func() string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	probe := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-cpu", "max", "-display", "none", "-nodefaults", "-no-user-config", "-serial", "stdio", "-monitor", "stdio")
	probe.Stdin = strings.NewReader("quit\n")
	if probe.Run() == nil {
		return "kvm"
	}
	return "tcg,thread=multi"
})

func (m *machine) shares() []string { return []string{root, bin, m.given} }

func (m *machine) mountShares() {
	m.t.Helper()
	script := "modprobe 9pnet_virtio\n"
	for i, dir := range m.shares() {
		script += fmt.Sprintf("mkdir -p %[1]s; mountpoint -q %[1]s || mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro share%[2]d %[1]s\n", dir, i)
	}
	m.sh(script)
}

// await waits until the machine can be logged into, in another boot than the one with the ID was.
func (m *machine) await(was string) {
	m.t.Helper()
	for deadline := time.Now().Add(bootLimit); ; time.Sleep(time.Second) {
		out, err := m.try("cat /proc/sys/kernel/random/boot_id")
		if err == nil && strings.TrimSpace(out) != was {
			return
		}
		select {
		case <-m.ended:
			m.t.Fatalf("the machine ended:\n%s", m.printed())
		default:
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the machine does not answer: %v\n%s", err, m.printed())
		}
	}
}

// printed returns the end of what the console printed.
func (m *machine) printed() string {
	b, _ := os.ReadFile(m.console) // it is part of an error already
	return string(b[max(0, len(b)-3000):])
}

// try runs a script in the machine and returns what it prints on both streams.
func (m *machine) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), scriptLimit)
	defer cancel()
	return m.tryWithin(ctx, script)
}

func (m *machine) tryWithin(ctx context.Context, script string) (string, error) {
	ssh := exec.CommandContext(ctx, "ssh", m.sshArgs()...)
	ssh.Stdin = strings.NewReader(scriptHead + script + "\n")
	var out bytes.Buffer
	ssh.Stdout, ssh.Stderr = &out, &out
	ssh.WaitDelay = 5 * time.Second
	err := ssh.Run()
	return out.String(), err
}

// scriptHead is what every script begins with.
const scriptHead = "exec 2>&1\nexport PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"

// sshArgs are the arguments of an ssh that runs its input.
func (m *machine) sshArgs() []string {
	return []string{
		"-q", "-F", "none", "-i", base.path("key"), "-p", strconv.Itoa(m.port), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=20", "-o", "ServerAliveCountMax=10",
		"root@127.0.0.1", "exec bash -euo pipefail -s",
	}
}

// sh is try for a script that must succeed.
func (m *machine) sh(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatalf("%v\n%s\n%s\nplyd:\n%s", err, script, out, m.log())
	}
	return out
}

// want fails unless what a script prints is want, without blanks around it.
func (m *machine) want(want, script string) {
	m.t.Helper()
	if got := strings.TrimSpace(m.sh(script)); got != want {
		m.t.Errorf("%s\nprinted:\n%s\nwant:\n%s", script, got, want)
	}
}

// log returns the end of plyd's log.
func (m *machine) log() string {
	out, _ := m.try("journalctl -u ply --no-pager -n 30") // it is part of an error already
	return out
}

// reboot boots the machine again as its administrator does.
func (m *machine) reboot() (took time.Duration) {
	m.t.Helper()
	was := strings.TrimSpace(m.sh("cat /proc/sys/kernel/random/boot_id"))
	began := time.Now()
	_, _ = m.try("systemctl reboot") // the connection may end first
	m.await(was)
	m.mountShares()
	return time.Since(began)
}

// cut ends the machine as a cut of its power does. What it had not flushed to the disk is lost.
func (m *machine) cut() {
	if m.qemu == nil {
		return
	}
	_ = m.qemu.Process.Kill() // it may have ended
	<-m.ended
	m.qemu = nil
}

// in returns the machine for a subtest.
func (m *machine) in(t *testing.T) *machine {
	sub := *m
	sub.t = t
	return &sub
}

// suite runs the tests of a package of this repository in the machine, with flags of the test binary.
func (m *machine) suite(pkg string, flags ...string) {
	m.t.Helper()
	binary := filepath.Join(m.given, strings.ReplaceAll(pkg, "/", "-")+".test")
	build := exec.Command("go", "test", "-c", "-o", binary, "./"+pkg)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", pkg, err, out)
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Hour)
	defer cancel()
	out, err := m.tryWithin(ctx, fmt.Sprintf("cd %s && PLY_BIN=%s HOME=/root %s -test.timeout 55m %s", filepath.Join(root, pkg), bin, binary, strings.Join(flags, " ")))
	if err != nil {
		m.t.Errorf("%s: %v\n%s", pkg, err, out[max(0, len(out)-20000):])
	}
	if err := os.Remove(binary); err != nil {
		m.t.Error(err)
	}
}
