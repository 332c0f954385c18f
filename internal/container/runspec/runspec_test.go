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

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/volume"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// testHost is a host with everything, so that goldens do not depend on the machine.
func testHost(t *testing.T) *Host {
	return &Host{
		CgroupV2: true, SysResource: true, SwapLimit: true, Pids: true, Weights: true, RecursiveRO: true, UnprivilegedPing: true,
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
	return Input{ID: strings.Repeat("ab", 32), Rootfs: testRoot(t), Host: testHost(t),
		Spec:      spec.Spec{Cmd: []string{"/bin/sh", "-c", "true"}, Hostname: "abababababab"},
		HostsPath: "/c/hosts", HostnamePath: "/c/hostname", ResolvConfPath: "/c/resolv.conf"}
}

func TestAppArmor(t *testing.T) {
	for _, tc := range []struct {
		off, privileged bool
		opts            []string
		want            string
	}{
		{want: "ply-default"},
		{opts: []string{"apparmor=mine"}, want: "mine"},
		{opts: []string{"apparmor:mine"}, want: "mine"},
		{opts: []string{"apparmor=unconfined"}, want: "unconfined"},
		{privileged: true, want: "unconfined"},
		{privileged: true, opts: []string{"apparmor=mine"}, want: "mine"},
		{off: true},
		{off: true, privileged: true},
		{off: true, opts: []string{"apparmor=unconfined"}},
	} {
		in := input(t)
		in.Host.AppArmor, in.Spec.Privileged, in.Spec.SecurityOpt = !tc.off, tc.privileged, tc.opts
		s, _, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		if s.Process.ApparmorProfile != tc.want || AppArmorProfile(&in.Spec, in.Host) != tc.want {
			t.Errorf("%+v: profile %q, want %q", tc, s.Process.ApparmorProfile, tc.want)
		}
		p, _, err := Exec(in, s, ExecInput{Args: []string{"sh"}, Privileged: true})
		if err != nil || p.ApparmorProfile != tc.want {
			t.Errorf("%+v: an exec has profile %q, want %q; %v", tc, p.ApparmorProfile, tc.want, err)
		}
	}
}

// The cgroups of a container are writable where its options say so, else where it is privileged.
func TestWritableCgroups(t *testing.T) {
	for _, tc := range []struct {
		privileged, readOnlyRoot bool
		opt                      string
		cgroups, sys             bool // writable
	}{
		{}, {privileged: true, cgroups: true, sys: true}, {privileged: true, readOnlyRoot: true, cgroups: true},
		{opt: "writable-cgroups", cgroups: true}, {opt: "writable-cgroups=true", cgroups: true}, {opt: "writable-cgroups:1", cgroups: true}, {opt: "writable-cgroups=false"},
		{privileged: true, opt: "writable-cgroups=false", sys: true}, {readOnlyRoot: true, opt: "writable-cgroups", cgroups: true},
	} {
		in := input(t)
		in.Spec.Privileged, in.Spec.ReadonlyRootfs = tc.privileged, tc.readOnlyRoot
		if tc.opt != "" {
			in.Spec.SecurityOpt = []string{tc.opt}
		}
		s, _, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range s.Mounts {
			want := map[string]bool{"/sys": tc.sys, "/sys/fs/cgroup": tc.cgroups}
			if w, ok := want[m.Destination]; ok && w == slices.Contains(m.Options, "ro") {
				t.Errorf("%+v: %s has the options %v", tc, m.Destination, m.Options)
			}
		}
	}
	for _, opt := range []string{"writable-cgroups=", "writable-cgroups=dang", "writable-cgroup"} {
		in := input(t)
		in.Spec.SecurityOpt = []string{opt}
		if _, _, err := Build(in); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want class Invalid", opt, err)
		}
	}
}

func TestGolden(t *testing.T) {
	limit, swappiness := int64(100), int64(10)
	for name, change := range map[string]func(*Input){
		"plain": func(*Input) {},
		"tty": func(in *Input) {
			in.Spec.Tty, in.Spec.ConsoleSize = true, [2]uint{24, 80}
			in.Spec.Env = []string{"A=1", "PATH=/bin", "A=2"}
		},
		"privileged": func(in *Input) {
			in.Spec.Privileged = true
			in.Spec.SecurityOpt = []string{"label=disable"}
		},
		"limits": func(in *Input) {
			in.Spec.Resources = spec.Resources{Memory: 64 << 20, MemoryReservation: 32 << 20, MemorySwappiness: &swappiness, NanoCPUs: 1_500_000_000,
				CPUShares: 512, CpusetCpus: "0-1", CpusetMems: "0", PidsLimit: &limit, BlkioWeight: 300}
			in.Spec.Ulimits = []spec.Ulimit{{Name: "nofile", Soft: 1000, Hard: 2000}, {Name: "core", Soft: 0, Hard: -1}}
			in.Spec.OomScoreAdj = 500
			umask := uint32(0o27)
			in.Spec.Umask = &umask
			in.Spec.CgroupParent = "/a/../b"
		},
		"v1": func(in *Input) {
			in.Host.CgroupV2, in.Host.SwapLimit, in.Host.OOMKillDisable = false, false, true
			in.Spec.OomKillDisable = true
			in.Spec.Resources = spec.Resources{Memory: 64 << 20}
		},
		"mounts": func(in *Input) {
			in.Spec.ReadonlyRootfs, in.Spec.ShmSize = true, 1<<20
			in.Mounts = []volume.Mount{
				{Type: "volume", Source: "/v/deep", Target: "/a/b/c", RW: true}, {Type: "bind", Source: "/v", Target: "/a/", Propagation: "rslave"},
				{Type: "tmpfs", Target: "/t", Options: []string{"exec", "size=10m", "ro"}, RW: true}, {Type: "bind", Source: "/h", Target: "/etc/hosts", RW: true},
			}
		},
		"shared": func(in *Input) {
			in.Net, in.PID, in.IPC, in.UTS = Namespace{Path: "/run/ns/x", Joined: true}, Namespace{Host: true}, Namespace{Path: "/proc/9/ns/ipc"}, Namespace{Host: true}
			in.ShmPath, in.Spec.CgroupnsMode = "/c/shm", "host"
			in.Spec.CapAdd, in.Spec.CapDrop = []string{"net_admin"}, []string{"ALL"}
			in.Spec.User = "web"
			in.Spec.SecurityOpt = []string{"no-new-privileges:true", "seccomp=unconfined", "systempaths=unconfined"}
			in.Spec.DeviceRules = []string{"c 1:* rw"}
			in.Spec.Sysctls = map[string]string{"net.core.somaxconn": "5"}
			in.Spec.Annotations = map[string]string{"k": "v"}
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

// Each mount comes after those that it lies in, whoever asked for it, so that none hides another.
func TestMountsAreNotHidden(t *testing.T) {
	in := input(t)
	in.InitBinary = "/usr/libexec/ply-shim"
	in.HostsPath, in.HostnamePath, in.ResolvConfPath = "/c/hosts", "/c/hostname", "/c/resolv.conf"
	in.Mounts = []volume.Mount{
		{Type: "volume", Source: "/v/1", Target: "/etc", RW: true}, {Type: "tmpfs", Target: "/sbin", RW: true},
		{Type: "bind", Source: "/v/2", Target: "/var/lib/x/y", RW: true}, {Type: "bind", Source: "/v/3", Target: "/var/lib", RW: true},
	}
	spec, _, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, m := range spec.Mounts {
		seen[m.Destination] = true
		for _, later := range spec.Mounts[i+1:] {
			if strings.HasPrefix(m.Destination, later.Destination+"/") {
				t.Errorf("%s is mounted after %s and hides it", later.Destination, m.Destination)
			}
		}
	}
	for _, want := range []string{"/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/sbin", InitTarget, "/var/lib/x/y"} {
		if !seen[want] {
			t.Errorf("nothing is mounted at %s", want)
		}
	}
}

// The conditions hold for every number but these.
func TestOtherThan(t *testing.T) {
	values := []uint64{0x401c5820, 0x40086602, 0x40046602, 0}
	conditions := otherThan(values)
	holds := func(n uint64) bool {
		return slices.ContainsFunc(conditions, func(a specs.LinuxSeccompArg) bool { return n&a.Value == a.ValueTwo })
	}
	for _, v := range values {
		if holds(v) || holds(v|0xabc<<32) {
			t.Errorf("a condition holds for %#x", v)
		}
		for bit := range 32 {
			if n := v ^ 1<<bit; !slices.Contains(values, n) && !holds(n) {
				t.Errorf("no condition holds for %#x", n)
			}
		}
	}
	for n := range uint64(1 << 16) {
		if n > 0 && !holds(n) || !holds(n<<16|5) {
			t.Fatalf("no condition holds for %#x or %#x", n, n<<16|5)
		}
	}
	if len(conditions) > 128 {
		t.Errorf("%d conditions", len(conditions))
	}
}

// A profile that allows everything refuses what changes the project of files; the rules of the user stay.
func TestKeepProjects(t *testing.T) {
	own := specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 0x5412, Op: specs.OpEqualTo}}}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{own}}
	keepProjects(p)
	if len(p.Syscalls) != 2+len(projectRequests) || !slices.Equal(p.Syscalls[0].Args, own.Args) || p.Syscalls[2].Action != specs.ActErrno || p.Syscalls[2].Args[0].ValueTwo != projectRequests[0] {
		t.Errorf("%+v", p.Syscalls)
	}
	p = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "ioctl", "file_setattr"}, Action: specs.ActAllow}}}
	keepProjects(p)
	if !slices.Equal(p.Syscalls[0].Names, []string{"read"}) || len(p.Syscalls) != 1+len(otherThan(projectRequests)) {
		t.Errorf("%+v", p.Syscalls)
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
		"no command":      {func(in *Input) { in.Spec.Cmd = nil }, errs.Invalid, "no command specified"},
		"NUL in argument": {func(in *Input) { in.Spec.Cmd = []string{"a\x00b"} }, errs.Invalid, "NUL"},
		"NUL in env":      {func(in *Input) { in.Spec.Env = []string{"A=a\x00b"} }, errs.Invalid, "NUL"},
		"nameless env":    {func(in *Input) { in.Spec.Env = []string{"=x"} }, errs.Invalid, "invalid environment variable: =x"},
		"cwd descriptor":  {func(in *Input) { in.Spec.WorkingDir = "/proc/self/fd/7" }, errs.Invalid, "working directory"},
		"cwd relative":    {func(in *Input) { in.Spec.WorkingDir = "proc/self/fd/7" }, errs.Invalid, "working directory"},
		"cwd climbing":    {func(in *Input) { in.Spec.WorkingDir = "/x/../proc//thread-self/./fd/7" }, errs.Invalid, "working directory"},
		"cwd by task":     {func(in *Input) { in.Spec.WorkingDir = "/proc/1/task/1/cwd" }, errs.Invalid, "working directory"},
		"userns":          {func(in *Input) { in.Spec.UsernsMode = "private" }, errs.Unimplemented, "userns"},
		"cap":             {func(in *Input) { in.Spec.CapAdd = []string{"FLY"} }, errs.Invalid, `unknown capability: "CAP_FLY"`},
		"cap of others":   {func(in *Input) { in.Spec.CapAdd = []string{"SYS_BOOT"} }, errs.Invalid, "CAP_SYS_BOOT"},
		"security":        {func(in *Input) { in.Spec.SecurityOpt = []string{"magic=1"} }, errs.Invalid, "magic=1"},
		"apparmor":        {func(in *Input) { in.Spec.SecurityOpt = []string{"apparmor=x"} }, errs.Invalid, "AppArmor"},
		"apparmor, empty": {func(in *Input) { in.Spec.SecurityOpt = []string{"apparmor="} }, errs.Invalid, "apparmor="},
		"apparmor, two":   {func(in *Input) { in.Spec.SecurityOpt = []string{"apparmor=a b"} }, errs.Invalid, "apparmor=a b"},
		"label":           {func(in *Input) { in.Spec.SecurityOpt = []string{"label=type:x"} }, errs.Unimplemented, "label"},
		"seccomp":         {func(in *Input) { in.Spec.SecurityOpt = []string{"seccomp={"} }, errs.Invalid, "seccomp"},
		"ulimit":          {func(in *Input) { in.Spec.Ulimits = []spec.Ulimit{{Name: "x", Soft: 1, Hard: 1}} }, errs.Invalid, "invalid ulimit type: x"},
		"ulimit order":    {func(in *Input) { in.Spec.Ulimits = []spec.Ulimit{{Name: "core", Soft: 2, Hard: 1}} }, errs.Invalid, "soft limit"},
		"oom score":       {func(in *Input) { in.Spec.OomScoreAdj = 1001 }, errs.Invalid, "oom score adj"},
		"memory":          {func(in *Input) { in.Spec.Resources.Memory = 1 }, errs.Invalid, "6MB"},
		"swap alone":      {func(in *Input) { in.Spec.Resources.MemorySwap = 1 << 30 }, errs.Invalid, "Memoryswap"},
		"sysctl":          {func(in *Input) { in.Spec.Sysctls = map[string]string{"kernel.panic": "1"} }, errs.Invalid, "kernel.panic"},
		"sysctl path":     {func(in *Input) { in.Spec.Sysctls = map[string]string{"net.../x": "1"} }, errs.Invalid, "sysctl"},
		"sysctl hostnet": {func(in *Input) {
			in.Net.Host = true
			in.Spec.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, errs.Invalid, "host network"},
		"device":      {func(in *Input) { in.Spec.Devices = []spec.Device{{HostPath: "/dev/nosuch"}} }, errs.NotFound, "/dev/nosuch"},
		"device file": {func(in *Input) { in.Spec.Devices = []spec.Device{{HostPath: "/etc/passwd"}} }, errs.Invalid, "not a device node"},
		"device mode": {func(in *Input) {
			in.Spec.Devices = []spec.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "q"}}
		}, errs.Invalid, "invalid device mode: q"},
		"device rule": {func(in *Input) { in.Spec.DeviceRules = []string{"c 1:3 x"} }, errs.Invalid, "device cgroup rule"},
		"mount root":  {func(in *Input) { in.Mounts = []volume.Mount{{Type: "bind", Source: "/x", Target: "/a/.."}} }, errs.Invalid, "destination can't be '/'"},
		"mount twice": {func(in *Input) {
			in.Mounts = []volume.Mount{{Type: "bind", Source: "/x", Target: "/a"}, {Type: "tmpfs", Target: "/a/"}}
		}, errs.Invalid, "Duplicate mount point: /a"},
		"mount relative": {func(in *Input) { in.Mounts = []volume.Mount{{Type: "bind", Source: "/x", Target: "a"}} }, errs.Invalid, "absolute"},
		"propagation": {func(in *Input) {
			in.Mounts = []volume.Mount{{Type: "bind", Source: "/x", Target: "/a", Propagation: "x,rw"}}
		}, errs.Invalid, "propagation"},
		"tmpfs option": {func(in *Input) {
			in.Mounts = []volume.Mount{{Type: "tmpfs", Target: "/a", Options: []string{"lowerdir=/"}}}
		}, errs.Invalid, "lowerdir"},
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
	in.Spec.Ulimits = []spec.Ulimit{{Name: "nofile", Soft: -1, Hard: -1}}
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
	in.Spec.Env = []string{"A=1"}
	in.Spec.User, in.Spec.GroupAdd = "web", []string{"staff"}
	in.Spec.SecurityOpt = []string{"no-new-privileges"}
	in.Spec.WorkingDir = "/srv"
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
