package wire

import (
	"encoding/json"

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
}

// Created answers a create.
type Created struct {
	ID       string `json:"Id"`
	Warnings []string
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

// WaitResult is the end of a container.
type WaitResult struct {
	StatusCode int
	Error      *struct{ Message string }
}
