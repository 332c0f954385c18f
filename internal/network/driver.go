package network

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"

	"ply/internal/errs"
	"ply/internal/network/proxy"
	"ply/internal/oci"
)

// Driver makes networks of one kind on this host. The Service keeps names, records, addresses and endpoints; a driver
// makes what they need on the host: interfaces, rules, sockets. Implementations are directories beside
// network/bridge. Safe for concurrent use.
type Driver interface {
	// Configure reads the options of a network that a user creates into c, whose pools and flags are set. It changes nothing on
	// the host. The error's class is errs.Invalid for an option that the driver does not have.
	Configure(c *Config, options map[string]string) error

	// Up makes the network on this host, or takes over what an earlier engine made of it. With inUse, containers are
	// connected: what they use must keep working. The Service calls Restored when it has told all of them.
	Up(ctx context.Context, c Config, inUse bool) (Segment, error)

	// Restored is called once, after the networks and containers of an earlier engine were handed over.
	Restored(ctx context.Context) error
}

// TakenError reports that a subnet overlaps that of a network of another engine on this host. Its class is errs.Conflict.
type TakenError struct {
	Subnet, Other netip.Prefix
	Interface     string // of the other network
	Owner         string // the other engine, in words
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("subnet %s overlaps %s, which is the subnet of %s, a bridge of the engine of %s", e.Subnet, e.Other, e.Interface, e.Owner)
}

// Is reports whether target is the error's class.
func (e *TakenError) Is(target error) bool { return target == errs.Conflict }

// PortInUseError reports that a port of the host is taken. Its class is errs.Conflict.
type PortInUseError struct {
	Binding   PortBinding     // with the address and the port that are taken
	Container oci.ContainerID // that has the port; "" when none of this engine has it
	Name      string          // of the container; the consumer of the Service can set it
	Process   string          // that has the port, in words; "" when it is not known
}

func (e *PortInUseError) Error() string {
	text := fmt.Sprintf("Bind for %s failed: port is already allocated", netip.AddrPortFrom(e.Binding.HostIP, e.Binding.HostPort))
	switch {
	case e.Container != "":
		text = fmt.Sprintf("%s: container %s has it", text, cmp.Or(e.Name, e.Container.Short()))
	case e.Process != "":
		text = fmt.Sprintf("%s: %s has it", text, e.Process)
	}
	return text + ". Choose another host port, or stop what listens there."
}

// Is reports whether target is the error's class.
func (e *PortInUseError) Is(target error) bool { return target == errs.Conflict }

// Publisher is a Segment that keeps published ports with sockets on the host.
type Publisher interface {
	// HandOver calls take with the published ports of a connection and with the sockets of those that take has not got yet, and closes its own descriptors of
	// these. take closes the sockets. If the error's class is errs.Unimplemented, the Publisher carries the ports itself; that is no error. It sets c.Handed.
	HandOver(c *Connection, take func(list []proxy.Port, sockets []*os.File) error) error
}

// Linker is a Segment that keeps containers apart and opens ports between those that are linked.
type Linker interface {
	// Relink makes c.Linked the containers whose exposed ports are open to c, which is connected.
	Relink(ctx context.Context, c Connection) error
}

// Sweeper is a Driver that finds on this host again what it has made there: interfaces of containers, bridges, parents.
type Sweeper interface {
	// Sweep removes the interfaces of containers for which left returns true, with the ID of the network and the name on the host: an earlier engine was killed before
	// it recorded the connection, or after it forgot it. For the same reason it removes the interfaces of networks that this engine made, that have nothing attached and for which
	// orphan returns true. The Service calls it before any other method.
	Sweep(ctx context.Context, left func(network, hostIf string) bool, orphan func(hostIf string) bool) error
}

// Segment is one network as its driver made it on this host. Safe for concurrent use; the Service serialises the calls
// for one container.
type Segment interface {
	// Name returns the name of the network's interface on the host; "" when it has none.
	Name() string

	// Gateways returns the addresses of the gateways with the lengths of the subnets, first that of IPv4. One is invalid when the
	// network has no addresses of that family, and it is the address of the subnet when the family has no gateway. Without any, its
	// endpoints get no addresses, and no ports are published.
	Gateways() (v4, v6 netip.Prefix)

	// Connect makes the container's interface in the namespace at c.Netns. The addresses of the endpoint and the name of the interface are
	// set; Connect fills in the MAC address and the name of the interface on the host. With c.Default it does what Promote does, too. After an
	// error the Service calls Disconnect. The error's class is errs.Conflict when a host port is in use.
	Connect(ctx context.Context, c *Connection) error

	// Promote makes the endpoint the one through which the container reaches other networks and is reached: it sets the default
	// routes and publishes c.Ports. It sets c.Ports to the ports as bound, and c.Published. Demote undoes it.
	Promote(ctx context.Context, c *Connection) error
	Demote(ctx context.Context, c *Connection) error

	// Adopt takes over a container that an earlier engine connected.
	Adopt(ctx context.Context, c Connection) error

	// Disconnect undoes Connect or Adopt as far as it came, and logs what it cannot undo. It calls done once, perhaps
	// after it has returned, when the addresses may be used again.
	Disconnect(ctx context.Context, c Connection, done func())

	// Down removes the network from this host. No container is connected.
	Down(ctx context.Context) error

	// Close waits for background work and closes what this process needs for the network. Containers keep their
	// network.
	Close() error
}

// Config says how a driver makes a network.
type Config struct {
	ID        string         // of the network
	Bridge    string         // name of the host's interface; "" = the driver chooses one, "none" = the network is switched off
	Address   netip.Prefix   // the gateway's address with the length of the subnet; invalid = from the first free one of Pools
	Address6  netip.Prefix   // the same for IPv6; invalid = the network has none
	Pools     []netip.Prefix // where the subnet comes from if Address is invalid; nil = ipam.DefaultPools
	Fixed     netip.Prefix   // containers get their addresses from here; invalid = from the whole subnet
	Fixed6    netip.Prefix
	Reserved  []netip.Addr // never given to containers
	NoIPv4    bool         // containers get no IPv4 addresses
	MTU       int          // 0 = 1500
	NoICC     bool         // containers may not connect to each other
	NoMasq    bool         // connections to other networks keep the container's address
	NoMasq6   bool
	Source    netip.Addr // address of the host with which connections to other networks leave; invalid = that of the interface by which they leave
	Source6   netip.Addr
	Internal  bool       // nothing passes between the network and others
	Open      bool       // other networks may connect by IPv4 to ports that are not published
	Open6     bool       // the same by IPv6
	Direct    bool       // other networks may connect by IPv4 to published ports at the containers' own addresses
	Direct6   bool       // the same by IPv6
	Isolated  bool       // the host has no IPv4 address in the network, which is internal, and takes no packets from it; Address may be that of the subnet: there is no gateway
	Isolated6 bool       // the same for IPv6
	Inhibit   bool       // the driver does not give the gateway's IPv4 address to the host's interface; someone else may
	Trusted   []string   // interfaces of the host through which others may connect to published ports at the containers' own addresses
	HostIP    netip.Addr // where ports are published by default; invalid = as the driver's options say
	IfPrefix  string     // of interfaces in containers; "" = eth

	// What follows is of macvlan and ipvlan.
	Parent string // interface of the host
	Mode   string
	Flag   string
}

// Connection is one container on a network. It is also the content of a file in Options.StateDir, so its JSON names
// must not change.
type Connection struct {
	Container oci.ContainerID `json:"container"`
	Netns     string          `json:"netns"` // path at which the namespace is bound
	Endpoint  Endpoint        `json:"endpoint"`
	Ports     []PortBinding   `json:"ports,omitempty"`
	Published bool            `json:"published,omitempty"` // the ports are in the kernel's rules
	Handed    bool            `json:"handed,omitempty"`    // the container's shim has the sockets of the ports

	Default  bool              `json:"default,omitempty"`  // the container's default route goes through the endpoint
	Making   bool              `json:"making,omitempty"`   // the interface is about to be made, in Netns and with the name that Endpoint has
	Moving   bool              `json:"moving,omitempty"`   // the engine takes the default route from it, or gives it back
	Priority int               `json:"priority,omitempty"` // as in EndpointSpec
	Names    []string          `json:"names,omitempty"`    // that the network's containers know it by
	Links    map[string]string `json:"links,omitempty"`    // names of the container's own, by alias
	Sysctls  map[string]string `json:"sysctls,omitempty"`  // of the interface: ipv4/conf/IFNAME/forwarding, by name below /proc/sys/net

	Linked  []oci.ContainerID `json:"linked,omitempty"` // as in EndpointRequest, on networks with NoICC
	Exposed []PortRange       `json:"exposed,omitempty"`
}

// null is the driver of the network "none": its containers have a namespace with the interface lo only.
type null struct{}

func (null) Configure(*Config, map[string]string) error {
	return errs.New(errs.Forbidden, "only one instance of \"null\" network is allowed")
}
func (null) Up(context.Context, Config, bool) (Segment, error)       { return null{}, nil }
func (null) Restored(context.Context) error                          { return nil }
func (null) Name() string                                            { return "" }
func (null) Gateways() (v4, v6 netip.Prefix)                         { return }
func (null) Connect(context.Context, *Connection) error              { return nil }
func (null) Promote(context.Context, *Connection) error              { return nil }
func (null) Demote(context.Context, *Connection) error               { return nil }
func (null) Adopt(context.Context, Connection) error                 { return nil }
func (null) Disconnect(_ context.Context, _ Connection, done func()) { done() }
func (null) Down(context.Context) error                              { return nil }
func (null) Close() error                                            { return nil }
