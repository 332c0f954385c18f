// Package network gives containers their network: a namespace, an interface with an address, published ports.
//
// The Service keeps the networks and their endpoints, allocates addresses, and decides which endpoint of a container provides its default route; a Driver
// per kind of network makes what they need on the host. The default network is the bridge ply0, or the next one that no other engine has, on the
// first free one of Docker's address pools.
//
// The packages below stand in this order: changes (what others remove), ipam (addresses), names (the tables of names) and nft know nothing of the others; namespace configures interfaces
// in containers; resolver answers for containers out of names, in their shims; network imports them; ports (sockets on host ports) and rules (the
// engine's nftables table) import network, and bridge imports both; vlan has the drivers macvlan and ipvlan. The engine hands the drivers to the Service.
package network

import (
	"net/netip"
	"time"

	"ply/internal/oci"
)

// PortBinding publishes a container's port. Containers store it, so its JSON names must not change.
type PortBinding struct {
	Proto         string     `json:"Proto"` // tcp, udp, sctp
	ContainerPort uint16     `json:"ContainerPort"`
	HostIP        netip.Addr `json:"HostIP"`      // invalid = all addresses of both families
	HostPort      uint16     `json:"HostPort"`    // 0 = choose a free one
	HostPortEnd   uint16     `json:"HostPortEnd"` // last port of a range to choose from; 0 = no range

	// Routed says that the network leads others to the container's own address: nothing of the host is bound. The host's address and port are those that
	// were asked for; another network of the container may bind them.
	Routed bool `json:"Routed,omitempty"`
}

// PortRange is ports of a container. Connections store it, so its JSON names must not change.
type PortRange struct {
	Proto string `json:"proto"` // tcp, udp, sctp
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// EndpointSpec is what a user asks of a container's endpoint in a network. Containers store it, so its JSON names must
// not change.
type EndpointSpec struct {
	Aliases []string   `json:"Aliases"`
	IPv4    netip.Addr `json:"IPv4"`
	IPv6    netip.Addr `json:"IPv6"`
	MAC     string     `json:"MAC"`
	Links   []string   `json:"Links"`

	Priority   int               `json:"Priority,omitempty"` // the endpoint with the highest one provides the default route
	LinkLocal  []netip.Addr      `json:"LinkLocal,omitempty"`
	DriverOpts map[string]string `json:"DriverOpts,omitempty"`
}

// Endpoint is a container's interface and addresses in a network. Containers store it, so its JSON names must not
// change.
type Endpoint struct {
	Network   string       `json:"Network"`   // name
	NetworkID string       `json:"NetworkID"` // 64 hex digits
	ID        string       `json:"ID"`        // 64 hex digits
	IPv4      netip.Prefix `json:"IPv4"`
	IPv6      netip.Prefix `json:"IPv6"`
	Gateway   netip.Addr   `json:"Gateway"`
	Gateway6  netip.Addr   `json:"Gateway6"`
	MAC       string       `json:"MAC"` // by default 02:42 and the bytes of the IPv4 address
	Aliases   []string     `json:"Aliases"`
	Interface string       `json:"Interface"` // in the container, eth0
	HostIf    string       `json:"HostIf"`    // on the host

	LinkLocal []netip.Addr `json:"LinkLocal,omitempty"`
}

// Network is one network as list and inspect show it.
type Network struct {
	ID         string
	Name       string
	Driver     string // bridge, macvlan, ipvlan, host, null
	Created    time.Time
	BuiltIn    bool
	IPv4, IPv6 bool   // containers get addresses of the family
	Pools      []Pool // empty until the network is made on this host, and when it has no addresses
	IPAM       map[string]string
	Internal   bool
	Attachable bool
	Labels     map[string]string
	Options    map[string]string
	Endpoints  map[string]Endpoint // by container ID
	Damaged    error               // why nothing but the name is known: its record is damaged; nil = it is whole
}

// Pool is a subnet of a network. A network's record stores it, so its JSON names must not change.
type Pool struct {
	Subnet  netip.Prefix          `json:"subnet"`
	Range   netip.Prefix          `json:"range,omitzero"`   // containers get their addresses from here; invalid = from the whole subnet
	Gateway netip.Addr            `json:"gateway,omitzero"` // invalid until it is chosen
	Aux     map[string]netip.Addr `json:"aux,omitempty"`    // addresses of others, by name
}

// Counters are an interface's totals.
type Counters struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// AttachRequest asks for a network namespace with endpoints in it.
type AttachRequest struct {
	ID        oci.ContainerID
	NetnsPath string            // where Attach binds the namespace that it makes
	Endpoints []EndpointRequest // the first one has the first interface
	Ports     []PortBinding
}

// EndpointRequest asks for an endpoint in a network.
type EndpointRequest struct {
	Network string // name or ID; "bridge" and "none" are always there
	Spec    EndpointSpec
	Names   []string // of the container in the network, without spec.Aliases

	// On a network that keeps its containers apart, each container of Linked opens its Exposed to this one, while both are connected.
	Linked  []oci.ContainerID
	Exposed []PortRange // do not overlap

	Ports []PortBinding // for Connect: published if no endpoint of the container provides a default route
}

// Attachment is how a container is attached.
type Attachment struct {
	Endpoints map[string]Endpoint // by network name
	Ports     []PortBinding       // as bound: one binding per family, with host address and port
	Resolver  bool                // names of its networks are to be resolved for it
	Outside   bool                // it reaches other networks
}
