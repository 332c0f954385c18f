package engine

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/api/docker"
	"ply/internal/container"
	"ply/internal/durable"
	"ply/internal/image"
	"ply/internal/version"
)

// identity gives the engine's ID, made once a data root.
func (e *Engine) identity() (string, error) {
	name := filepath.Join(e.cfg.DataRoot, "engine-id")
	b, err := durable.ReadFile(e.Store.FS, name, 100)
	if id := strings.TrimSpace(string(b)); err == nil && len(id) == 36 {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	var r [16]byte
	rand.Read(r[:])
	id := fmt.Sprintf("%x-%x-%x-%x-%x", r[:4], r[4:6], r[6:8], r[8:10], r[10:])
	return id, durable.WriteFile(e.Store.FS, name, []byte(id+"\n"), 0o600)
}

// Version tells what runs.
func (e *Engine) Version() docker.VersionInfo {
	v := version.Get()
	return docker.VersionInfo{Version: v.Version, GitCommit: v.Commit, GoVersion: v.Go, BuildTime: v.Time}
}

// Info tells what the engine is, has and can do here.
func (e *Engine) Info(ctx context.Context) (docker.Info, error) {
	e.mu.Lock()
	cfg := e.cfg
	e.mu.Unlock()
	i := docker.Info{
		ID: e.id, Driver: e.Store.Layers.Name(), DriverStatus: append(e.Store.Layers.Status(), e.notes...),
		DataRoot: cfg.DataRoot, ExecRoot: cfg.ExecRoot, CPUs: runtime.NumCPU(), CgroupDriver: "cgroupfs",
		Mirrors: cfg.RegistryMirrors, InsecureRegistries: cfg.InsecureRegistries, Labels: cfg.Labels, Debug: cfg.Debug,
		LoggingDriver: cfg.LogDriver, Runtimes: map[string]string{"ply": e.opts.ShimPath}, LiveRestore: true,
		HTTPProxy: cfg.Proxies.HTTP, HTTPSProxy: cfg.Proxies.HTTPS, NoProxy: cfg.Proxies.No,
		Goroutines: runtime.NumGoroutine(), SystemTime: time.Now(), DefaultRuntime: cfg.DefaultRuntime, InitBinary: cmp.Or(cfg.InitPath, filepath.Base(e.opts.ShimPath)),
		SecurityOptions: []string{"name=seccomp,profile=" + cfg.SeccompProfile},
	}
	for name, r := range cfg.Runtimes {
		i.Runtimes[name] = r.Path
	}
	for _, p := range cfg.DefaultAddressPools {
		i.DefaultAddressPools = append(i.DefaultAddressPools, fmt.Sprintf("%s/%d", p.Base, p.Size))
	}
	if err := e.count(ctx, &i); err != nil {
		return i, err
	}
	i.IPv4Forwarding = readWord("/proc/sys/net/ipv4/ip_forward") == "1"
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		i.FDs = len(fds)
	}
	hostInfo(&i)
	cgroupInfo(&i)
	if !cfg.IPTables {
		i.Warnings = append(i.Warnings, "WARNING: packet filter rules are switched off (iptables=false)")
	}
	return i, nil
}

func (e *Engine) count(ctx context.Context, i *docker.Info) error {
	images, err := e.Images.List(ctx, image.ListOptions{All: true})
	if err != nil {
		return err
	}
	i.Images = len(images)
	list, err := e.Containers.List(ctx, container.ListOptions{All: true})
	if err != nil {
		return err
	}
	i.Containers = len(list)
	for _, c := range list {
		switch c.State.Status {
		case container.StatusRunning, container.StatusRestarting:
			i.Running++
		case container.StatusPaused:
			i.Paused++
		default:
			i.Stopped++
		}
	}
	return nil
}

func readWord(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func hostInfo(i *docker.Info) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		i.Name = unix.ByteSliceToString(u.Nodename[:])
		i.KernelVersion = unix.ByteSliceToString(u.Release[:])
		i.Architecture = unix.ByteSliceToString(u.Machine[:])
	}
	i.OperatingSystem = "Linux"
	f, err := os.Open("/etc/os-release")
	if err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			key, value, _ := strings.Cut(s.Text(), "=")
			value = strings.Trim(value, `"`)
			switch key {
			case "PRETTY_NAME":
				i.OperatingSystem = value
			case "VERSION_ID":
				i.OSVersion = value
			}
		}
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		i.MemTotal = int64(si.Totalram) * int64(si.Unit)
	}
}

// cgroupInfo says what can be limited here: on a pure v2 host by the root's controllers, else by which v1 hierarchies are mounted.
func cgroupInfo(i *docker.Info) {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		i.CgroupVersion = "2"
		has := strings.Fields(readWord("/sys/fs/cgroup/cgroup.controllers"))
		on := func(name string) bool {
			for _, h := range has {
				if h == name {
					return true
				}
			}
			return false
		}
		i.Limits = docker.Limits{Memory: on("memory"), Swap: on("memory"), CPUQuota: on("cpu"), CPUShares: on("cpu"), CPUSet: on("cpuset"), Pids: on("pids")}
		return
	}
	i.CgroupVersion = "1"
	there := func(name string) bool { _, err := os.Stat("/sys/fs/cgroup/" + name); return err == nil }
	i.Limits = docker.Limits{
		Memory: there("memory/memory.limit_in_bytes"), Swap: there("memory/memory.memsw.limit_in_bytes"),
		CPUQuota: there("cpu/cpu.cfs_quota_us"), CPUShares: there("cpu/cpu.shares"), CPUSet: there("cpuset/cpuset.cpus"),
		Pids: there("pids"), OOMKillDisable: there("memory/memory.oom_control"),
	}
}
