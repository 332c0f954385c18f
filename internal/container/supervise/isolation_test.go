package supervise_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/volume"
	"ply/test/private"
)

func TestDefaultCapsAndSeccomp(t *testing.T) {
	b := sh(t, "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status")
	out, _ := b.run()
	for _, want := range []string{
		"CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb",
		"CapAmb:\t0000000000000000", "NoNewPrivs:\t0", "Seccomp:\t2",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestUserHasNoCaps(t *testing.T) {
	b := sh(t, "id; grep -E '^Cap(Prm|Eff|Bnd)|^NoNew' /proc/self/status; echo $HOME")
	b.in.Spec.User = "user"
	b.in.Spec.SecurityOpt = []string{"no-new-privileges"}
	out, _ := b.run()
	for _, want := range []string{
		"uid=1000(user) gid=1000(user) groups=1000(user),2000(extra)", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapBnd:\t00000000a80425fb", "NoNewPrivs:\t1", "/home/user",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestSetuidAndNoNewPrivileges(t *testing.T) {
	for _, c := range []struct {
		opts []string
		want string
	}{{nil, "0"}, {[]string{"no-new-privileges"}, "1000"}} {
		b := newBox(t, "/bin/euid")
		b.in.Spec.User, b.in.Spec.SecurityOpt = "user", c.opts
		// busybox drops the privileges of setuid by itself, so this needs another program.
		bin := filepath.Join(b.in.Rootfs, "bin/euid")
		build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "./testdata/euid")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := os.Chmod(bin, 0o755|os.ModeSetuid); err != nil {
			t.Fatal(err)
		}
		if out, _ := b.run(); strings.TrimSpace(out) != c.want {
			t.Errorf("%v: effective user %q, want %s", c.opts, out, c.want)
		}
	}
}

func TestPrivileged(t *testing.T) {
	b := sh(t, "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; ls /dev/loop-control /dev/null; mount -t tmpfs none /tmp && echo mounted; touch /sys/fs/cgroup 2>/dev/null; grep ' /sys ' /proc/mounts; [ -w /proc/sys/kernel/hostname ] && echo procsys")
	b.in.Spec.Privileged = true
	out, _ := b.run()
	// Not /proc/self, which is the first thread: another test may have given that one another user.
	own, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(own), "CapEff:")
	want := strings.TrimSpace(string(own)[i : i+len("CapEff:\t0000000000000000")])
	for _, w := range []string{want, "Seccomp:\t0", "mounted", "sysfs rw", "procsys"} {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
	if len(b.warned) > 0 {
		t.Errorf("privileged warned: %v", b.warned)
	}
}

func TestMaskedAndReadonly(t *testing.T) {
	b := sh(t, `cat /proc/interrupts | wc -c; ls /sys/firmware | wc -l; (echo 1 > /proc/sys/kernel/hostname) 2>/dev/null || echo ro1
(echo b > /proc/sysrq-trigger) 2>/dev/null || echo ro2; touch /sys/x 2>/dev/null || echo ro3; mount -t tmpfs none /tmp 2>/dev/null || echo nomount
mknod /tmp/d b 8 0 && cat /tmp/d 2>/dev/null || echo nodev; ls /dev`)
	out, _ := b.run()
	for _, w := range []string{"0\n0\nro1\nro2\nro3\nnomount\nnodev\n"} {
		if !strings.HasPrefix(out, w) {
			t.Errorf("want it to begin with %q:\n%s", w, out)
		}
	}
	for _, dev := range strings.Fields("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero") {
		if !slices.Contains(strings.Fields(out), dev) {
			t.Errorf("no /dev/%s in\n%s", dev, out)
		}
	}
	if strings.Contains(out, "loop") {
		t.Errorf("host devices in\n%s", out)
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	b := sh(t, "ls /proc/self/fd; for f in /proc/self/fd/*; do readlink $f; done").launch()
	b.start()
	b.wait()
	fds := strings.Fields(b.output())
	// The standard streams, and the directory that ls reads.
	if len(fds) < 4 || !slices.Equal(fds[:4], []string{"0", "1", "2", "3"}) || slices.Contains(fds, "4") {
		t.Errorf("descriptors: %v", fds)
	}
	b = sh(t, "sleep 100").launch().start()
	for _, tty := range []bool{false, true} {
		p, _, err := runspec.Exec(b.in, b.spec, runspec.ExecInput{Args: []string{"/bin/ls", "/proc/self/fd"}, Tty: tty})
		if err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("x", tty)
		if err := b.c.Exec(t.Context(), id, p, shim.ExecOptions{}); err != nil {
			t.Fatal(err)
		}
		s := b.attach(id, shim.AttachArgs{Stdout: true})
		if err := b.c.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if out, _, err := collect(s); err != nil || len(strings.Fields(out)) != 4 {
			t.Errorf("exec (tty %v): descriptors %q, %v", tty, out, err)
		}
	}
}

func TestShimHoldsNothingOfItsParent(t *testing.T) {
	leak, err := os.Create(filepath.Join(t.TempDir(), "leak"))
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	// Without O_CLOEXEC every child inherits it, unless the child closes it.
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	b := sh(t, "sleep 100").launch().start()
	dir := fmt.Sprintf("/proc/%d/fd", b.c.Identity().PID)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, _ := os.Readlink(filepath.Join(dir, e.Name())); to == leak.Name() {
			t.Errorf("the shim holds descriptor %s of its parent", e.Name())
		}
	}
	if s, err := unix.Getsid(b.c.Identity().PID); err != nil || s != b.c.Identity().PID {
		t.Errorf("the shim's session is %d, %v", s, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", b.c.Identity().PID))
	if err != nil || strings.Contains(string(env), "HOME=") {
		t.Errorf("the shim's environment: %q, %v", env, err)
	}
}

// When memory is short, the kernel kills the container and not its shim.
func TestShimIsTheLastToBeKilled(t *testing.T) {
	b := sh(t, "cat /proc/self/oom_score_adj").launch()
	host, err := runspec.ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	want := "-999\n"
	if !host.SysResource { // this host does not allow a lower score
		own, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		want = string(own)
	}
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", b.c.Identity().PID))
	if err != nil || string(score) != want {
		t.Errorf("the shim's score %q, %v, want %q", score, err, want)
	}
	b.start()
	b.wait()
	if out := b.output(); out != "0\n" {
		t.Errorf("the container's score %q", out)
	}
}

func TestMemoryLimitKills(t *testing.T) {
	b := sh(t, "x=$(yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c 200000000); echo survived")
	b.in.Spec.Resources = spec.Resources{Memory: 16 << 20}
	out, e := b.run()
	if !e.OOMKilled || strings.Contains(out, "survived") {
		t.Errorf("exit %+v, output %q", e, out)
	}
	if _, e := sh(t, "exit 137").run(); e.OOMKilled {
		t.Error("a process that was killed by a signal is reported as killed for lack of memory")
	}
}

func TestPidsLimit(t *testing.T) {
	b := sh(t, "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; echo all")
	limit := int64(10)
	b.in.Spec.Resources = spec.Resources{PidsLimit: &limit}
	out, _ := b.run()
	if strings.Contains(out, "all") {
		t.Errorf("30 processes under a limit of 10: %q", out)
	}
}

func TestLimitsAreInCgroups(t *testing.T) {
	b := sh(t, "sleep 100")
	limit := int64(77)
	b.in.Spec.Resources = spec.Resources{Memory: 64 << 20, CPUShares: 512, NanoCPUs: 500_000_000, PidsLimit: &limit, CpusetCpus: "0"}
	b.launch().start()
	st, err := b.c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.MemoryLimit != 64<<20 || st.PidsLimit != 77 || st.PidsCurrent == 0 || st.CPUTotal == 0 || st.MemoryUsage == 0 {
		t.Errorf("stats %+v", st)
	}
	next, _, err := runspec.LinuxResources(spec.Resources{Memory: 96 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.c.Update(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if st, err = b.c.Stats(t.Context()); err != nil || st.MemoryLimit != 96<<20 || st.PidsLimit != 77 {
		t.Errorf("stats after update %+v, %v", st, err)
	}
	// An exec must still work after an update.
	if err := b.c.Exec(t.Context(), "x", execProcess(b, "/bin/true"), shim.ExecOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Start(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	pids, err := b.c.Pids(t.Context())
	if err != nil || len(pids) == 0 {
		t.Errorf("pids %v, %v", pids, err)
	}
}

func TestPause(t *testing.T) {
	b := sh(t, "while :; do echo x; sleep 0.02; done").launch().start()
	b.logged("x")
	if err := b.c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, err := b.c.State(t.Context(), ""); err != nil || st.Status != "paused" {
		t.Errorf("state %+v, %v", st, err)
	}
	if err := b.c.Pause(t.Context()); err == nil {
		t.Error("paused twice")
	}
	if err := b.c.Exec(t.Context(), "x", execProcess(b, "/bin/true"), shim.ExecOptions{Detach: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := b.c.Start(ctx, "x"); !errors.Is(err, errs.Conflict) { // a process that is born frozen blocks its runtime
		t.Errorf("exec in a paused container = %v, want errs.Conflict", err)
	}
	if err := b.c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGKILL)}); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(); e.Code != 137 {
		t.Errorf("killed while paused: %+v", e)
	}
}

// An exec that is made and not started, because its client has left, is withdrawn: its clients see the end, and its streams are closed.
func TestExecThatIsNeverStarted(t *testing.T) {
	b := sh(t, "exec sleep 1000").launch().start()
	open := func() int {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.c.Identity().PID))
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	kill := func(id string) error {
		return b.c.Kill(t.Context(), id, shim.KillArgs{Signal: int(unix.SIGKILL)})
	}
	before := open()
	for i, o := range []shim.ExecOptions{{}, {Stdin: true}, {Detach: true}, {Stdin: true}} {
		id := fmt.Sprint("x", i)
		p := execProcess(b, "/bin/true")
		p.Terminal = i == 3
		if err := b.c.Exec(t.Context(), id, p, o); err != nil {
			t.Fatal(err)
		}
		if !o.Detach {
			st, err := b.c.Attach(t.Context(), id, shim.AttachArgs{Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if _, _, err := st.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("%s: a client reads %v, want the end", id, err)
				}
				_ = st.Close() // only read from
			}()
		}
		if err := b.c.Kill(t.Context(), id, shim.KillArgs{Signal: int(unix.SIGTERM)}); !errors.Is(err, errs.Precondition) {
			t.Errorf("%s: SIGTERM before the start = %v, want errs.Precondition", id, err)
		}
		if err := kill(id); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if err := kill(id); !errors.Is(err, errs.Precondition) {
			t.Errorf("%s: killed again = %v, want errs.Precondition", id, err)
		}
		if err := b.c.Start(t.Context(), id); err == nil {
			t.Errorf("%s: started after it was withdrawn", id)
		}
	}
	eventually(t, "the streams are closed", func() bool { return open() <= before+3 }) // the three clients that are attached
	if st, err := b.c.State(t.Context(), ""); err != nil || st.Status != "running" {
		t.Errorf("state %+v, %v", st, err)
	}
}

func TestUlimitIsCapped(t *testing.T) {
	b := sh(t, "ulimit -n; ulimit -c")
	b.in.Spec.Ulimits = []spec.Ulimit{{Name: "nofile", Soft: 1 << 30, Hard: 1 << 30}, {Name: "core", Soft: 0, Hard: 0}}
	out, e := b.run()
	host, err := runspec.ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint(host.HardLimits["NOFILE"])
	if host.SysResource {
		want = fmt.Sprint(1 << 30)
	}
	if e.Code != 0 || !strings.HasPrefix(out, want+"\n0\n") {
		t.Errorf("limits %q, want nofile %s", out, want)
	}
	if !host.SysResource && len(b.warned) != 1 {
		t.Errorf("warnings %v", b.warned)
	}
}

// The shim lowers a limit that it may not set to its own limit, and says so in its log.
func TestUlimitOfAnotherHost(t *testing.T) {
	b := sh(t, "ulimit -H -n")
	b.edit = func(s *specs.Spec) {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}) // no host allows it
	}
	out, e := b.run()
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	if e.Code != 0 || out != fmt.Sprintln(own.Max) {
		t.Errorf("limit %q, exit %+v, want %d", out, e, own.Max)
	}
	if log, err := os.ReadFile(filepath.Join(b.cfg.Bundle, shim.LogFile)); err != nil || !strings.Contains(string(log), "warning: RLIMIT_NOFILE") {
		t.Errorf("the shim's log: %q, %v", log, err)
	}
}

func TestPlantedLinksStayInside(t *testing.T) {
	for _, name := range []string{"dev", "proc", "sys", "dev/null", "dev/shm", "dev/pts", "work", "etc"} {
		t.Run(strings.ReplaceAll(name, "/", "-"), func(t *testing.T) {
			canary := filepath.Join(t.TempDir(), "canary")
			if err := os.MkdirAll(canary, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(canary, "null"), []byte("mine"), 0o600); err != nil {
				t.Fatal(err)
			}
			b := sh(t, "echo ran; pwd")
			b.in.HostsPath = filepath.Join(t.TempDir(), "hosts")
			if err := os.WriteFile(b.in.HostsPath, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(b.in.Rootfs, name)
			_ = os.RemoveAll(link)
			target := canary
			if name == "dev/null" {
				target = filepath.Join(canary, "null")
			}
			if name == "work" {
				b.in.Spec.WorkingDir = "/work/sub"
			}
			if err := os.Symlink("../../../../../../../../../../../.."+target, link); err != nil {
				t.Fatal(err)
			}
			before := treeOf(t, canary)
			if err := b.launchErr(); err == nil { // a refusal is right, and so is a container that cannot reach the host
				b.start()
				b.wait()
			}
			if after := treeOf(t, canary); after != before {
				t.Errorf("the host's directory changed:\n%s\nto\n%s", before, after)
			}
			if host, err := os.Stat("/dev/null"); err != nil || host.Mode()&os.ModeCharDevice == 0 {
				t.Fatalf("the host's /dev/null: %v, %v", host, err)
			}
		})
	}
}

func treeOf(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(dir, func(name string, st os.FileInfo, err error) error {
		if err == nil {
			fmt.Fprintln(&out, name, st.Mode(), st.Size(), st.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestWorkdir(t *testing.T) {
	b := sh(t, "pwd")
	b.in.Spec.WorkingDir = "/made/for/it"
	if out, _ := b.run(); out != "/made/for/it\n" {
		t.Errorf("cwd %q", out)
	}
	// A working directory that is a link to a descriptor must not reach the host.
	for fd := 3; fd < 12; fd++ {
		b := sh(t, "pwd; ls -d ../../../../etc/shadow")
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(b.in.Rootfs, "work")); err != nil {
			t.Fatal(err)
		}
		b.in.Spec.WorkingDir = "/work"
		if err := b.launchErr(); err != nil {
			continue
		}
		b.start()
		b.wait()
		if out := b.output(); strings.Contains(out, "/etc/shadow\n") && !strings.Contains(out, "No such file") {
			t.Errorf("fd %d: reached the host: %q", fd, out)
		}
	}
}

func TestHostPidNamespaceLeavesNobody(t *testing.T) {
	b := sh(t, "sleep 98765 >/dev/null 2>&1 & echo $$; sleep 0.1")
	b.in.PID = runspec.Namespace{Host: true}
	out, e := b.run()
	if e.Code != 0 || strings.TrimSpace(out) == "1" {
		t.Fatalf("%q %+v", out, e)
	}
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if c, _ := os.ReadFile(n); strings.Contains(string(c), "sleep\x0098765") {
			t.Errorf("%s: left after the end", n)
		}
	}
}

func TestMounts(t *testing.T) {
	b := sh(t, "cat /data/f; touch /data/new; touch /ro/new 2>/dev/null || echo readonly; grep ' /tmpfs ' /proc/mounts; cat /etc/hosts; df /dev/shm | tail -1; hostname")
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("from host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.in.HostsPath = filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(b.in.HostsPath, []byte("10.0.0.1 here\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.in.Spec.ShmSize = 32 << 20
	b.in.Mounts = []volume.Mount{
		{Type: "bind", Source: src, Target: "/data", RW: true}, {Type: "bind", Source: src, Target: "/ro"},
		{Type: "tmpfs", Target: "/tmpfs", Options: []string{"size=1m", "exec"}, RW: true},
	}
	out, _ := b.run()
	for _, w := range []string{"from host\n", "readonly\n", "tmpfs /tmpfs tmpfs rw,nosuid,nodev,", "size=1024k", "10.0.0.1 here", "32768", b.in.Spec.Hostname} {
		if !strings.Contains(out, w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
	if _, err := os.Stat(filepath.Join(src, "new")); err != nil {
		t.Errorf("a write did not reach the host: %v", err)
	}
}

func TestReadonlyRootfs(t *testing.T) {
	b := sh(t, "touch /x 2>/dev/null || echo ro; touch /dev/shm/x && echo shm")
	b.in.Spec.ReadonlyRootfs = true
	if out, _ := b.run(); out != "ro\nshm\n" {
		t.Errorf("%q", out)
	}
}

func TestInitReapsAndPassesSignals(t *testing.T) {
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	b := sh(t, "trap 'exit 9' TERM; (sleep 0.05 &) ; echo $$; sleep 0.3; ps; echo up; while :; do sleep 0.05; done")
	b.in.InitBinary = bin
	b.launch().start()
	b.logged("up")
	if out := b.output(); strings.HasPrefix(out, "1\n") || strings.Contains(out, "[sleep]") {
		t.Errorf("under an init: %q", out)
	}
	if err := b.c.Kill(t.Context(), "", shim.KillArgs{Signal: int(unix.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(); e.Code != 9 {
		t.Errorf("exit %+v", e)
	}
}

func TestNetworkNamespaceIsEmpty(t *testing.T) {
	b := sh(t, "cat /proc/net/dev; cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
	out, _ := b.run()
	if !strings.Contains(out, "lo:") || strings.Contains(out, "eth") || !strings.HasSuffix(out, "\n0\n") {
		t.Errorf("%q", out)
	}
	if b.spec.Linux.Namespaces[1].Type != specs.NetworkNamespace {
		t.Errorf("namespaces %v", b.spec.Linux.Namespaces)
	}
}

func TestLeastMemory(t *testing.T) {
	b := sh(t, "echo ran")
	b.in.Spec.Resources = spec.Resources{Memory: 6 << 20}
	if out, e := b.run(); out != "ran\n" || e.OOMKilled {
		t.Errorf("with %d bytes: %q, %+v", 6<<20, out, e)
	}
}
