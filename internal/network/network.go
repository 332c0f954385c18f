// Package network gives containers their network: bridges, addresses, published ports, names.
//
// The default network is bridge ply0 on the first free of Docker's address pools. Rules are one nftables
// table of our own, made once; a published port is an element in a map. A container without -p touches no rule.
package network

import (
	"net/netip"
	"time"

	"ply/internal/oci"
)

// PortBinding publishes a container's port.
type PortBinding struct {
	Proto         string // tcp, udp, sctp
	ContainerPort uint16
	HostIP        netip.Addr // invalid = all addresses, both families
	HostPort      uint16     // 0 = choose a free one
	HostPortEnd   uint16     // a range to choose from; 0 = none
}

// EndpointSpec is what a user asks of a container's place in a network.
type EndpointSpec struct {
	Aliases    []string
	IPv4, IPv6 netip.Addr
	MAC        string
	Links      []string
}

// Endpoint is a container's place in a network.
type Endpoint struct {
	Network   string // name
	NetworkID string // 64 hex
	ID        string // 64 hex
	IPv4      netip.Prefix
	IPv6      netip.Prefix
	Gateway   netip.Addr
	Gateway6  netip.Addr
	MAC       string // 02:42 and the IPv4 address by default
	Aliases   []string
	Interface string // in the container, eth0
	HostIf    string
}

// Network is one network as list and inspect show it.
type Network struct {
	ID        string
	Name      string
	Driver    string // bridge, host, null
	Created   time.Time
	Subnet    netip.Prefix
	Gateway   netip.Addr
	Internal  bool
	Labels    map[string]string
	Options   map[string]string
	Endpoints map[string]Endpoint // by container ID
}

// Counters are an interface's totals.
type Counters struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// AttachRequest asks for a network namespace with an endpoint in it.
type AttachRequest struct {
	ID        oci.ContainerID
	Mode      string // "bridge", "none", or a network's name or ID
	NetnsPath string // where the namespace is to be bound; made by Attach
	Spec      EndpointSpec
	Ports     []PortBinding
	Hostname  string
	Aliases   []string
}

// Attachment is what Attach made.
type Attachment struct {
	Endpoints map[string]Endpoint // by network name
	Ports     []PortBinding       // as bound: host address and port filled in, one entry a family
}
