package build

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// builder is a way to build: a command line with its protocol.
type builder struct {
	name  string
	build func(e *engine, dir string, args ...string) (string, int)
}

var (
	plyBuilder = builder{"ply", func(e *engine, dir string, args ...string) (string, int) {
		return e.try(dir, e.cli[0], append([]string{"build"}, args...)...)
	}}
	classicBuilder = builder{"classic", func(e *engine, dir string, args ...string) (string, int) {
		c := *e
		c.env = append(slices.Clone(e.env), "DOCKER_BUILDKIT=0")
		return c.try(dir, "/usr/bin/docker", append([]string{"build"}, args...)...)
	}}
	buildkitBuilder = builder{"buildkit", (*engine).buildkit}
	protocols       = []builder{plyBuilder, classicBuilder, buildkitBuilder}
)

var naps atomic.Int64

// step builds a Dockerfile with one RUN and calls look with the process of the command while it runs. It returns what the build printed, and its exit code.
func step(t *testing.T, e *engine, b builder, run string, args []string, look func(pid int)) (string, int) {
	t.Helper()
	nap := fmt.Sprintf("sleep %d", 1_000_000+int64(os.Getpid())*1000+naps.Add(1))
	dir := write(t, map[string]string{"Dockerfile": "FROM base\nRUN " + run + nap + " || true\n"})
	type result struct {
		out  string
		code int
	}
	done := make(chan result, 1)
	go func() {
		out, code := b.build(e, dir, append(slices.Clone(args), ".")...)
		done <- result{out, code}
	}()
	for {
		select {
		case r := <-done:
			return r.out, r.code
		case <-time.After(20 * time.Millisecond):
		}
		if pid := processOf(nap); pid != 0 {
			look(pid)
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			r := <-done
			return r.out, r.code
		}
	}
}

// processOf returns the process with a command line; 0 when there is none.
func processOf(command string) int {
	out, _ := exec.Command("pgrep", "-f", "^"+command+"$").Output()
	pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return pid
}

// facts are what a process may do, by the names of this file.
func facts(t *testing.T, pid int) map[string]string {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Errorf("%v", err)
		}
		return string(b)
	}
	f := map[string]string{}
	for line := range strings.Lines(read(proc + "status")) {
		key, value, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "NoNewPrivs"}, key) {
			f[key] = strings.TrimSpace(value)
		}
	}
	for line := range strings.Lines(read(proc + "limits")) {
		if w := regexp.MustCompile(`^Max (.*?)  +(\S+) +(\S+)`).FindStringSubmatch(line); w != nil {
			f["limit "+w[1]] = w[2] + ":" + w[3]
		}
	}
	for line := range strings.Lines(read(proc + "mounts")) {
		if w := strings.Fields(line); w[1] == "/dev/shm" {
			f["shm"] = regexp.MustCompile(`size=\w+`).FindString(w[3])
		}
	}
	f["hosts"] = read(proc + "root/etc/hosts")
	for line := range strings.Lines(read(proc + "net/dev")) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			f["interfaces"] += strings.TrimSpace(name) + " "
		}
	}
	own, err := os.Readlink("/proc/self/ns/net")
	theirs, err2 := os.Readlink(proc + "ns/net")
	if err != nil || err2 != nil {
		t.Error(err, err2)
	}
	f["host network"] = strconv.FormatBool(own == theirs)
	for line := range strings.Lines(read(proc + "cgroup")) {
		w := strings.SplitN(strings.TrimSpace(line), ":", 3)
		dir := filepath.Join("/sys/fs/cgroup", w[1], w[2])
		if w[1] != "" && strings.HasPrefix(w[1], "name=") || w[1] == "" && w[2] == "/" {
			continue
		}
		f["cgroup "+w[1]] = w[2]
		for _, name := range []string{"memory.limit_in_bytes", "memory.max", "cpu.shares", "cpu.weight", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.max", "cpuset.cpus", "cpuset.mems", "memory.memsw.limit_in_bytes", "memory.swap.max"} {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
				f[name] = strings.TrimSpace(string(b))
			}
		}
	}
	return f
}

// Limits and other options of a build's containers reach the commands of RUN, whichever protocol the client speaks.
func TestLimitsReachSteps(t *testing.T) {
	e := startPly(t, "overlay2")
	parent := fmt.Sprintf("plybuild%d", os.Getpid())
	t.Cleanup(func() { removeCgroups(t, parent) })
	args := []string{
		"--no-cache", "--ulimit", "nofile=111:222", "--shm-size", "3m", "--cgroup-parent", "/" + parent, "--add-host", "added.example:192.0.2.7",
		"--memory", "64m", "--memory-swap", "96m", "--cpu-shares", "512", "--cpu-period", "50000", "--cpu-quota", "40000", "--cpuset-cpus", "0", "--cpuset-mems", "0",
	}
	for _, b := range protocols {
		t.Run(b.name, func(t *testing.T) {
			looked := false
			out, code := step(t, e, b, "", args, func(pid int) {
				looked = true
				f := facts(t, pid)
				if !strings.Contains(f["hosts"], "192.0.2.7\tadded.example") {
					t.Errorf("hosts:\n%s", f["hosts"])
				}
				check := func(want string, names ...string) {
					t.Helper()
					for _, n := range names {
						if got, ok := f[n]; ok {
							if !regexp.MustCompile("^(" + want + ")$").MatchString(got) {
								t.Errorf("%s is %q, want %q", n, got, want)
							}
							return
						}
					}
					t.Errorf("%v is not known: %v", names, f)
				}
				check("111:222", "limit open files")
				check("size=3072k", "shm")
				check("67108864", "memory.limit_in_bytes", "memory.max")
				check("512|20|59", "cpu.shares", "cpu.weight") // of the weights, the one of the old and of the new conversion
				check("40000|40000 50000", "cpu.cfs_quota_us", "cpu.max")
				check("50000|40000 50000", "cpu.cfs_period_us", "cpu.max")
				check("0", "cpuset.cpus")
				check("0", "cpuset.mems")
				if swapAccounted() {
					check("100663296|33554432", "memory.memsw.limit_in_bytes", "memory.swap.max") // with the memory, or without it
				}
				check("/"+parent+"/.*", "cgroup memory", "cgroup ")
			})
			if code != 0 || !looked {
				t.Errorf("exit code %d\n%s", code, out)
			}
			// On a machine with one memory node every step is on it. A node that is not there shows that the option arrives.
			dir := write(t, map[string]string{"Dockerfile": "FROM base\nRUN true\n"})
			if out, code := b.build(e, dir, "--no-cache", "--cpuset-mems", "63", "."); code == 0 || !strings.Contains(out, "emory nodes") {
				t.Errorf("a step on a memory node that is not there: exit code %d\n%s", code, out)
			}
		})
	}
	// Without the options a step has what `run` gives a container.
	e.ply(t, "run", "-d", "--name", "plain", "base", "sleep", "1000000")
	var pid int
	if _, err := fmt.Sscan(e.ply(t, "inspect", "-f", "{{.State.Pid}}", "plain"), &pid); err != nil {
		t.Fatal(err)
	}
	want := facts(t, pid)
	e.ply(t, "rm", "-f", "plain")
	if want["CapEff"] != "00000000a80425fb" || want["Seccomp"] != "2" || want["CapInh"] != "0000000000000000" || want["CapAmb"] != "0000000000000000" {
		t.Errorf("a container does not have docker's default rights: %v", want)
	}
	for _, b := range protocols {
		out, code := step(t, e, b, "", []string{"--no-cache"}, func(pid int) {
			f := facts(t, pid)
			for name, v := range want {
				if name != "hosts" && !strings.HasPrefix(name, "cgroup") && f[name] != v {
					t.Errorf("%s: %s is %q, that of a container %q", b.name, name, f[name], v)
				}
			}
			if f["host network"] != "false" {
				t.Errorf("%s: a step is in the host's network", b.name)
			}
		})
		if code != 0 {
			t.Errorf("%s: exit code %d\n%s", b.name, code, out)
		}
	}
	left(t, e)
}

// removeCgroups removes a cgroup of all hierarchies, which must have no process and no child.
func removeCgroups(t *testing.T, name string) {
	t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(dirs, "/sys/fs/cgroup/"+name) {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			t.Errorf("a cgroup is left: %v", err)
		}
	}
}

// A step gets the network of its option or of the build's, and the network of the host or all rights only if the client was granted them.
func TestEntitlements(t *testing.T) {
	e := startPly(t, "overlay2")
	const host, insecure = "--network=host ", "--security=insecure "
	all := func() string {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		return string(regexp.MustCompile(`CapBnd:\s*(\w+)`).FindSubmatch(b)[1])
	}()
	both := []builder{classicBuilder, buildkitBuilder}
	for _, c := range []struct {
		name     string
		builders []builder
		run      string
		args     []string
		want     map[string]string // of the process; nil = the build is refused
		refused  string
	}{
		{"none", protocols, "--network=none ", nil, map[string]string{"interfaces": "lo ", "host network": "false", "CapEff": "00000000a80425fb"}, ""},
		{"none for all", protocols, "", []string{"--network", "none"}, map[string]string{"interfaces": "lo ", "host network": "false"}, ""},
		{"default", protocols, "--network=default ", nil, map[string]string{"interfaces": "lo eth0 ", "host network": "false"}, ""},
		{"sandbox", protocols, "--security=sandbox ", nil, map[string]string{"CapEff": "00000000a80425fb", "Seccomp": "2"}, ""},
		{"host", []builder{plyBuilder}, host, []string{"--allow", "network.host"}, map[string]string{"host network": "true", "CapEff": "00000000a80425fb", "Seccomp": "2"}, ""},
		{"host for all", protocols, "", []string{"--network", "host"}, map[string]string{"host network": "true", "CapEff": "00000000a80425fb", "Seccomp": "2"}, ""},
		{"insecure", []builder{plyBuilder}, insecure, []string{"--allow", "security.insecure"}, map[string]string{"host network": "false", "CapEff": all, "Seccomp": "0"}, ""},
		{"both", []builder{plyBuilder}, host + insecure, []string{"--allow", "security.insecure,network.host"}, map[string]string{"host network": "true", "CapEff": all, "Seccomp": "0"}, ""},

		{"host refused", protocols, host, nil, nil, "network.host is not allowed"},
		{"host refused, although everything else is allowed", []builder{plyBuilder}, host, []string{"--allow", "security.insecure"}, nil, "network.host is not allowed"},
		{"insecure refused", protocols, insecure, nil, nil, "security.insecure is not allowed"},
		{"insecure refused, although everything else is allowed", []builder{plyBuilder}, insecure, []string{"--allow", "network.host"}, nil, "security.insecure is not allowed"},
		{"insecure refused with the host's network", both, insecure, []string{"--network", "host"}, nil, "security.insecure is not allowed"},
		{"unknown", []builder{plyBuilder}, "", []string{"--allow", "network"}, nil, "unknown entitlement"},
		{"network of a container", []builder{plyBuilder, classicBuilder}, "", []string{"--network", "container:x"}, nil, "network of a container is not supported"},
		{"network in a step", protocols, "--network=bridge ", nil, nil, "Dockerfile:2"},
		{"rights in a step", protocols, "--security=all ", nil, nil, "Dockerfile:2"},
	} {
		for _, b := range c.builders {
			t.Run(c.name+" "+b.name, func(t *testing.T) {
				looked := false
				out, code := step(t, e, b, c.run, append([]string{"--no-cache"}, c.args...), func(pid int) {
					looked = true
					f := facts(t, pid)
					for name, v := range c.want {
						if f[name] != v {
							t.Errorf("%s is %q, want %q", name, f[name], v)
						}
					}
				})
				switch {
				case c.want != nil && (code != 0 || !looked):
					t.Errorf("exit code %d\n%s", code, out)
				case c.want == nil && (code == 0 || looked || !regexp.MustCompile(c.refused).MatchString(out)):
					t.Errorf("exit code %d, want a refusal with %q\n%s", code, c.refused, out)
				}
			})
		}
	}
	// What one client was granted is no result for another one that was not.
	dir := write(t, map[string]string{"Dockerfile": "FROM base\nRUN --security=insecure --network=host echo granted > /f\n"})
	if out, code := e.try(dir, e.cli[0], "build", "--allow", "network.host,security.insecure", "."); code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	for _, b := range protocols {
		if out, code := b.build(e, dir, "."); code == 0 || !strings.Contains(out, "is not allowed") {
			t.Errorf("%s: exit code %d: a result of another client was used\n%s", b.name, code, out)
		}
	}
	left(t, e)
}

// A step that needs more rights than the client was granted is refused also where its result, or that of a step after it, is in the engine's cache or in one that
// the client names. Nothing of the build is executed before.
func TestEntitlementsOfCachedSteps(t *testing.T) {
	e := startPly(t, "overlay2")
	reg := startRegistry(t, t.TempDir()).Host
	text := func(flag string) string {
		return "FROM base AS a\nRUN " + flag + " echo $((6*7))granted | tee /f\nFROM base\nRUN echo $((6*7))first > /first\nCOPY --from=a /f /f\nRUN echo $((6*7))last > /last\n"
	}
	executed := regexp.MustCompile("42(granted|first|last)") // the text of the steps has no 42, but IDs can have one
	for name, c := range map[string]struct{ flag, grant, refused string }{
		"network":  {"--network=host", "network.host", "network.host is not allowed"},
		"security": {"--security=insecure", "security.insecure", "security.insecure is not allowed"},
		"nothing":  {"--network=none", "network.host", ""}, // needs no right
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, map[string]string{"Dockerfile": text(c.flag)})
			ref := reg + "/" + name + ":1"
			max, min := "type=registry,ref="+ref+"max", "type=registry,ref="+ref+"min"
			if out, code := e.try(dir, e.cli[0], "build", "--progress", "plain", "--allow", c.grant, "--cache-to", max+",mode=max", "--cache-to", min+",mode=min", "."); code != 0 {
				t.Fatalf("exit code %d\n%s", code, out)
			}
			for _, from := range []string{"", max, min} {
				var args []string
				if from != "" {
					args = []string{"--cache-from", from}
				}
				for _, b := range protocols {
					if from != "" {
						e.ply(t, "builder", "prune", "-af")
					}
					if from != "" && b.name == "classic" {
						args = []string{"--cache-from", ref + from[len(from)-3:]}
					}
					out, code := b.build(e, dir, append(slices.Clone(args), ".")...)
					ran := executed.MatchString(out)
					switch {
					case c.refused == "" && (code != 0 || ran):
						t.Errorf("%s, cache %q: exit code %d, executed: %v\n%s", b.name, from, code, ran, out)
					case c.refused != "" && (code == 0 || ran || !strings.Contains(out, c.refused)):
						t.Errorf("%s, cache %q: exit code %d, executed: %v, want %q\n%s", b.name, from, code, ran, c.refused, out)
					}
				}
			}
			// With the right, the results are used.
			e.ply(t, "builder", "prune", "-af")
			out, code := e.try(dir, e.cli[0], "build", "--progress", "plain", "--allow", c.grant, "--cache-from", min, ".")
			if code != 0 || executed.MatchString(out) {
				t.Errorf("exit code %d, or a step was executed\n%s", code, out)
			}
		})
	}
	left(t, e)
}

// swapAccounted reports whether the kernel limits swap for each cgroup.
func swapAccounted() bool {
	for _, name := range []string{"/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/system.slice/memory.swap.max", "/sys/fs/cgroup/init.scope/memory.swap.max"} {
		if _, err := os.Stat(name); err == nil {
			return true
		}
	}
	return false
}
