package docker

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ply/internal/config"
	"ply/internal/errs"
	"ply/internal/transfer"
)

// systemHandlers answers what the engine is.
type systemHandlers struct{ system System }

func (h systemHandlers) routes(add adder) {
	add(get, "/_ping", h.ping)
	add(head, "/_ping", h.ping)
	add(get, "/version", h.version)
	add(get, "/info", h.info)
}

func (h systemHandlers) ping(c *call) error {
	header := c.w.Header()
	header.Set("Builder-Version", "1")
	header.Set("Swarm", "inactive")
	header.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	header.Set("Pragma", "no-cache")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if c.r.Method == head {
		header.Set("Content-Length", "0")
		return c.none(http.StatusOK)
	}
	_, err := c.w.Write([]byte("OK"))
	return err
}

func (h systemHandlers) version(c *call) error {
	type component struct {
		Name, Version string
		Details       map[string]string `json:",omitempty"`
	}
	type answer struct {
		Platform      struct{ Name string }
		Components    []component
		Version       string
		APIVersion    string `json:"ApiVersion"`
		MinAPIVersion string
		GitCommit     string
		GoVersion     string
		Os, Arch      string
		KernelVersion string `json:",omitempty"`
		BuildTime     string `json:",omitempty"`
	}
	v := h.system.Version()
	a := answer{
		Version: v.Version, APIVersion: versionText(maxVersion), MinAPIVersion: versionText(minVersion),
		GitCommit: v.Commit, GoVersion: v.Go, Os: v.OS, Arch: v.Arch, KernelVersion: v.Kernel, BuildTime: v.Time,
	}
	a.Platform.Name = "ply"
	a.Components = []component{{"Engine", v.Version, map[string]string{
		"ApiVersion": a.APIVersion, "MinAPIVersion": a.MinAPIVersion, "GitCommit": v.Commit, "GoVersion": v.Go,
		"Os": v.OS, "Arch": v.Arch, "KernelVersion": v.Kernel, "BuildTime": v.Time, "Experimental": "false",
	}}}
	return c.json(http.StatusOK, a)
}

// infoAnswer is what GET /info tells, fields of old versions included: clients ignore what they do not know.
type infoAnswer struct {
	ID                string
	Containers        int
	ContainersRunning int
	ContainersPaused  int
	ContainersStopped int
	Images            int
	Driver            string
	DriverStatus      [][2]string
	Plugins           struct {
		Volume, Network, Authorization, Log []string
	}
	MemoryLimit        bool
	SwapLimit          bool
	CPUCfsPeriod       bool `json:"CpuCfsPeriod"`
	CPUCfsQuota        bool `json:"CpuCfsQuota"`
	CPUShares          bool
	CPUSet             bool
	PidsLimit          bool
	IPv4Forwarding     bool
	Debug              bool
	NFd                int
	OomKillDisable     bool
	NGoroutines        int
	SystemTime         string
	LoggingDriver      string
	CgroupDriver       string
	CgroupVersion      string `json:",omitempty"`
	NEventsListener    int
	KernelVersion      string
	OperatingSystem    string
	OSVersion          string
	OSType             string
	Architecture       string
	IndexServerAddress string
	RegistryConfig     registryConfig
	NCPU               int
	MemTotal           int64
	GenericResources   []struct{}
	DockerRootDir      string
	HTTPProxy          string `json:"HttpProxy"`
	HTTPSProxy         string `json:"HttpsProxy"`
	NoProxy            string
	Name               string
	Labels             []string
	ExperimentalBuild  bool
	ServerVersion      string
	Runtimes           map[string]infoRuntime
	DefaultRuntime     string
	Swarm              struct {
		NodeID, NodeAddr string
		LocalNodeState   string
		ControlAvailable bool
		Error            string
		RemoteManagers   []struct{}
	}
	LiveRestoreEnabled  bool
	Isolation           string
	InitBinary          string
	ContainerdCommit    infoCommit
	RuncCommit          infoCommit
	InitCommit          infoCommit
	SecurityOptions     []string
	DefaultAddressPools []addressPool `json:",omitempty"`
	CDISpecDirs         []string
	Warnings            []string
}

type infoRuntime struct {
	Path string `json:"path"`
}

type infoCommit struct{ ID string }

type addressPool struct {
	Base string
	Size int
}

type registryConfig struct {
	InsecureRegistryCIDRs []string
	IndexConfigs          map[string]indexConfig
	Mirrors               []string
}

type indexConfig struct {
	Name     string
	Mirrors  []string
	Secure   bool
	Official bool
}

// hubName is the name of the index that short names belong to.
const hubName = "docker.io"

func (h systemHandlers) info(c *call) error {
	in, err := h.system.Info(c.ctx())
	if err != nil {
		return err
	}
	cfg, machine, can := in.Config, in.Host, in.Host.Limits
	a := infoAnswer{
		ID: in.ID, Containers: in.Containers.All, ContainersRunning: in.Containers.Running, ContainersPaused: in.Containers.Paused,
		ContainersStopped: in.Containers.Stopped, Images: in.Images, Driver: in.Driver, DriverStatus: in.DriverStatus,
		MemoryLimit: can.Memory, SwapLimit: can.Swap, CPUCfsPeriod: can.CPUQuota, CPUCfsQuota: can.CPUQuota,
		CPUShares: can.CPUShares, CPUSet: can.CPUSet, PidsLimit: can.Pids, OomKillDisable: can.OOMKillDisable,
		IPv4Forwarding: machine.IPv4Forwarding, Debug: cfg.Debug, NFd: in.OpenFiles, NGoroutines: in.Goroutines,
		SystemTime: in.Time.Format(time.RFC3339Nano), LoggingDriver: cfg.LogDriver, CgroupDriver: "cgroupfs", CgroupVersion: machine.CgroupVersion,
		KernelVersion: machine.Kernel, OperatingSystem: machine.OperatingSystem, OSVersion: machine.OSVersion, OSType: "linux",
		Architecture: machine.Architecture, IndexServerAddress: "https://index." + hubName + "/v1/", RegistryConfig: registriesOf(cfg),
		NCPU: machine.CPUs, MemTotal: machine.Memory, DockerRootDir: cfg.DataRoot, Name: machine.Name, Labels: notNil(cfg.Labels),
		HTTPProxy: hideUser(cfg.Proxies.HTTP), HTTPSProxy: hideUser(cfg.Proxies.HTTPS), NoProxy: cfg.Proxies.No,
		ServerVersion: h.system.Version().Version, Runtimes: map[string]infoRuntime{}, DefaultRuntime: cfg.DefaultRuntime,
		LiveRestoreEnabled: in.LiveRestore, InitBinary: in.InitBinary, SecurityOptions: []string{"name=seccomp,profile=" + cfg.SeccompProfile},
		CDISpecDirs: []string{},
	}
	if !cfg.IPTables {
		a.Warnings = append(a.Warnings, "WARNING: packet filter rules are switched off (iptables=false)")
	}
	a.Plugins.Volume, a.Plugins.Network, a.Plugins.Log = []string{"local"}, []string{"bridge", "host", "null"}, []string{"json-file", "local", "none"}
	for name, path := range in.Runtimes {
		a.Runtimes[name] = infoRuntime{path}
	}
	for _, pool := range cfg.DefaultAddressPools {
		a.DefaultAddressPools = append(a.DefaultAddressPools, addressPool{pool.Base, pool.Size})
	}
	a.Swarm.LocalNodeState = "inactive"
	return c.json(http.StatusOK, a)
}

// registriesOf returns mirrors and insecure registries in Docker's two groups: address ranges and hosts.
func registriesOf(cfg *config.Config) registryConfig {
	rc := registryConfig{InsecureRegistryCIDRs: []string{}, IndexConfigs: map[string]indexConfig{}, Mirrors: notNil(cfg.RegistryMirrors)}
	rc.IndexConfigs[hubName] = indexConfig{hubName, notNil(cfg.RegistryMirrors), true, true}
	// Loopback is always allowed, whatever the configuration says.
	for _, r := range append([]string{"127.0.0.0/8", "::1/128"}, cfg.InsecureRegistries...) {
		if slices.Contains(rc.InsecureRegistryCIDRs, r) {
			continue
		}
		if _, err := netip.ParsePrefix(r); err == nil {
			rc.InsecureRegistryCIDRs = append(rc.InsecureRegistryCIDRs, r)
		} else {
			rc.IndexConfigs[r] = indexConfig{r, []string{}, false, false}
		}
	}
	return rc
}

// hideUser drops the credentials of a proxy's URL.
func hideUser(url string) string {
	scheme, rest, ok := strings.Cut(url, "://")
	if !ok {
		return url
	}
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndex(authority, "@"); i >= 0 {
		authority = "xxxxx:xxxxx@" + authority[i+1:]
	}
	if path != "" {
		path = "/" + path
	}
	return scheme + "://" + authority + path
}

// notNil makes an absent list an empty one in JSON.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (h transferHandlers) auth(c *call) error {
	var body authConfig
	if err := c.body(&body, false); err != nil {
		return err
	}
	token, err := h.registry.Login(c.ctx(), body.credentials())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, struct {
		IdentityToken string
		Status        string
	}{token, "Login Succeeded"})
}

// authConfig is docker's form of credentials.
type authConfig struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	ServerAddress string `json:"serveraddress"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func (a authConfig) credentials() transfer.Credentials {
	if a.Username == "" && a.Password == "" && a.Auth != "" {
		if b, err := decodeBase64(a.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(string(b), ":")
		}
	}
	return transfer.Credentials{Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
}

func unavailable(what, why string) error {
	return errs.New(errs.Unimplemented, "%s is not supported: %s", what, why)
}
