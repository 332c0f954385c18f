package run

import (
	"fmt"
	"strings"

	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/wire"
)

func (r *runFlags) changed(name string) bool {
	f := r.fs.Lookup(name)
	return f != nil && f.Changed
}

// build turns the flags into the body of a create. proxies are set where the user did not set them.
func (r *runFlags) build(image string, command []string, proxies map[string]string) (*wire.CreateBody, error) {
	if err := r.refuse(); err != nil {
		return nil, err
	}
	host, err := r.hostConfig()
	if err != nil {
		return nil, err
	}
	cfg, err := r.config(image, command, proxies)
	if err != nil {
		return nil, err
	}
	if err := r.storage(cfg, host); err != nil {
		return nil, err
	}
	exposed, bound, err := opts.Ports(r.publish.Values, r.expose.Values)
	if err != nil {
		return nil, err
	}
	cfg.ExposedPorts, host.PortBindings = exposed, bound
	nets, err := r.endpoints(host)
	if err != nil {
		return nil, err
	}
	return &wire.CreateBody{Config: cfg, HostConfig: host, NetworkingConfig: &wire.NetworkingConfig{EndpointsConfig: nets}}, nil
}

// refuse names what ply does not do at all; what an engine may or may not do is the engine's to answer.
func (r *runFlags) refuse() error {
	if r.apiSocket {
		return errs.New(errs.Unimplemented, "--use-api-socket is not supported: mount the engine's socket with -v")
	}
	if r.changed("disable-content-trust") && !r.noVerify {
		return errs.New(errs.Unimplemented, "--disable-content-trust=false: image verification with Notary is not supported")
	}
	if r.swappy != -1 && (r.swappy < 0 || r.swappy > 100) {
		return errs.New(errs.Invalid, "invalid value: %d. Valid memory swappiness range is 0-100", r.swappy)
	}
	if r.noHealth && (r.healthCmd != "" || r.healthInterval != 0 || r.healthTimeout != 0 || r.healthStart != 0 || r.healthRetries != 0 || r.healthStartInterval != 0) {
		return errs.New(errs.Invalid, "--no-healthcheck conflicts with --health-* options")
	}
	for name, d := range map[string]int64{"interval": int64(r.healthInterval), "timeout": int64(r.healthTimeout), "start-period": int64(r.healthStart), "start-interval": int64(r.healthStartInterval), "retries": int64(r.healthRetries)} {
		if d < 0 {
			return errs.New(errs.Invalid, "--health-%s cannot be negative", name)
		}
	}
	if r.memory.N == 0 && r.changed("memory-swap") && r.memSwap.N > 0 {
		return errs.New(errs.Invalid, "--memory-swap %s: set --memory as well", r.memSwap.String())
	}
	return nil
}

func (r *runFlags) config(image string, command []string, proxies map[string]string) (*wire.Config, error) {
	env, err := opts.EnvFiles(r.envFile.Values)
	if err != nil {
		return nil, err
	}
	env = append(env, r.env.Values...)
	have := opts.KeyValues(env)
	for _, kv := range opts.Pairs(proxies) {
		name, _, _ := strings.Cut(kv, "=")
		if _, ok := have[name]; !ok {
			env = append(env, kv)
		}
	}
	labels, err := opts.LabelFiles(r.labelFile.Values)
	if err != nil {
		return nil, err
	}
	c := &wire.Config{
		Hostname: r.hostname, Domainname: r.domain, User: r.user, Tty: r.tty, OpenStdin: r.stdin,
		Env: env, Cmd: command, Image: image, WorkingDir: r.cwd, StopSignal: r.stopSignal,
		Labels: opts.KeyValues(append(labels, r.label.Values...)),
	}
	if len(command) == 0 {
		c.Cmd = nil
	}
	if r.changed("entrypoint") {
		c.Entrypoint = []string{r.entrypoint} // one empty string resets the image's
	}
	if r.changed("stop-timeout") {
		c.StopTimeout = &r.stopTimeout
	}
	c.AttachStdin, c.AttachStdout, c.AttachStderr = r.attached()
	c.StdinOnce = c.OpenStdin && c.AttachStdin
	c.Healthcheck = r.health()
	return c, nil
}

// attached says which streams are attached: those of -a, else all that make sense without -d.
func (r *runFlags) attached() (stdin, stdout, stderr bool) {
	if len(r.attach.Values) == 0 {
		if r.detach {
			return false, false, false
		}
		return r.stdin, true, true
	}
	for _, s := range r.attach.Values {
		switch s {
		case "stdin":
			stdin = true
		case "stdout":
			stdout = true
		case "stderr":
			stderr = true
		}
	}
	return stdin, stdout, stderr
}

func (r *runFlags) health() *oci.Healthcheck {
	if r.noHealth {
		return &oci.Healthcheck{Test: []string{"NONE"}}
	}
	h := &oci.Healthcheck{Interval: r.healthInterval, Timeout: r.healthTimeout, StartPeriod: r.healthStart,
		StartInterval: r.healthStartInterval, Retries: r.healthRetries}
	if r.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", r.healthCmd}
	}
	if h.Test == nil && h.Interval|h.Timeout|h.StartPeriod|h.StartInterval == 0 && h.Retries == 0 {
		return nil
	}
	return h
}

func (r *runFlags) hostConfig() (*wire.HostConfig, error) {
	policy, err := opts.Restart(r.restart)
	if err != nil {
		return nil, err
	}
	if r.rm && policy.Name != "" && policy.Name != "no" {
		return nil, errs.New(errs.Invalid, "conflicting options: cannot specify both --restart and --rm")
	}
	security, unconfined, err := opts.Security(r.securityOpt.Values)
	if err != nil {
		return nil, err
	}
	if err := needPairs("storage", r.storageOpt.Values); err != nil {
		return nil, err
	}
	if err := needPairs("logging", r.logOpt.Values); err != nil {
		return nil, err
	}
	if r.logDriver == "none" && len(r.logOpt.Values) > 0 {
		return nil, errs.New(errs.Invalid, "invalid logging opts for driver none")
	}
	res, err := r.resources()
	if err != nil {
		return nil, err
	}
	h := &wire.HostConfig{
		ContainerIDFile: r.cidfile, OomScoreAdj: r.oomScore, AutoRemove: r.rm, Privileged: r.privileged, Links: r.link.Values,
		PublishAllPorts: r.publishAll, DNS: list(r.dns.Values), DNSSearch: list(r.dnsSearch.Values), DNSOptions: list(r.dnsOption.Values),
		ExtraHosts: r.addHost.Values, VolumesFrom: r.volumesFrom.Values, IpcMode: r.ipc, PidMode: r.pid, UTSMode: r.uts, UsernsMode: r.userns,
		CgroupnsMode: r.cgroupns, CapAdd: opts.Capabilities(r.capAdd.Values), CapDrop: opts.Capabilities(r.capDrop.Values), GroupAdd: r.groupAdd.Values, RestartPolicy: policy,
		SecurityOpt: security, StorageOpt: opts.KeyValues(r.storageOpt.Values), ReadonlyRootfs: r.readOnly,
		LogConfig:    wire.LogConfig{Type: r.logDriver, Config: opts.KeyValues(r.logOpt.Values)},
		VolumeDriver: r.volDriver, Isolation: r.isolation, ShmSize: r.shmSize.N, Sysctls: r.sysctl.Values, Runtime: r.runtime,
		Annotations: r.annotation.Values, Resources: res,
	}
	if unconfined {
		h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
	}
	if r.changed("init") {
		h.Init = &r.init
	}
	for mode, value := range map[string]string{"ipc": r.ipc, "pid": r.pid} {
		if rest, ok := strings.CutPrefix(value, "container:"); ok && rest == "" {
			return nil, errs.New(errs.Invalid, "--%s: invalid %s mode", mode, strings.ToUpper(mode))
		}
	}
	return h, nil
}

func needPairs(what string, list []string) error {
	for _, s := range list {
		if !strings.Contains(s, "=") {
			return errs.New(errs.Invalid, "invalid %s option: %s", what, s)
		}
	}
	return nil
}

// list gives an empty list for nil: these fields are never null on the wire.
func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

func (r *runFlags) resources() (res wire.Resources, err error) {
	res = wire.Resources{
		CPUShares: r.cpuShares, Memory: r.memory.N, NanoCPUs: int64(r.cpus), CgroupParent: r.cgroupParent, BlkioWeight: r.blkioWeight,
		CPUPeriod: r.cpuPeriod, CPUQuota: r.cpuQuota, CPURealtimePeriod: r.cpuRtPeriod, CPURealtimeRuntime: r.cpuRtRuntime,
		CpusetCpus: r.cpusetCpus, CpusetMems: r.cpusetMems, DeviceCgroupRules: r.deviceRule.Values, DeviceRequests: r.gpus.List,
		KernelMemory: r.kernelMemory.N, MemoryReservation: r.memReserve.N, MemorySwap: r.memSwap.N, MemorySwappiness: &r.swappy,
		OomKillDisable: &r.oomDisable, PidsLimit: &r.pidsLimit, Ulimits: r.ulimits.Wire(),
		Devices: []wire.DeviceMapping{}, BlkioWeightDevice: []wire.WeightDevice{},
	}
	var cdi []string
	for _, s := range r.device.Values {
		if opts.CDI(s) {
			cdi = append(cdi, s)
			continue
		}
		d, err := opts.Device(s)
		if err != nil {
			return res, err
		}
		res.Devices = append(res.Devices, d)
	}
	if len(cdi) > 0 {
		res.DeviceRequests = append(res.DeviceRequests, wire.DeviceRequest{Driver: "cdi", DeviceIDs: cdi})
	}
	for _, s := range r.weightDev.Values {
		w, err := opts.Weight(s)
		if err != nil {
			return res, err
		}
		res.BlkioWeightDevice = append(res.BlkioWeightDevice, w)
	}
	for _, t := range []struct {
		from  []string
		bytes bool
		to    *[]wire.ThrottleDevice
	}{
		{r.readBps.Values, true, &res.BlkioDeviceReadBps}, {r.writeBps.Values, true, &res.BlkioDeviceWriteBps},
		{r.readIOps.Values, false, &res.BlkioDeviceReadIOps}, {r.writeIOps.Values, false, &res.BlkioDeviceWriteIOps},
	} {
		*t.to = []wire.ThrottleDevice{}
		for _, s := range t.from {
			d, err := opts.Throttle(s, t.bytes)
			if err != nil {
				return res, err
			}
			*t.to = append(*t.to, d)
		}
	}
	return res, nil
}

func (r *runFlags) storage(cfg *wire.Config, host *wire.HostConfig) error {
	binds, anonymous, err := opts.Volumes(r.volume.Values)
	if err != nil {
		return err
	}
	host.Binds, cfg.Volumes, host.Mounts = binds, anonymous, r.mounts.List
	if len(r.tmpfs.Values) > 0 {
		host.Tmpfs = opts.Tmpfs(r.tmpfs.Values)
	}
	return nil
}

// endpoints makes the networks part; the first network is the container's mode and takes --ip, --network-alias, ….
func (r *runFlags) endpoints(host *wire.HostConfig) (map[string]*wire.EndpointSettings, error) {
	nets := map[string]*wire.EndpointSettings{}
	all := r.networks.List
	if len(all) == 0 {
		all = []opts.Network{{Name: "default"}}
	}
	if len(all) > 1 {
		for _, n := range all {
			if n.Name == "host" || n.Name == "none" || strings.HasPrefix(n.Name, "container:") {
				return nil, errs.New(errs.Invalid, "conflicting options: cannot attach both user-defined and non-user-defined network-modes")
			}
		}
	}
	host.NetworkMode = all[0].Name
	if err := r.mergeFirst(&all[0]); err != nil {
		return nil, err
	}
	for i, n := range all {
		ep := &wire.EndpointSettings{Aliases: n.Aliases, DriverOpts: n.DriverOpts, MacAddress: n.MAC}
		if n.GwPriority != 0 {
			ep.GwPriority = &n.GwPriority
		}
		if n.IPv4 != "" || n.IPv6 != "" || len(n.LinkLocalIPs) > 0 {
			ep.IPAMConfig = &wire.EndpointIPAM{IPv4Address: n.IPv4, IPv6Address: n.IPv6, LinkLocalIPs: n.LinkLocalIPs}
		}
		if i == 0 && len(r.link.Values) > 0 && !predefined(n.Name) {
			ep.Links = r.link.Values
		}
		if _, twice := nets[n.Name]; twice {
			return nil, errs.New(errs.Invalid, "network %q is specified multiple times", n.Name)
		}
		nets[n.Name] = ep
	}
	return nets, nil
}

func predefined(mode string) bool {
	switch mode {
	case "default", "bridge", "host", "none":
		return true
	}
	return strings.HasPrefix(mode, "container:")
}

// mergeFirst folds the single-network flags into the first network.
func (r *runFlags) mergeFirst(n *opts.Network) error {
	if len(n.Aliases) > 0 && len(r.netAlias.Values) > 0 {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --network-alias and per-network alias")
	}
	if n.IPv4 != "" && r.ip != "" || n.IPv6 != "" && r.ip6 != "" {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --ip and per-network IP address")
	}
	if n.MAC != "" && r.mac != "" {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --mac-address and per-network MAC address")
	}
	n.Aliases = append(n.Aliases, r.netAlias.Values...)
	n.LinkLocalIPs = append(n.LinkLocalIPs, r.linkLocal.Values...)
	if n.IPv4 == "" {
		n.IPv4 = r.ip
	}
	if n.IPv6 == "" {
		n.IPv6 = r.ip6
	}
	if n.MAC == "" {
		n.MAC = r.mac
	}
	return nil
}

// usageOf makes err, a wrong value of a flag, an error of cmd's usage with run's exit code.
func usageOf(path string, err error) error {
	return &command.ExitError{Code: 125, Text: fmt.Sprintf("ply: %v\n\nRun '%s --help' for more information", err, path)}
}
