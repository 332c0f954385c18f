// Package config holds the engine's settings: it merges daemon.json with the command line and checks every key.
//
// Keys and flags have Docker's names. A key that is set in both places is an error that names both. A key of Docker that
// this engine does not act on, and an unknown key, is a warning that names it; the engine starts. A misspelt key is taken
// as the key that was meant, with a warning. A value of the wrong type or meaning is an error that names the file and the
// key. Keys that guard the machine (authorization-plugins, userns-remap, rootless, selinux-enabled) are errors when set,
// because an engine that starts without them would leave the machine open.
//
// Invariants: a *Config that Load returned is complete (it has all defaults) and checked, and it is never changed. Every key
// of dockerd has a field, so that none is taken for a misspelt one.
package config

import (
	"slices"
	"strings"

	"github.com/docker/go-units"

	"ply/internal/container/cdi"
	"ply/internal/errs"
)

// Config holds every setting. The json tag is the key in daemon.json, the flag tag the flag's name.
type Config struct {
	// Paths and addresses.
	DataRoot string   `json:"data-root" flag:"data-root" use:"directory of all durable data"`
	ExecRoot string   `json:"exec-root" flag:"exec-root" use:"directory of data that lasts until the next boot"`
	Pidfile  string   `json:"pidfile" flag:"pidfile,p" use:"path of the pid file"`
	Hosts    []string `json:"hosts" flag:"host,H" use:"address to listen on: unix://PATH, fd:// or tcp://HOST:PORT"`
	Group    string   `json:"group" flag:"group,G" use:"group of the unix socket"`

	// Storage.
	StorageDriver string   `json:"storage-driver" flag:"storage-driver,s" use:"storage driver: {drivers}"`
	StorageOpts   []string `json:"storage-opts" flag:"storage-opt" use:"option of the storage driver: overlay2.size=BYTES limits the writable layers of containers"`
	ImageFormat   string   `json:"image-format" flag:"image-format" use:"manifest format of images made without a base: oci or docker"`
	RetainBlobs   string   `json:"retain-blobs" flag:"retain-blobs" use:"keep compressed layers after a pull: auto, always or never"`

	MinAPIVersion string `json:"min-api-version" flag:"min-api-version" use:"oldest version of the API that clients may use, such as 1.22"`

	// Logs and labels.
	Debug        bool              `json:"debug" flag:"debug,D" live:"yes" use:"write a detailed log"`
	LogLevel     string            `json:"log-level" flag:"log-level,l" live:"yes" use:"log level: debug, info, warn, error or fatal"`
	LogFormat    string            `json:"log-format" flag:"log-format" use:"log format: text or json"`
	Labels       []string          `json:"labels" flag:"label" live:"yes" use:"key=value label of this engine"`
	Experimental bool              `json:"experimental" flag:"experimental" use:"tell clients that experimental features are on: docker's has checkpoint and build --squash only then"`
	Features     map[string]bool   `json:"features" live:"yes"` // a key without a flag, as in Docker
	LogDriver    string            `json:"log-driver" flag:"log-driver" use:"default log driver of containers: json-file, local, none, syslog, journald, fluentd or gelf"`
	LogOpts      map[string]string `json:"log-opts" flag:"log-opt" use:"default log driver option"`

	// Registries.
	RegistryMirrors        []string `json:"registry-mirrors" flag:"registry-mirror" live:"yes" use:"mirror of Docker Hub, tried first"`
	InsecureRegistries     []string `json:"insecure-registries" flag:"insecure-registry" live:"yes" use:"registry that is used without verified TLS: HOST[:PORT] or an address range"`
	AuthRealms             []string `json:"auth-realms" flag:"auth-realm" live:"yes" use:"token server that every registry may name: HOST[:PORT]"`
	MaxConcurrentDownloads int      `json:"max-concurrent-downloads" flag:"max-concurrent-downloads" live:"yes" use:"layers that are downloaded at the same time"`
	MaxConcurrentUploads   int      `json:"max-concurrent-uploads" flag:"max-concurrent-uploads" live:"yes" use:"layers that are uploaded at the same time"`
	MaxDownloadAttempts    int      `json:"max-download-attempts" flag:"max-download-attempts" live:"yes" use:"attempts to download a layer"`
	Proxies                Proxies  `json:"proxies" use:"proxies of the engine itself"`
	HTTPProxy              string   `flag:"http-proxy" use:"HTTP proxy of the engine itself"`
	HTTPSProxy             string   `flag:"https-proxy" use:"HTTPS proxy of the engine itself"`
	NoProxy                string   `flag:"no-proxy" use:"hosts that the engine reaches without a proxy"`

	Builder Builder `json:"builder" use:"what the build cache may keep, and what clients may ask for in builds"`

	// Defaults of containers.
	DefaultUlimits      map[string]Ulimit  `json:"default-ulimits" flag:"default-ulimit" use:"default ulimit of containers: NAME=SOFT[:HARD]"`
	DefaultShmSize      Size               `json:"default-shm-size" flag:"default-shm-size" live:"yes" use:"default size of /dev/shm"`
	CgroupParent        string             `json:"cgroup-parent" flag:"cgroup-parent" use:"parent cgroup of all containers"`
	DefaultCgroupnsMode string             `json:"default-cgroupns-mode" flag:"default-cgroupns-mode" live:"yes" use:"default cgroup namespace of containers: host or private"`
	DefaultIpcMode      string             `json:"default-ipc-mode" flag:"default-ipc-mode" live:"yes" use:"default IPC of containers: shareable or private"`
	DefaultRuntime      string             `json:"default-runtime" flag:"default-runtime" live:"yes" use:"default OCI runtime"`
	Runtimes            map[string]Runtime `json:"runtimes" flag:"add-runtime" live:"yes" use:"additional OCI runtime: NAME=PATH"`
	Init                bool               `json:"init" flag:"init" use:"run an init in every container"`
	InitPath            string             `json:"init-path" flag:"init-path" use:"path of the init program"`
	ExecOpts            []string           `json:"exec-opts" flag:"exec-opt" use:"option of running containers: native.cgroupdriver=cgroupfs or systemd"`
	NoNewPrivileges     bool               `json:"no-new-privileges" flag:"no-new-privileges" use:"set no-new-privileges for containers by default"`
	SeccompProfile      string             `json:"seccomp-profile" flag:"seccomp-profile" use:"path of the seccomp profile, builtin or unconfined"`
	CDISpecDirs         []string           `json:"cdi-spec-dirs" flag:"cdi-spec-dir" use:"directory with descriptions of CDI devices; \"\" switches them off"`
	LiveRestore         bool               `json:"live-restore" flag:"live-restore" live:"yes" use:"containers keep running when the engine stops"`
	ShutdownTimeout     int                `json:"shutdown-timeout" flag:"shutdown-timeout" live:"yes" use:"seconds that containers without a stop timeout have to end when an engine without live-restore stops; -1 is no limit"`
	DefaultPidsLimit    int                `json:"default-pids-limit" flag:"default-pids-limit" use:"default limit of processes and threads of a container; -1 is no limit"`

	// Network.
	Bridge              string                       `json:"bridge" flag:"bridge,b" use:"bridge of containers; none switches networking off"`
	BIP                 string                       `json:"bip" flag:"bip" use:"address of the default bridge, ADDRESS/BITS"`
	BridgeNames         bool                         `json:"bridge-names" flag:"bridge-names" use:"let containers on the default bridge find each other by name"`
	FixedCIDR           string                       `json:"fixed-cidr" flag:"fixed-cidr" use:"range of addresses for containers in the default bridge's network"`
	DefaultAddressPools []Pool                       `json:"default-address-pools" flag:"default-address-pool" use:"addresses for new networks: base=ADDRESS/BITS,size=BITS"`
	MTU                 int                          `json:"mtu" flag:"mtu" use:"MTU of containers"`
	DNS                 []string                     `json:"dns" flag:"dns" use:"name server of containers"`
	DNSOpts             []string                     `json:"dns-opts" flag:"dns-opt" use:"resolver option of containers"`
	DNSSearch           []string                     `json:"dns-search" flag:"dns-search" use:"search domain of containers"`
	ResolvConf          string                       `json:"resolv-conf" use:"resolver configuration of the host"` // a key without a flag, as in Docker
	HostGatewayIP       string                       `json:"host-gateway-ip" use:"address of host-gateway"`        // Docker's name of before it took several
	HostGatewayIPs      []string                     `json:"host-gateway-ips" flag:"host-gateway-ip" use:"address that host-gateway stands for in --add-host"`
	IP                  string                       `json:"ip" flag:"ip" use:"default address of published ports"`
	IPForward           bool                         `json:"ip-forward" flag:"ip-forward" use:"enable net.ipv4.ip_forward"`
	IPForwardNoDrop     bool                         `json:"ip-forward-no-drop" flag:"ip-forward-no-drop" use:"after enabling net.ipv4.ip_forward, forward between all networks of the host"`
	IPMasq              bool                         `json:"ip-masq" flag:"ip-masq" use:"masquerade outgoing traffic of containers"`
	IPTables            bool                         `json:"iptables" flag:"iptables" use:"add packet filter rules"`
	DefaultNetworkOpts  map[string]map[string]string `json:"default-network-opts" flag:"default-network-opt" use:"default option of new networks: DRIVER=OPTION=VALUE"`
	UserlandProxy       bool                         `json:"userland-proxy" flag:"userland-proxy" use:"forward loopback traffic to published ports in user space where the kernel does not"`
	ICC                 bool                         `json:"icc" flag:"icc" use:"let containers of the default network reach each other"`

	// Transport.
	TLS       bool   `json:"tls" flag:"tls" use:"use TLS and verify clients"`
	TLSVerify bool   `json:"tlsverify" flag:"tlsverify" use:"use TLS and verify clients"`
	TLSCACert string `json:"tlscacert" flag:"tlscacert" use:"certificate of the authority that signs the clients' certificates"`
	TLSCert   string `json:"tlscert" flag:"tlscert" use:"the engine's certificate"`
	TLSKey    string `json:"tlskey" flag:"tlskey" use:"key of the engine's certificate"`

	// Docker's keys without an effect here. They are declared so that they are not taken for misspelt keys.
	IPv6                  bool              `json:"ipv6" ignored:"the default network is IPv4"`
	FixedCIDRv6           string            `json:"fixed-cidr-v6" ignored:"the default network is IPv4"`
	IP6Tables             bool              `json:"ip6tables" ignored:"iptables applies to both address families"`
	DefaultGateway        string            `json:"default-gateway" ignored:"the bridge is the gateway"`
	DefaultGatewayV6      string            `json:"default-gateway-v6" ignored:"the default network is IPv4"`
	UserlandProxyPath     string            `json:"userland-proxy-path" ignored:"the proxy is built in"`
	FirewallBackend       string            `json:"firewall-backend" ignored:"the firewall is always nftables"`
	BIP6                  string            `json:"bip6" ignored:"the default network is IPv4"`
	BridgeAcceptFwmark    string            `json:"bridge-accept-fwmark" ignored:"only published ports are reached from outside"`
	AllowDirectRouting    bool              `json:"allow-direct-routing" ignored:"only published ports are reached from outside"`
	OOMScoreAdjust        int               `json:"oom-score-adjust" ignored:"set it in the service manager"`
	DefaultInit           string            `json:"default-init" ignored:"init-path names the init program"`
	CPURealtimePeriod     int64             `json:"cpu-rt-period" ignored:"set it on the parent cgroup"`
	CPURealtimeRuntime    int64             `json:"cpu-rt-runtime" ignored:"set it on the parent cgroup"`
	Containerd            string            `json:"containerd" ignored:"there is no containerd below"`
	ContainerdNamespace   string            `json:"containerd-namespace" ignored:"there is no containerd below"`
	ContainerdPluginNS    string            `json:"containerd-plugin-namespace" ignored:"there is no containerd below"`
	CRIContainerd         bool              `json:"cri-containerd" ignored:"there is no containerd below"`
	MetricsAddr           string            `json:"metrics-addr" ignored:"there are no metrics yet"`
	NetworkDiagnosticPort int               `json:"network-diagnostic-port" ignored:"it belongs to swarm"`
	NodeGenericResources  []string          `json:"node-generic-resources" ignored:"it belongs to swarm"`
	SwarmAdvertiseAddr    string            `json:"swarm-default-advertise-addr" ignored:"it belongs to swarm"`
	SwarmHeartbeat        int               `json:"swarm-raft-heartbeat-tick" ignored:"it belongs to swarm"`
	SwarmElection         int               `json:"swarm-raft-election-tick" ignored:"it belongs to swarm"`
	NetworkControlMTU     int               `json:"network-control-plane-mtu" ignored:"it belongs to swarm"`
	RawLogs               bool              `json:"raw-logs" ignored:"logs have no colours"`
	ValidateFlag          bool              `json:"validate" ignored:"it is a flag, not a setting"`
	AllowNondistributable []string          `json:"allow-nondistributable-artifacts" ignored:"every layer is pushed"`
	DeprecatedKeyPath     string            `json:"deprecated-key-path" ignored:"there is no trust key"`
	DisableLegacyRegistry bool              `json:"disable-legacy-registry" ignored:"there is no legacy registry protocol"`
	ClusterStore          string            `json:"cluster-store" ignored:"it belongs to the swarm of Docker 1"`
	ClusterStoreOpts      map[string]string `json:"cluster-store-opts" ignored:"it belongs to the swarm of Docker 1"`
	ClusterAdvertise      string            `json:"cluster-advertise" ignored:"it belongs to the swarm of Docker 1"`
	Graph                 string            `json:"graph" refused:"its name is data-root"`
	APICorsHeader         string            `json:"api-cors-header" refused:"web pages of other sites would need it, and whoever uses the API owns the machine; let a reverse proxy set the header"`
	Rootless              bool              `json:"rootless" refused:"the engine runs as root"`
	SelinuxEnabled        bool              `json:"selinux-enabled" refused:"there are no SELinux labels, so containers would run unconfined"`
	AuthorizationPlugins  []string          `json:"authorization-plugins" refused:"there are no authorization plugins, so users whom they refuse would have access"`
	UsernsRemap           string            `json:"userns-remap" refused:"there are no user namespaces, so containers would run with the real user IDs"`

	Warnings []Warning // what Load warned of; no setting
}

// Proxies are the proxies of the engine itself. They take precedence over those of the environment.
type Proxies struct {
	HTTP  string `json:"http-proxy"`
	HTTPS string `json:"https-proxy"`
	No    string `json:"no-proxy"`
}

// Ulimit is a default limit of containers; -1 means unlimited.
type Ulimit struct {
	Name string
	Hard int64
	Soft int64
}

// Runtime is an OCI runtime that is started as a program.
type Runtime struct {
	Path string   `json:"path"`
	Args []string `json:"runtimeArgs"`
}

// Pool is a range of addresses, Base, that is divided into networks with prefixes of Size bits.
type Pool struct {
	Base string `json:"base"`
	Size int    `json:"size"`
}

// Size is a number of bytes. Its text may end in k, m, g or t, which are powers of 1024.
type Size int64

// defaultPids is the default limit of processes and threads of a container. A process that forks without end stops there, long
// before the host has no process left; programs that ask for many threads, such as databases and search engines, ask for up to 4096.
const defaultPids = 4096

// Default returns the settings of an engine without a file and without flags.
func Default() Config {
	return Config{
		DataRoot: "/var/lib/ply", ExecRoot: "/run/ply", Pidfile: "/run/ply.pid", Hosts: []string{"unix:///run/ply.sock"},
		ImageFormat: "oci", RetainBlobs: "auto", LogLevel: "info", LogFormat: "text", LogDriver: "json-file", LogOpts: map[string]string{},
		MaxConcurrentDownloads: 3, MaxConcurrentUploads: 5, MaxDownloadAttempts: 5,
		DefaultUlimits: map[string]Ulimit{}, DefaultShmSize: 64 << 20, DefaultRuntime: "ply", Runtimes: map[string]Runtime{}, SeccompProfile: "builtin",
		LiveRestore: true, ShutdownTimeout: 15, DefaultPidsLimit: defaultPids,
		MTU: 1500, IPForward: true, IPMasq: true, IPTables: true, UserlandProxy: true, ICC: true, DefaultIpcMode: "private", CDISpecDirs: cdi.DefaultDirs(),
	}
}

// WritableSize returns the largest number of bytes that the writable layer of a container may take by default; 0 = no limit.
func (c *Config) WritableSize() (size int64) {
	for _, o := range c.StorageOpts {
		if value, ok := strings.CutPrefix(o, sizeOption); ok {
			size, _ = units.RAMInBytes(value) // checked by Load
		}
	}
	return size
}

// sizeOption is Docker's name of the limit. It holds for every driver that can limit writables.
const sizeOption = "overlay2.size="

// CDIDirs returns the directories with descriptions of CDI devices; none where they are switched off.
func (c *Config) CDIDirs() []string {
	if on, set := c.Features["cdi"]; set && !on || slices.Equal(c.CDISpecDirs, []string{""}) {
		return nil
	}
	return c.CDISpecDirs
}

// Warning is a mistake that the user should correct and that does not keep the engine from starting.
type Warning struct {
	Key  string
	Text string // a full sentence that names the file and the key
}

func (w Warning) String() string { return w.Text }

func invalid(format string, args ...any) error { return errs.New(errs.Invalid, format, args...) }
