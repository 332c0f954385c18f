package host

import (
	"os"
	"runtime"
	"testing"
	"testing/fstest"
)

func files(contents map[string]string) fstest.MapFS {
	root := fstest.MapFS{}
	for name, text := range contents {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

func TestThisMachineHasItsFacts(t *testing.T) {
	f := Read()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if f.Name != name || f.Kernel == "" || f.Architecture == "" || f.OperatingSystem == "" || f.CPUs != runtime.NumCPU() || f.Memory < 1<<20 {
		t.Errorf("%+v", f)
	}
	if Kernel() != f.Kernel {
		t.Errorf("Kernel() = %s, want %s", Kernel(), f.Kernel)
	}
	if f.CgroupVersion != "1" && f.CgroupVersion != "2" {
		t.Errorf("cgroup version %q", f.CgroupVersion)
	}
}

func TestRelease(t *testing.T) {
	for _, tc := range []struct {
		root              map[string]string
		wantName, wantVer string
	}{
		{nil, "Linux", ""},
		{map[string]string{"etc/os-release": "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\n"}, "Debian GNU/Linux 12", "12"},
		{map[string]string{"etc/os-release": "PRETTY_NAME=Void\r\n# VERSION_ID=1\n"}, "Void", ""},
		{map[string]string{"etc/os-release": "PRETTY_NAME=\n"}, "Linux", ""},
		{map[string]string{"usr/lib/os-release": "PRETTY_NAME='Alpine'\nVERSION_ID=3.2"}, "Alpine", "3.2"},
	} {
		f := read(files(tc.root))
		if f.OperatingSystem != tc.wantName || f.OSVersion != tc.wantVer {
			t.Errorf("%v: %q %q, want %q %q", tc.root, f.OperatingSystem, f.OSVersion, tc.wantName, tc.wantVer)
		}
	}
}

func TestForwarding(t *testing.T) {
	for text, want := range map[string]bool{"1\n": true, "0\n": false, "": false} {
		if f := read(files(map[string]string{"proc/sys/net/ipv4/ip_forward": text})); f.IPv4Forwarding != want {
			t.Errorf("ip_forward %q: %v", text, f.IPv4Forwarding)
		}
	}
}

func TestLimitsOfBothCgroupVersions(t *testing.T) {
	for _, tc := range []struct {
		root    map[string]string
		version string
		want    Limits
	}{
		{map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n"}, "2",
			Limits{Memory: true, Swap: true, CPUQuota: true, CPUShares: true, CPUSet: true, Pids: true}},
		{map[string]string{"sys/fs/cgroup/cgroup.controllers": "cpuset\n"}, "2", Limits{CPUSet: true}},
		{map[string]string{"sys/fs/cgroup/cgroup.controllers": ""}, "2", Limits{}},
		{map[string]string{
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "", "sys/fs/cgroup/memory/memory.oom_control": "",
			"sys/fs/cgroup/cpu/cpu.shares": "", "sys/fs/cgroup/pids/tasks": "", "sys/fs/cgroup/unified/cgroup.controllers": "",
		}, "1", Limits{Memory: true, CPUShares: true, Pids: true, OOMKillDisable: true}},
		{nil, "1", Limits{}},
	} {
		f := read(files(tc.root))
		if f.CgroupVersion != tc.version || f.Limits != tc.want {
			t.Errorf("%v: version %s %+v, want %s %+v", tc.root, f.CgroupVersion, f.Limits, tc.version, tc.want)
		}
	}
}

func TestOpenFiles(t *testing.T) {
	before := OpenFiles()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if after := OpenFiles(); after != before+1 {
		t.Errorf("%d open files after opening one more than %d", after, before)
	}
}

func TestAppArmor(t *testing.T) {
	const enabled, profiles = "sys/module/apparmor/parameters/enabled", "sys/kernel/security/apparmor/profiles"
	for _, tc := range []struct {
		root      map[string]string
		container string
		want      bool
	}{
		{root: map[string]string{enabled: "Y\n", profiles: ""}, want: true},
		{root: map[string]string{enabled: "N\n", profiles: ""}},
		{root: map[string]string{enabled: "Y\n"}}, // securityfs is not mounted
		{root: map[string]string{profiles: ""}},
		{root: map[string]string{enabled: "Y\n", profiles: ""}, container: "lxc"},
		{},
	} {
		t.Setenv("container", tc.container)
		if got := read(files(tc.root)).AppArmor; got != tc.want {
			t.Errorf("%v, container %q: %v, want %v", tc.root, tc.container, got, tc.want)
		}
	}
}
