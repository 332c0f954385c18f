package wire

import "time"

// Network is a network, listed or inspected.
type Network struct {
	Name       string
	ID         string `json:"Id"`
	Created    time.Time
	Scope      string
	Driver     string
	EnableIPv4 *bool `json:",omitempty"` // since 1.48
	EnableIPv6 bool
	IPAM       IPAM
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigFrom ConfigReference
	ConfigOnly bool
	Containers map[string]NetworkMember // by ID
	Options    map[string]string
	Labels     map[string]string
}

// ConfigReference names the network from which another one takes its configuration.
type ConfigReference struct{ Network string }

// IPAM says how a network gives out addresses.
type IPAM struct {
	Driver  string
	Options map[string]string
	Config  []IPAMConfig
}

// IPAMConfig is one subnet.
type IPAMConfig struct {
	Subnet             string            `json:",omitempty"`
	IPRange            string            `json:",omitempty"`
	Gateway            string            `json:",omitempty"`
	AuxiliaryAddresses map[string]string `json:",omitempty"`
}

// NetworkMember is a container in an inspected network. The addresses have the length of the prefix.
type NetworkMember struct {
	Name        string
	EndpointID  string
	MacAddress  string
	IPv4Address string
	IPv6Address string
}

// NetworkBody is the body of POST /networks/create.
type NetworkBody struct {
	Name       string
	Driver     string
	Scope      string `json:",omitempty"`
	EnableIPv4 *bool  `json:",omitempty"`
	EnableIPv6 *bool  `json:",omitempty"`
	IPAM       IPAM
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigOnly bool
	ConfigFrom *ConfigReference `json:",omitempty"`
	Options    map[string]string
	Labels     map[string]string
}

// NetworkConnect is the body of POST /networks/{id}/connect.
type NetworkConnect struct {
	Container      string
	EndpointConfig *EndpointSettings `json:",omitempty"`
}

// NetworkDisconnect is the body of POST /networks/{id}/disconnect.
type NetworkDisconnect struct {
	Container string
	Force     bool
}

// NetworkCreated is the answer of POST /networks/create.
type NetworkCreated struct {
	ID      string `json:"Id"`
	Warning string
}

// NetworksPruned is the answer of POST /networks/prune.
type NetworksPruned struct{ NetworksDeleted []string }
