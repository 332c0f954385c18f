package client

import "encoding/json"

// The request and answer bodies of the Engine API, as far as the command line reads or writes them.

// Config is the portable part of a container.
type Config struct {
	Hostname        string
	Domainname      string
	User            string
	AttachStdin     bool
	AttachStdout    bool
	AttachStderr    bool
	ExposedPorts    map[string]struct{} `json:",omitempty"`
	Tty             bool
	OpenStdin       bool
	StdinOnce       bool
	Env             []string
	Cmd             []string
	Healthcheck     *Health `json:",omitempty"`
	Image           string
	Volumes         map[string]struct{}
	WorkingDir      string
	Entrypoint      []string
	NetworkDisabled bool   `json:",omitempty"`
	MacAddress      string `json:",omitempty"`
	OnBuild         []string
	Labels          map[string]string
	StopSignal      string   `json:",omitempty"`
	StopTimeout     *int     `json:",omitempty"`
	Shell           []string `json:",omitempty"`
}

// Health is a health check; durations in nanoseconds.
type Health struct {
	Test          []string `json:",omitempty"`
	Interval      int64    `json:",omitempty"`
	Timeout       int64    `json:",omitempty"`
	StartPeriod   int64    `json:",omitempty"`
	StartInterval int64    `json:",omitempty"`
	Retries       int      `json:",omitempty"`
}

// PortBinding is one host end of a published port.
type PortBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// RestartPolicy says when to start again.
type RestartPolicy struct {
	Name              string
	MaximumRetryCount int
}

// LogConfig is the log driver.
type LogConfig struct {
	Type   string
	Config map[string]string
}

// WeightDevice and ThrottleDevice are block I/O limits of one device.
type WeightDevice struct {
	Path   string
	Weight uint16
}

// ThrottleDevice limits one device.
type ThrottleDevice struct {
	Path string
	Rate uint64
}

// DeviceMapping gives a host device to a container.
type DeviceMapping struct {
	PathOnHost, PathInContainer, CgroupPermissions string
}

// DeviceRequest asks a device driver for devices.
type DeviceRequest struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string
	Options      map[string]string
}

// Ulimit is one resource limit.
type Ulimit struct {
	Name       string
	Hard, Soft int64
}

// Resources are the limits of a container; also the body of update.
type Resources struct {
	CPUShares            int64 `json:"CpuShares"`
	Memory               int64
	NanoCPUs             int64 `json:"NanoCpus"`
	CgroupParent         string
	BlkioWeight          uint16
	BlkioWeightDevice    []WeightDevice
	BlkioDeviceReadBps   []ThrottleDevice
	BlkioDeviceWriteBps  []ThrottleDevice
	BlkioDeviceReadIOps  []ThrottleDevice
	BlkioDeviceWriteIOps []ThrottleDevice
	CPUPeriod            int64 `json:"CpuPeriod"`
	CPUQuota             int64 `json:"CpuQuota"`
	CPURealtimePeriod    int64 `json:"CpuRealtimePeriod"`
	CPURealtimeRuntime   int64 `json:"CpuRealtimeRuntime"`
	CpusetCpus           string
	CpusetMems           string
	Devices              []DeviceMapping
	DeviceCgroupRules    []string
	DeviceRequests       []DeviceRequest
	KernelMemory         int64 `json:",omitempty"`
	MemoryReservation    int64
	MemorySwap           int64
	MemorySwappiness     *int64
	OomKillDisable       *bool
	PidsLimit            *int64
	Ulimits              []Ulimit
}

// Mount is one mount by type.
type Mount struct {
	Type          string         `json:",omitempty"`
	Source        string         `json:",omitempty"`
	Target        string         `json:",omitempty"`
	ReadOnly      bool           `json:",omitempty"`
	Consistency   string         `json:",omitempty"`
	BindOptions   *BindOptions   `json:",omitempty"`
	VolumeOptions *VolumeOptions `json:",omitempty"`
	ImageOptions  *ImageOptions  `json:",omitempty"`
	TmpfsOptions  *TmpfsOptions  `json:",omitempty"`
}

// BindOptions of a bind mount.
type BindOptions struct {
	Propagation            string `json:",omitempty"`
	NonRecursive           bool   `json:",omitempty"`
	CreateMountpoint       bool   `json:",omitempty"`
	ReadOnlyNonRecursive   bool   `json:",omitempty"`
	ReadOnlyForceRecursive bool   `json:",omitempty"`
}

// VolumeOptions of a volume mount.
type VolumeOptions struct {
	NoCopy       bool              `json:",omitempty"`
	Labels       map[string]string `json:",omitempty"`
	Subpath      string            `json:",omitempty"`
	DriverConfig *VolumeDriver     `json:",omitempty"`
}

// VolumeDriver names a driver and its options.
type VolumeDriver struct {
	Name    string            `json:",omitempty"`
	Options map[string]string `json:",omitempty"`
}

// ImageOptions of an image mount.
type ImageOptions struct {
	Subpath string `json:",omitempty"`
}

// TmpfsOptions of a tmpfs mount.
type TmpfsOptions struct {
	SizeBytes int64      `json:",omitempty"`
	Mode      uint32     `json:",omitempty"`
	Options   [][]string `json:",omitempty"`
}

// HostConfig is the part of a container that belongs to this host.
type HostConfig struct {
	Binds           []string
	ContainerIDFile string
	LogConfig       LogConfig
	NetworkMode     string
	PortBindings    map[string][]PortBinding
	RestartPolicy   RestartPolicy
	AutoRemove      bool
	VolumeDriver    string
	VolumesFrom     []string
	ConsoleSize     [2]uint
	Annotations     map[string]string `json:",omitempty"`
	CapAdd          []string
	CapDrop         []string
	CgroupnsMode    string
	DNS             []string `json:"Dns"`
	DNSOptions      []string `json:"DnsOptions"`
	DNSSearch       []string `json:"DnsSearch"`
	ExtraHosts      []string
	GroupAdd        []string
	IpcMode         string
	Cgroup          string
	Links           []string
	OomScoreAdj     int
	PidMode         string
	Privileged      bool
	PublishAllPorts bool
	ReadonlyRootfs  bool
	SecurityOpt     []string
	StorageOpt      map[string]string `json:",omitempty"`
	Tmpfs           map[string]string `json:",omitempty"`
	UTSMode         string
	UsernsMode      string
	ShmSize         int64
	Sysctls         map[string]string `json:",omitempty"`
	Runtime         string            `json:",omitempty"`
	Isolation       string
	Resources
	Mounts        []Mount `json:",omitempty"`
	MaskedPaths   []string
	ReadonlyPaths []string
	Init          *bool `json:",omitempty"`
}

// EndpointSettings connects a container to one network.
type EndpointSettings struct {
	IPAMConfig *EndpointIPAM     `json:",omitempty"`
	Links      []string          `json:",omitempty"`
	Aliases    []string          `json:",omitempty"`
	MacAddress string            `json:",omitempty"`
	DriverOpts map[string]string `json:",omitempty"`
	GwPriority int               `json:",omitempty"`
}

// EndpointIPAM asks for addresses.
type EndpointIPAM struct {
	IPv4Address  string   `json:",omitempty"`
	IPv6Address  string   `json:",omitempty"`
	LinkLocalIPs []string `json:",omitempty"`
}

// NetworkingConfig is the networks part of a create.
type NetworkingConfig struct {
	EndpointsConfig map[string]*EndpointSettings
}

// CreateBody is the body of a create.
type CreateBody struct {
	*Config
	HostConfig       *HostConfig
	NetworkingConfig *NetworkingConfig
}

// Created answers a create.
type Created struct {
	ID       string `json:"Id"`
	Warnings []string
}

// Image is one row of /images/json.
type Image struct {
	ID          string `json:"Id"`
	ParentID    string `json:"ParentId"`
	RepoTags    []string
	RepoDigests []string
	Created     int64
	Size        int64
	SharedSize  int64
	VirtualSize int64
	Containers  int64
	Labels      map[string]string
}

// ImageDetail is what the command line reads of an image inspect.
type ImageDetail struct {
	ID       string `json:"Id"`
	RepoTags []string
	Size     int64
	RootFS   struct {
		Type   string
		Layers []string
	}
	Config *Config
}

// HistoryItem is one line of an image's history, newest first.
type HistoryItem struct {
	ID        string `json:"Id"`
	Created   int64
	CreatedBy string
	Tags      []string
	Size      int64
	Comment   string
}

// Removed is one line of an image removal.
type Removed struct {
	Untagged string
	Deleted  string
}

// Port is a port of a listed container.
type Port struct {
	IP          string
	PrivatePort uint16
	PublicPort  uint16
	Type        string
}

// MountPoint is a mount of a listed or inspected container.
type MountPoint struct {
	Type, Name, Source, Destination, Driver, Mode string
	RW                                            bool
	Propagation                                   string
}

// Container is one row of /containers/json.
type Container struct {
	ID         string `json:"Id"`
	Names      []string
	Image      string
	ImageID    string
	Command    string
	Created    int64
	Ports      []Port
	SizeRw     int64
	SizeRootFs int64
	Labels     map[string]string
	State      string
	Status     string
	HostConfig struct{ NetworkMode string }
	Networks   struct {
		Networks map[string]json.RawMessage
	} `json:"NetworkSettings"`
	Mounts []MountPoint
}

// ContainerDetail is what the command line reads of a container inspect.
type ContainerDetail struct {
	ID    string `json:"Id"`
	Name  string
	Image string
	State struct {
		Status     string
		Running    bool
		Paused     bool
		Restarting bool
		Dead       bool
		ExitCode   int
		Error      string
		Health     *struct{ Status string }
	}
	Config          Config
	HostConfig      HostConfig
	NetworkSettings struct {
		Ports map[string][]PortBinding
	}
	Mounts []MountPoint
}

// WaitResult is the end of a container.
type WaitResult struct {
	StatusCode int
	Error      *struct{ Message string }
}

// ExecBody is the body of an exec create.
type ExecBody struct {
	User         string
	Privileged   bool
	Tty          bool
	ConsoleSize  *[2]uint `json:",omitempty"`
	AttachStdin  bool
	AttachStderr bool
	AttachStdout bool
	DetachKeys   string
	Env          []string
	WorkingDir   string
	Cmd          []string
}

// ExecDetail is an exec as inspected.
type ExecDetail struct {
	ID       string `json:"ID"`
	Running  bool
	ExitCode *int
	Pid      int
}

// ExecStart is the body of an exec start.
type ExecStart struct {
	Detach      bool
	Tty         bool
	ConsoleSize *[2]uint `json:",omitempty"`
}

// Volume is a volume.
type Volume struct {
	Name, Driver, Mountpoint, Scope string
	CreatedAt                       string
	Labels                          map[string]string
	Options                         map[string]string
	UsageData                       *struct{ Size, RefCount int64 }
}

// Network is a listed network.
type Network struct {
	Name     string
	ID       string `json:"Id"`
	Created  string
	Scope    string
	Driver   string
	IPv4     *bool `json:"EnableIPv4"`
	IPv6     bool  `json:"EnableIPv6"`
	Internal bool
	Labels   map[string]string
}

// Message is one line of a progress stream.
type Message struct {
	Stream   string `json:"stream,omitempty"`
	Status   string `json:"status,omitempty"`
	Progress string `json:"progress,omitempty"`
	Detail   *struct {
		Current    int64  `json:"current,omitempty"`
		Total      int64  `json:"total,omitempty"`
		Start      int64  `json:"start,omitempty"`
		HideCounts bool   `json:"hidecounts,omitempty"`
		Units      string `json:"units,omitempty"`
	} `json:"progressDetail,omitempty"`
	ID          string `json:"id,omitempty"`
	Error       string `json:"error,omitempty"`
	ErrorDetail *struct {
		Code    int    `json:"code,omitempty"`
		Message string `json:"message,omitempty"`
	} `json:"errorDetail,omitempty"`
	Aux json.RawMessage `json:"aux,omitempty"`
}

// Auth is one registry's credentials, as X-Registry-Auth carries them and POST /auth takes them.
type Auth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Auth          string `json:"auth,omitempty"`
	ServerAddress string `json:"serveraddress,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}
