package run

import (
	"os"
	"time"

	"github.com/spf13/pflag"

	"ply/internal/cli/opts"
)

// runFlags are the flags that run and create share, as typed.
type runFlags struct {
	fs *pflag.FlagSet

	attach, capAdd, capDrop, device, deviceRule, dns, dnsOption, dnsSearch, addHost opts.List
	env, envFile, expose, groupAdd, label, labelFile, link, linkLocal, logOpt       opts.List
	netAlias, publish, securityOpt, storageOpt, tmpfs, volume, volumesFrom          opts.List
	weightDev, readBps, readIOps, writeBps, writeIOps                               opts.List
	sysctl, annotation                                                              opts.Map
	gpus                                                                            opts.GPUs
	mounts                                                                          opts.Mounts
	networks                                                                        opts.Networks
	ulimits                                                                         opts.Ulimits
	memory, memReserve, kernelMemory, shmSize                                       opts.Bytes
	memSwap                                                                         opts.Bytes
	cpus                                                                            opts.CPUs
	blkioWeight                                                                     uint16
	cpuPeriod, cpuQuota, cpuRtPeriod, cpuRtRuntime, cpuShares, pidsLimit, swappy    int64
	oomScore, stopTimeout, healthRetries                                            int
	healthInterval, healthTimeout, healthStart, healthStartInterval                 time.Duration

	cgroupParent, cgroupns, cidfile, cpusetCpus, cpusetMems, domain, entrypoint     string
	healthCmd, hostname, ip, ip6, ipc, isolation, logDriver, mac, name, pid         string
	platform, pull, restart, runtime, stopSignal, user, userns, uts, volDriver, cwd string

	stdin, tty, privileged, publishAll, readOnly, rm, init, noHealth, oomDisable, quiet bool
	noVerify, apiSocket                                                                 bool

	// run only
	detach, sigProxy bool
	detachKeys       string
}

func newRunFlags() *runFlags {
	return &runFlags{
		attach:  opts.List{Check: opts.Attach},
		addHost: opts.List{Check: opts.ExtraHost},
		dns:     opts.List{Check: opts.IP},
		env:     opts.List{Check: opts.Env},
		label:   opts.List{Check: opts.Label},
		link:    opts.List{Check: opts.Link},

		deviceRule: opts.List{Check: opts.DeviceRule},
		memSwap:    opts.Bytes{Signed: true},
		annotation: opts.Map{Check: opts.Label},
	}
}

// add defines the flags; run says whether those of `run` alone are among them.
func (r *runFlags) add(f *pflag.FlagSet, run bool) {
	r.fs = f
	r.addProcess(f)
	r.addHostFlags(f)
	r.addLimits(f)
	r.addNetwork(f)
	r.addHealth(f)
	pull := "creating"
	if run {
		pull = "running"
		f.BoolVarP(&r.detach, "detach", "d", false, "Run container in background and print container ID")
		f.BoolVar(&r.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
		f.StringVar(&r.detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	}
	f.StringVar(&r.pull, "pull", "missing", `Pull image before `+pull+` ("always", "missing", "never")`)
	f.BoolVarP(&r.quiet, "quiet", "q", false, "Suppress the pull output")
	f.StringVar(&r.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Set platform if server is multi-platform capable")
	f.StringVar(&r.name, "name", "", "Assign a name to the container")
	f.BoolVar(&r.noVerify, "disable-content-trust", true, "Skip image verification")
	f.BoolVar(&r.apiSocket, "use-api-socket", false, "Bind mount Docker API socket and required auth")
}

func (r *runFlags) addProcess(f *pflag.FlagSet) {
	f.VarP(&r.attach, "attach", "a", "Attach to STDIN, STDOUT or STDERR")
	f.StringVar(&r.entrypoint, "entrypoint", "", "Overwrite the default ENTRYPOINT of the image")
	f.VarP(&r.env, "env", "e", "Set environment variables")
	f.Var(&r.envFile, "env-file", "Read in a file of environment variables")
	f.Var(&r.groupAdd, "group-add", "Add additional groups to join")
	f.StringVarP(&r.hostname, "hostname", "h", "", "Container host name")
	f.StringVar(&r.domain, "domainname", "", "Container NIS domain name")
	f.BoolVarP(&r.stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	f.VarP(&r.label, "label", "l", "Set meta data on a container")
	f.Var(&r.labelFile, "label-file", "Read in a line delimited file of labels")
	f.BoolVar(&r.readOnly, "read-only", false, "Mount the container's root filesystem as read only")
	f.StringVar(&r.restart, "restart", "no", "Restart policy to apply when a container exits")
	f.StringVar(&r.stopSignal, "stop-signal", "", "Signal to stop the container")
	f.IntVar(&r.stopTimeout, "stop-timeout", 0, "Timeout (in seconds) to stop a container")
	f.Var(&r.sysctl, "sysctl", "Sysctl options")
	f.BoolVarP(&r.tty, "tty", "t", false, "Allocate a pseudo-TTY")
	f.Var(&r.ulimits, "ulimit", "Ulimit options")
	f.StringVarP(&r.user, "user", "u", "", "Username or UID (format: <name|uid>[:<group|gid>])")
	f.StringVarP(&r.cwd, "workdir", "w", "", "Working directory inside the container")
	f.BoolVar(&r.rm, "rm", false, "Automatically remove the container and its associated anonymous volumes when it exits")
	f.BoolVar(&r.init, "init", false, "Run an init inside the container that forwards signals and reaps processes")
	f.Var(&r.annotation, "annotation", "Add an annotation to the container (passed through to the OCI runtime)")
}

func (r *runFlags) addHostFlags(f *pflag.FlagSet) {
	f.Var(&r.device, "device", "Add a host device to the container")
	f.Var(&r.gpus, "gpus", "GPU devices to add to the container ('all' to pass all GPUs)")
	f.VarP(&r.volume, "volume", "v", "Bind mount a volume")
	f.Var(&r.mounts, "mount", "Attach a filesystem mount to the container")
	f.Var(&r.tmpfs, "tmpfs", "Mount a tmpfs directory")
	f.Var(&r.volumesFrom, "volumes-from", "Mount volumes from the specified container(s)")
	f.StringVar(&r.volDriver, "volume-driver", "", "Optional volume driver for the container")
	f.Var(&r.storageOpt, "storage-opt", "Storage driver options for the container")
	f.Var(&r.capAdd, "cap-add", "Add Linux capabilities")
	f.Var(&r.capDrop, "cap-drop", "Drop Linux capabilities")
	f.StringVar(&r.cgroupns, "cgroupns", "", "Cgroup namespace to use (host|private)\n"+
		"'host':    Run the container in the Docker host's cgroup namespace\n"+
		"'private': Run the container in its own private cgroup namespace\n"+
		"'':        Use the cgroup namespace as configured by the\n"+
		"           default-cgroupns-mode option on the daemon (default)")
	f.BoolVar(&r.privileged, "privileged", false, "Give extended privileges to this container")
	f.Var(&r.securityOpt, "security-opt", "Security Options")
	f.StringVar(&r.userns, "userns", "", "User namespace to use")
	f.StringVar(&r.ipc, "ipc", "", "IPC mode to use")
	f.StringVar(&r.isolation, "isolation", "", "Container isolation technology")
	f.StringVar(&r.pid, "pid", "", "PID namespace to use")
	f.StringVar(&r.uts, "uts", "", "UTS namespace to use")
	f.Var(&r.shmSize, "shm-size", "Size of /dev/shm")
	f.StringVar(&r.runtime, "runtime", "", "Runtime to use for this container")
	f.StringVar(&r.logDriver, "log-driver", "", "Logging driver for the container")
	f.Var(&r.logOpt, "log-opt", "Log driver options")
	f.StringVar(&r.cidfile, "cidfile", "", "Write the container ID to the file")
}

func (r *runFlags) addLimits(f *pflag.FlagSet) {
	f.Uint16Var(&r.blkioWeight, "blkio-weight", 0, "Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)")
	f.Var(&r.weightDev, "blkio-weight-device", "Block IO weight (relative device weight)")
	f.StringVar(&r.cgroupParent, "cgroup-parent", "", "Optional parent cgroup for the container")
	f.Int64Var(&r.cpuPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	f.Int64Var(&r.cpuQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	f.Int64Var(&r.cpuRtPeriod, "cpu-rt-period", 0, "Limit CPU real-time period in microseconds")
	f.Int64Var(&r.cpuRtRuntime, "cpu-rt-runtime", 0, "Limit CPU real-time runtime in microseconds")
	f.Int64VarP(&r.cpuShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	f.Var(&r.cpus, "cpus", "Number of CPUs")
	f.StringVar(&r.cpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	f.StringVar(&r.cpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	f.Var(&r.deviceRule, "device-cgroup-rule", "Add a rule to the cgroup allowed devices list")
	f.Var(&r.readBps, "device-read-bps", "Limit read rate (bytes per second) from a device")
	f.Var(&r.readIOps, "device-read-iops", "Limit read rate (IO per second) from a device")
	f.Var(&r.writeBps, "device-write-bps", "Limit write rate (bytes per second) to a device")
	f.Var(&r.writeIOps, "device-write-iops", "Limit write rate (IO per second) to a device")
	f.Var(&r.kernelMemory, "kernel-memory", "Kernel memory limit")
	f.VarP(&r.memory, "memory", "m", "Memory limit")
	f.Var(&r.memReserve, "memory-reservation", "Memory soft limit")
	f.Var(&r.memSwap, "memory-swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap")
	f.Int64Var(&r.swappy, "memory-swappiness", -1, "Tune container memory swappiness (0 to 100)")
	f.BoolVar(&r.oomDisable, "oom-kill-disable", false, "Disable OOM Killer")
	f.IntVar(&r.oomScore, "oom-score-adj", 0, "Tune host's OOM preferences (-1000 to 1000)")
	f.Int64Var(&r.pidsLimit, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
}

func (r *runFlags) addNetwork(f *pflag.FlagSet) {
	f.Var(&r.addHost, "add-host", "Add a custom host-to-IP mapping (host:ip)")
	f.Var(&r.dns, "dns", "Set custom DNS servers")
	f.Var(&r.dnsOption, "dns-option", "Set DNS options")
	f.Var(&r.dnsOption, "dns-opt", "Set DNS options")
	f.Lookup("dns-opt").Hidden = true
	f.Var(&r.dnsSearch, "dns-search", "Set custom DNS search domains")
	f.Var(&r.expose, "expose", "Expose a port or a range of ports")
	f.StringVar(&r.ip, "ip", "", "IPv4 address (e.g., 172.30.100.104)")
	f.StringVar(&r.ip6, "ip6", "", "IPv6 address (e.g., 2001:db8::33)")
	f.Var(&r.link, "link", "Add link to another container")
	f.Var(&r.linkLocal, "link-local-ip", "Container IPv4/IPv6 link-local addresses")
	f.StringVar(&r.mac, "mac-address", "", "Container MAC address (e.g., 92:d0:c6:0a:29:33)")
	f.Var(&r.networks, "network", "Connect a container to a network")
	f.Var(&r.networks, "net", "Connect a container to a network")
	f.Lookup("net").Hidden = true
	f.Var(&r.netAlias, "network-alias", "Add network-scoped alias for the container")
	f.Var(&r.netAlias, "net-alias", "Add network-scoped alias for the container")
	f.Lookup("net-alias").Hidden = true
	f.VarP(&r.publish, "publish", "p", "Publish a container's port(s) to the host")
	f.BoolVarP(&r.publishAll, "publish-all", "P", false, "Publish all exposed ports to random ports")
}

func (r *runFlags) addHealth(f *pflag.FlagSet) {
	f.StringVar(&r.healthCmd, "health-cmd", "", "Command to run to check health")
	f.DurationVar(&r.healthInterval, "health-interval", 0, "Time between running the check (ms|s|m|h) (default 0s)")
	f.IntVar(&r.healthRetries, "health-retries", 0, "Consecutive failures needed to report unhealthy")
	f.DurationVar(&r.healthTimeout, "health-timeout", 0, "Maximum time to allow one check to run (ms|s|m|h) (default 0s)")
	f.DurationVar(&r.healthStart, "health-start-period", 0, "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h) (default 0s)")
	f.DurationVar(&r.healthStartInterval, "health-start-interval", 0, "Time between running the check during the start period (ms|s|m|h) (default 0s)")
	f.BoolVar(&r.noHealth, "no-healthcheck", false, "Disable any container-specified HEALTHCHECK")
}
