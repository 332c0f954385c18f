package wire

import (
	"encoding/json"
	"io/fs"
	"time"

	"ply/internal/oci"
)

// Words is a list of strings that old clients also write as one string.
type Words []string

// UnmarshalJSON reads a list, or one string as a list of one.
func (w *Words) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		var one string
		if err := json.Unmarshal(b, &one); err != nil {
			return err
		}
		*w = Words{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(w))
}

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
	Cmd             Words
	Healthcheck     *oci.Healthcheck `json:",omitempty"`
	ArgsEscaped     bool             `json:",omitempty"`
	Image           string
	Volumes         map[string]struct{}
	WorkingDir      string
	Entrypoint      Words
	NetworkDisabled bool   `json:",omitempty"`
	MacAddress      string `json:",omitempty"`
	OnBuild         []string
	Labels          map[string]string
	StopSignal      string   `json:",omitempty"`
	StopTimeout     *int     `json:",omitempty"`
	Shell           []string `json:",omitempty"`
}

// NetworkingConfig is the networks part of a create.
type NetworkingConfig struct {
	EndpointsConfig map[string]*EndpointSettings
}

// EndpointSettings is a container's connection to one network: as asked for at create, and with what came of it in inspect.
type EndpointSettings struct {
	IPAMConfig          *EndpointIPAM
	Links               []string
	Aliases             []string
	MacAddress          string
	DriverOpts          map[string]string
	GwPriority          *int `json:",omitempty"` // since 1.48
	NetworkID           string
	EndpointID          string
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	DNSNames            []string `json:",omitempty"` // since 1.44
}

// EndpointIPAM asks for addresses.
type EndpointIPAM struct {
	IPv4Address  string   `json:",omitempty"`
	IPv6Address  string   `json:",omitempty"`
	LinkLocalIPs []string `json:",omitempty"`
}

// CreateBody is the body of a create.
type CreateBody struct {
	*Config
	HostConfig       *HostConfig
	NetworkingConfig *NetworkingConfig
}

// UpdateBody is the body of an update.
type UpdateBody struct {
	Resources
	RestartPolicy RestartPolicy
	PortBindings  map[string][]PortBinding `json:",omitzero"` // ply's; nil = as they are, while an empty one publishes none
}

// Created answers a create.
type Created struct {
	ID       string `json:"Id"`
	Warnings []string
}

// Updated is the answer of an update.
type Updated struct{ Warnings []string }

// Container is one element of GET /containers/json.
type Container struct {
	ID         string `json:"Id"`
	Names      []string
	Image      string
	ImageID    string
	Command    string
	Created    int64
	Ports      []Port
	SizeRw     int64 `json:",omitempty"`
	SizeRootFs int64 `json:",omitempty"`
	Labels     map[string]string
	State      string
	Status     string
	HostConfig struct {
		NetworkMode string            `json:",omitempty"`
		Annotations map[string]string `json:",omitempty"`
	}
	NetworkSettings struct {
		Networks map[string]*EndpointSettings
	}
	Mounts []MountPoint
}

// Port is a port of a listed container.
type Port struct {
	IP          string `json:",omitempty"`
	PrivatePort uint16
	PublicPort  uint16 `json:",omitempty"`
	Type        string
}

// MountPoint is a mount of a listed or inspected container.
type MountPoint struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

// ContainerDetail is the answer of GET /containers/{id}/json.
type ContainerDetail struct {
	ID              string `json:"Id"`
	Created         string
	Path            string
	Args            []string
	State           State
	Image           string
	ResolvConfPath  string
	HostnamePath    string
	HostsPath       string
	LogPath         string
	Name            string
	RestartCount    int
	Driver          string
	Platform        string
	MountLabel      string
	ProcessLabel    string
	AppArmorProfile string
	ExecIDs         []string
	HostConfig      HostConfig
	GraphDriver     GraphDriver
	SizeRw          *int64 `json:",omitempty"`
	SizeRootFs      *int64 `json:",omitempty"`
	Mounts          []MountPoint
	Config          Config
	NetworkSettings NetworkSettings
}

// State is the state of an inspected container. A time that never was is the year 1.
type State struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  string
	FinishedAt string
	Health     *Health `json:",omitempty"`
}

// Health is the health of a container with a health check.
type Health struct {
	Status        string
	FailingStreak int
	Log           []HealthResult
}

// HealthResult is one run of a health check.
type HealthResult struct {
	Start    time.Time
	End      time.Time
	ExitCode int
	Output   string
}

// NetworkSettings has the fields of the default network also at its top: until 1.51 clients read them there.
type NetworkSettings struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	Ports                  map[string][]PortBinding
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []struct{}
	SecondaryIPv6Addresses []struct{}
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
	Networks               map[string]*EndpointSettings
}

// WaitResult is the end of a container.
type WaitResult struct {
	StatusCode int
	OOMKilled  bool       `json:",omitempty"` // ply's: memory ran out
	Error      *WaitError `json:",omitempty"`
}

// WaitError says why the end of a container is not known.
type WaitError struct{ Message string }

// Processes is the answer of GET /containers/{id}/top: a table as ps prints it.
type Processes struct {
	Titles    []string
	Processes [][]string
}

// Change is one path that differs from the image. Kind is 0 for changed, 1 for added, 2 for deleted.
type Change struct {
	Path string
	Kind int
}

// ContainersPruned is the answer of POST /containers/prune.
type ContainersPruned struct {
	ContainersDeleted []string
	SpaceReclaimed    int64
}

// PathStatHeader is the header that carries a PathStat, as JSON in base64.
const PathStatHeader = "X-Docker-Container-Path-Stat"

// PathStat is what a path of a copy is.
type PathStat struct {
	Name       string      `json:"name"`
	Size       int64       `json:"size"`
	Mode       fs.FileMode `json:"mode"`
	Mtime      time.Time   `json:"mtime"`
	LinkTarget string      `json:"linkTarget"`
}
