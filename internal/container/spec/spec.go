// Package spec says what a container is asked to be: the run options, how they are merged with an image's defaults, and which
// of them are refused. It is data and pure functions: nothing here looks at the host's files, starts a process or needs a service.
package spec

import (
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/volume"
)

// Spec is everything a user can say about a new container. api/docker maps Docker's Config, HostConfig and
// NetworkingConfig onto it and back; an option with no field here is an error that names it.
type Spec struct {
	Name     string // "" lets the service invent one: adjective_surname
	Image    string // as the user wrote it
	Platform string

	// What to run; nil or "" takes the image's.
	Hostname     string
	Domainname   string
	User         string
	Env          []string
	Entrypoint   []string // nil = image's; an empty non-nil slice resets it
	Cmd          []string
	WorkingDir   string
	Labels       map[string]string
	ExposedPorts []string // "5000/tcp"
	Volumes      []string // anonymous volumes: container paths
	StopSignal   string
	StopTimeout  *int // seconds
	Shell        []string
	Healthcheck  *oci.Healthcheck
	MacAddress   string

	// Streams.
	Tty          bool
	OpenStdin    bool
	StdinOnce    bool
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	ConsoleSize  [2]uint // height, width

	// Mounts.
	Binds       []string // -v as written: src:dst[:mode], or a volume's name
	Mounts      []volume.MountSpec
	VolumesFrom []string // name[:ro|rw]
	Tmpfs       map[string]string

	// Network.
	NetworkMode     string // "", "default", "bridge", "host", "none", "container:<id>" or a network's name
	Ports           []network.PortBinding
	PublishAll      bool
	DNS             []string
	DNSOptions      []string
	DNSSearch       []string
	ExtraHosts      []string
	Links           []string
	NetworkDisabled bool
	Endpoints       map[string]network.EndpointSpec

	// Rights and isolation.
	Privileged     bool
	CapAdd         []string
	CapDrop        []string
	SecurityOpt    []string // seccomp=…, no-new-privileges, apparmor=…, label=…, systempaths=unconfined
	ReadonlyRootfs bool
	MaskedPaths    []string // nil = default
	ReadonlyPaths  []string // nil = default
	PidMode        string
	IpcMode        string
	UTSMode        string
	UsernsMode     string
	CgroupnsMode   string
	CgroupParent   string
	GroupAdd       []string
	Devices        []Device
	DeviceRules    []string // device cgroup rules
	Sysctls        map[string]string
	Ulimits        []Ulimit
	ShmSize        int64
	OomScoreAdj    int
	OomKillDisable bool
	Init           *bool
	Runtime        string

	Resources       Resources
	RestartPolicy   RestartPolicy
	AutoRemove      bool
	LogDriver       string // "" = daemon's default; json-file, local, none
	LogOpts         map[string]string
	ContainerIDFile string
	Annotations     map[string]string
}

// Device is a host device given to a container.
type Device struct {
	HostPath, ContainerPath, Permissions string
}

// Ulimit is one rlimit.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Resources are cgroup limits; zero means none. Memory in bytes, swap -1 = unlimited.
type Resources struct {
	Memory, MemoryReservation, MemorySwap, KernelMemory int64
	MemorySwappiness                                    *int64
	NanoCPUs                                            int64
	CPUShares, CPUPeriod, CPUQuota                      int64
	CPURealtimePeriod, CPURealtimeRuntime               int64
	CpusetCpus, CpusetMems                              string
	PidsLimit                                           *int64
	BlkioWeight                                         uint16
}

// RestartPolicy: "", "no", "always", "unless-stopped", "on-failure".
type RestartPolicy struct {
	Name       string
	MaxRetries int
}

// ExecSpec says what to run beside a container's first process.
type ExecSpec struct {
	Cmd                                     []string
	Env                                     []string
	User, WorkingDir                        string
	Tty, Privileged                         bool
	AttachStdin, AttachStdout, AttachStderr bool
	DetachKeys                              string
	ConsoleSize                             [2]uint
}
