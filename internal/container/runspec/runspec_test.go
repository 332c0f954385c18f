package runspec

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/errs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testHost is a host with everything, so that goldens do not depend on the machine.
func testHost(t *testing.T) *Host {
	return &Host{
		CgroupV2: true, SysResource: true, SwapLimit: true, RecursiveRO: true, UnprivilegedPing: true,
		Caps: append(slices.Clone(DefaultCaps), "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"), DevDir: t.TempDir(),
		HardLimits: map[string]uint64{"NOFILE": 1024},
	}
}

func testRoot(t *testing.T) string {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/var/www:/bin/sh\nodd:x:1001:1001::relative:/bin/sh\n" +
			"broken\n7:x:77:77::/seven:/bin/sh\nhuge:x:4294967296:0::/:/bin/sh\nnogid:x:12:x::/:/bin/sh\nshort:x:50:51\n",
		"group": "root:x:0:\nweb:x:33:\nteam:x:500:web,other\nstaff:x:501:other\n9:x:99:web\nbad:x:-1:web\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func input(t *testing.T) Input {
	return Input{ID: strings.Repeat("ab", 32), Rootfs: testRoot(t), Host: testHost(t), Args: []string{"/bin/sh", "-c", "true"},
		Hostname: "abababababab", HostsPath: "/c/hosts", HostnamePath: "/c/hostname", ResolvConfPath: "/c/resolv.conf"}
}

func TestGolden(t *testing.T) {
	limit, swappiness := int64(100), int64(10)
	for name, change := range map[string]func(*Input){
		"plain": func(*Input) {},
		"tty": func(in *Input) {
			in.Tty, in.Height, in.Width = true, 24, 80
			in.Env = []string{"A=1", "PATH=/bin", "A=2"}
		},
		"privileged": func(in *Input) {
			in.Privileged = true
			in.SecurityOpt = []string{"label=disable"}
		},
		"limits": func(in *Input) {
			in.Resources = Resources{Memory: 64 << 20, MemoryReservation: 32 << 20, MemorySwappiness: &swappiness, NanoCPUs: 1_500_000_000,
				CPUShares: 512, CpusetCpus: "0-1", CpusetMems: "0", PidsLimit: &limit, BlkioWeight: 300}
			in.Ulimits = []Ulimit{{"nofile", 1000, 2000}, {"core", 0, -1}}
			in.OomScoreAdj = 500
			in.CgroupParent = "/a/../b"
		},
		"v1": func(in *Input) {
			in.Host.CgroupV2, in.Host.SwapLimit, in.Host.OOMKillDisable = false, false, true
			in.OomKillDisable = true
			in.Resources = Resources{Memory: 64 << 20}
		},
		"mounts": func(in *Input) {
			in.ReadonlyRootfs, in.ShmSize = true, 1<<20
			in.Mounts = []Mount{
				{Type: "volume", Source: "/v/deep", Target: "/a/b/c"}, {Type: "bind", Source: "/v", Target: "/a/", ReadOnly: true, Propagation: "rslave"},
				{Type: "tmpfs", Target: "/t", Options: []string{"exec", "size=10m", "ro"}}, {Type: "bind", Source: "/h", Target: "/etc/hosts"},
			}
		},
		"shared": func(in *Input) {
			in.Net, in.PID, in.IPC, in.UTS = Namespace{Path: "/run/ns/x", Joined: true}, Namespace{Host: true}, Namespace{Path: "/proc/9/ns/ipc"}, Namespace{Host: true}
			in.ShmPath, in.Cgroupns = "/c/shm", "host"
			in.CapAdd, in.CapDrop = []string{"net_admin"}, []string{"ALL"}
			in.User = "web"
			in.SecurityOpt = []string{"no-new-privileges:true", "seccomp=unconfined", "systempaths=unconfined"}
			in.DeviceRules = []string{"c 1:* rw"}
			in.Sysctls = map[string]string{"net.core.somaxconn": "5"}
			in.Annotations = map[string]string{"k": "v"}
		},
		"init": func(in *Input) { in.InitBinary = "/usr/libexec/ply-shim" },
	} {
		t.Run(name, func(t *testing.T) {
			in := input(t)
			change(&in)
			spec, warnings, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			if spec.Linux.Seccomp != nil {
				// The profile is the library's, and long: its own tests cover it.
				spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: spec.Linux.Seccomp.DefaultAction}
			}
			spec.Root.Path = "/rootfs"
			got, err := json.MarshalIndent(struct {
				Spec     *specs.Spec
				Warnings []string `json:",omitempty"`
			}{spec, warnings}, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimSpace(string(want)), string(got)); d != "" {
				t.Errorf("config.json differs (-want +got):\n%s", d)
			}
		})
	}
}

func TestSeccompRefusesAlgAndVsock(t *testing.T) {
	spec, _, err := Build(input(t))
	if err != nil {
		t.Fatal(err)
	}
	allowed := func(family uint64) bool {
		for _, s := range spec.Linux.Seccomp.Syscalls {
			if s.Action != specs.ActAllow || !slices.Contains(s.Names, "socket") {
				continue
			}
			ok := true
			for _, a := range s.Args {
				switch a.Op {
				case specs.OpLessThan:
					ok = ok && family < a.Value
				case specs.OpEqualTo:
					ok = ok && family == a.Value
				case specs.OpGreaterThan:
					ok = ok && family > a.Value
				default:
					t.Fatalf("operator %s", a.Op)
				}
			}
			if ok {
				return true
			}
		}
		return false
	}
	for family, want := range map[uint64]bool{1: true, 2: true, 10: true, 16: true, 17: true, 38: false, 39: true, 40: false, 44: true} {
		if got := allowed(family); got != want {
			t.Errorf("socket family %d allowed = %v, want %v", family, got, want)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Input)
		class  error
		words  string
	}{
		"no command":      {func(in *Input) { in.Args = nil }, errs.Invalid, "no command specified"},
		"NUL in argument": {func(in *Input) { in.Args = []string{"a\x00b"} }, errs.Invalid, "NUL"},
		"NUL in env":      {func(in *Input) { in.Env = []string{"A=a\x00b"} }, errs.Invalid, "NUL"},
		"nameless env":    {func(in *Input) { in.Env = []string{"=x"} }, errs.Invalid, "invalid environment variable: =x"},
		"cwd descriptor":  {func(in *Input) { in.Cwd = "/proc/self/fd/7" }, errs.Invalid, "working directory"},
		"cwd relative":    {func(in *Input) { in.Cwd = "proc/self/fd/7" }, errs.Invalid, "working directory"},
		"cwd climbing":    {func(in *Input) { in.Cwd = "/x/../proc//thread-self/./fd/7" }, errs.Invalid, "working directory"},
		"cwd by task":     {func(in *Input) { in.Cwd = "/proc/1/task/1/cwd" }, errs.Invalid, "working directory"},
		"userns":          {func(in *Input) { in.Userns = "private" }, errs.Unimplemented, "userns"},
		"cap":             {func(in *Input) { in.CapAdd = []string{"FLY"} }, errs.Invalid, `invalid capability: "FLY"`},
		"cap of others":   {func(in *Input) { in.CapAdd = []string{"SYS_BOOT"} }, errs.Invalid, "CAP_SYS_BOOT"},
		"security":        {func(in *Input) { in.SecurityOpt = []string{"magic=1"} }, errs.Invalid, "magic=1"},
		"apparmor":        {func(in *Input) { in.SecurityOpt = []string{"apparmor=x"} }, errs.Invalid, "AppArmor"},
		"label":           {func(in *Input) { in.SecurityOpt = []string{"label=type:x"} }, errs.Unimplemented, "label"},
		"seccomp":         {func(in *Input) { in.SecurityOpt = []string{"seccomp={"} }, errs.Invalid, "seccomp"},
		"ulimit":          {func(in *Input) { in.Ulimits = []Ulimit{{"x", 1, 1}} }, errs.Invalid, "invalid ulimit type: x"},
		"ulimit order":    {func(in *Input) { in.Ulimits = []Ulimit{{"core", 2, 1}} }, errs.Invalid, "soft limit"},
		"oom score":       {func(in *Input) { in.OomScoreAdj = 1001 }, errs.Invalid, "oom score adj"},
		"memory":          {func(in *Input) { in.Resources.Memory = 1 }, errs.Invalid, "6MB"},
		"swap alone":      {func(in *Input) { in.Resources.MemorySwap = 1 << 30 }, errs.Invalid, "Memoryswap"},
		"sysctl":          {func(in *Input) { in.Sysctls = map[string]string{"kernel.panic": "1"} }, errs.Invalid, "kernel.panic"},
		"sysctl path":     {func(in *Input) { in.Sysctls = map[string]string{"net.../x": "1"} }, errs.Invalid, "sysctl"},
		"sysctl hostnet": {func(in *Input) {
			in.Net.Host = true
			in.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, errs.Invalid, "host network"},
		"device":      {func(in *Input) { in.Devices = []Device{{HostPath: "/dev/nosuch"}} }, errs.NotFound, "/dev/nosuch"},
		"device file": {func(in *Input) { in.Devices = []Device{{HostPath: "/etc/passwd"}} }, errs.Invalid, "not a device node"},
		"device mode": {func(in *Input) { in.Devices = []Device{{"/dev/null", "/dev/x", "q"}} }, errs.Invalid, "invalid device mode: q"},
		"device rule": {func(in *Input) { in.DeviceRules = []string{"c 1:3 x"} }, errs.Invalid, "device cgroup rule"},
		"mount root":  {func(in *Input) { in.Mounts = []Mount{{Type: "bind", Source: "/x", Target: "/a/.."}} }, errs.Invalid, "destination can't be '/'"},
		"mount twice": {func(in *Input) {
			in.Mounts = []Mount{{Type: "bind", Source: "/x", Target: "/a"}, {Type: "tmpfs", Target: "/a/"}}
		}, errs.Invalid, "Duplicate mount point: /a"},
		"mount relative": {func(in *Input) { in.Mounts = []Mount{{Type: "bind", Source: "/x", Target: "a"}} }, errs.Invalid, "absolute"},
		"propagation":    {func(in *Input) { in.Mounts = []Mount{{Type: "bind", Source: "/x", Target: "/a", Propagation: "x,rw"}} }, errs.Invalid, "propagation"},
		"tmpfs option":   {func(in *Input) { in.Mounts = []Mount{{Type: "tmpfs", Target: "/a", Options: []string{"lowerdir=/"}}} }, errs.Invalid, "lowerdir"},
	} {
		in := input(t)
		c.change(&in)
		_, _, err := Build(in)
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: Build = %v, want class %v with %q", name, err, c.class, c.words)
		}
	}
}

func TestCapping(t *testing.T) {
	in := input(t)
	in.Host.SysResource, in.Host.OOMScoreAdj = false, 100
	in.Ulimits = []Ulimit{{"nofile", -1, -1}}
	spec, warnings, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if r := spec.Process.Rlimits[0]; r.Hard != 1024 || r.Soft != 1024 {
		t.Errorf("limit %+v, want 1024", r)
	}
	if *spec.Process.OOMScoreAdj != 100 {
		t.Errorf("oom score %d, want the host's 100", *spec.Process.OOMScoreAdj)
	}
	if len(warnings) != 2 {
		t.Errorf("warnings %q, want two", warnings)
	}
}

func TestExecTakesTheContainersRights(t *testing.T) {
	in := input(t)
	in.Env = []string{"A=1"}
	in.User, in.GroupAdd = "web", []string{"staff"}
	in.SecurityOpt = []string{"no-new-privileges"}
	in.Cwd = "/srv"
	spec, _, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := Exec(in, spec, ExecInput{Args: []string{"x"}, Env: []string{"B=2"}})
	if err != nil {
		t.Fatal(err)
	}
	wantEnv := []string{"PATH=" + DefaultPath, "HOSTNAME=abababababab", "A=1", "B=2", "HOME=/var/www"}
	if !slices.Equal(p.Env, wantEnv) || p.Cwd != "/srv" || p.User.UID != 33 || !p.NoNewPrivileges || len(p.Capabilities.Effective) != 0 {
		t.Errorf("exec %+v", p)
	}
	if !slices.Equal(p.User.AdditionalGids, []uint32{33, 500, 99, 501}) {
		t.Errorf("groups %v", p.User.AdditionalGids)
	}
	p, _, err = Exec(in, spec, ExecInput{Args: []string{"x"}, User: "0", Privileged: true, Tty: true, Height: 3, Width: 4})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Capabilities.Effective) != len(in.Host.Caps) || !slices.Contains(p.Env, "HOME=/root") || !slices.Contains(p.Env, "TERM=xterm") || p.ConsoleSize.Height != 3 {
		t.Errorf("privileged exec %+v %+v", p, p.Capabilities)
	}
}
