// Package host reads facts about this machine: its names, its size and what its kernel lets the engine limit.
//
// Facts are read anew at each call. A file that is missing or unreadable leaves its fact at the zero value: none of them
// is worth an error.
package host

import (
	"bufio"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts describes this machine.
type Facts struct {
	Name            string // host name
	Kernel          string // release of the kernel, as `uname -r` prints it
	Architecture    string // as `uname -m` prints it
	OperatingSystem string // PRETTY_NAME of the distribution; "Linux" when it has none
	OSVersion       string // VERSION_ID of the distribution
	CPUs            int    // that this process may use
	Memory          int64  // RAM in bytes
	IPv4Forwarding  bool   // the kernel routes between interfaces
	CgroupVersion   string // "1" or "2"
	AppArmor        bool   // the kernel confines programs by AppArmor profiles, and this process may load them
	Limits          Limits
}

// Limits are the resources of a container that the kernel lets the engine limit.
type Limits struct {
	Memory, Swap, CPUQuota, CPUShares, CPUSet, Pids, OOMKillDisable bool
}

// Read reads the facts of this machine.
func Read() Facts { return read(os.DirFS("/")) }

func read(root fs.FS) Facts {
	var u unix.Utsname
	_ = unix.Uname(&u) // fails only on a bad address
	f := Facts{
		Name: unix.ByteSliceToString(u.Nodename[:]), Kernel: unix.ByteSliceToString(u.Release[:]),
		Architecture: unix.ByteSliceToString(u.Machine[:]), CPUs: runtime.NumCPU(), OperatingSystem: "Linux",
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		f.Memory = int64(si.Totalram) * int64(si.Unit)
	}
	f.IPv4Forwarding = word(root, "proc/sys/net/ipv4/ip_forward") == "1"
	f.AppArmor = appArmor(root)
	f.readRelease(root)
	f.readCgroups(root)
	return f
}

// Kernel returns the release of the running kernel.
func Kernel() string {
	var u unix.Utsname
	_ = unix.Uname(&u) // fails only on a bad address
	return unix.ByteSliceToString(u.Release[:])
}

// AppArmor reports whether the kernel confines programs by AppArmor profiles, and this process may load them.
func AppArmor() bool { return appArmor(os.DirFS("/")) }

func appArmor(root fs.FS) bool {
	// Service managers set this variable for an engine that is itself in a container, which cannot load profiles.
	if os.Getenv("container") != "" {
		return false
	}
	st, err := fs.Stat(root, "sys/kernel/security/apparmor")
	return err == nil && st.IsDir() && strings.HasPrefix(word(root, "sys/module/apparmor/parameters/enabled"), "Y")
}

// word returns the content of a small file without blanks around it.
func word(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// readRelease reads what os-release(5) says. The file in /usr/lib is for systems without one in /etc.
func (f *Facts) readRelease(root fs.FS) {
	file, err := root.Open("etc/os-release")
	if err != nil {
		if file, err = root.Open("usr/lib/os-release"); err != nil {
			return
		}
	}
	defer func() { _ = file.Close() }() // only read from
	for s := bufio.NewScanner(file); s.Scan(); {
		key, value, _ := strings.Cut(strings.TrimSpace(s.Text()), "=")
		value = strings.Trim(value, `"'`)
		switch {
		case value == "":
		case key == "PRETTY_NAME":
			f.OperatingSystem = value
		case key == "VERSION_ID":
			f.OSVersion = value
		}
	}
}

// readCgroups finds out what can be limited: with cgroups v2 by the controllers of the root group, which has a list of
// them, and with v1 by the hierarchies that are mounted.
func (f *Facts) readCgroups(root fs.FS) {
	const dir = "sys/fs/cgroup/"
	if b, err := fs.ReadFile(root, dir+"cgroup.controllers"); err == nil {
		controllers := strings.Fields(string(b))
		has := func(name string) bool { return slices.Contains(controllers, name) }
		f.CgroupVersion = "2"
		f.Limits = Limits{
			Memory: has("memory"), Swap: has("memory"), CPUQuota: has("cpu"), CPUShares: has("cpu"), CPUSet: has("cpuset"), Pids: has("pids"),
		}
		return
	}
	has := func(name string) bool { _, err := fs.Stat(root, dir+name); return err == nil }
	f.CgroupVersion = "1"
	f.Limits = Limits{
		Memory: has("memory/memory.limit_in_bytes"), Swap: has("memory/memory.memsw.limit_in_bytes"),
		CPUQuota: has("cpu/cpu.cfs_quota_us"), CPUShares: has("cpu/cpu.shares"), CPUSet: has("cpuset/cpuset.cpus"),
		Pids: has("pids"), OOMKillDisable: has("memory/memory.oom_control"),
	}
}

// OpenFiles returns how many file descriptors this process has open.
func OpenFiles() int {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(fds)
}
