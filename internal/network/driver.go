package network

import (
	"context"
	"net/netip"

	"ply/internal/oci"
)

// Driver makes networks of one kind on this host. The Service keeps names, records, addresses and endpoints; a driver
// makes what they need on the host: interfaces, rules, sockets. Implementations are directories beside
// network/bridge. Safe for concurrent use.
type Driver interface {
	// Up makes the network on this host, or takes over what an earlier engine made of it. With inUse, containers are
	// connected: what they use must keep working.
	Up(ctx context.Context, c Config, inUse bool) (Segment, error)
}

// Segment is one network as its driver made it on this host. Safe for concurrent use; the Service serialises the calls
// for one container.
type Segment interface {
	// Gateway returns the address of the gateway with the length of the subnet. It is invalid when the network has no
	// addresses; its endpoints then get none, and no ports are published.
	Gateway() netip.Prefix

	// Connect makes the container's interface in the namespace at c.Netns and publishes c.Ports. The addresses of the
	// endpoint are set; Connect fills in the MAC address and the names of the interfaces, sets c.Ports to the ports
	// as bound, and sets c.Published. After an error the Service calls Disconnect. The error's class is errs.Conflict
	// when a host port is in use.
	Connect(ctx context.Context, c *Connection) error

	// Adopt takes over a container that an earlier engine connected.
	Adopt(ctx context.Context, c Connection) error

	// Disconnect undoes Connect or Adopt as far as it came, and logs what it cannot undo. It calls done once, perhaps
	// after it has returned, when the address may be used again.
	Disconnect(ctx context.Context, c Connection, done func())

	// Down removes the network from this host. No container is connected.
	Down(ctx context.Context) error

	// Close waits for background work and closes what this process needs for the network. Containers keep their
	// network.
	Close() error
}

// Config says how a driver makes a network.
type Config struct {
	Bridge  string         // name of the host's interface; "none" = the network is switched off
	Address netip.Prefix   // the gateway's address with the length of the subnet; invalid = from the first free pool
	Pools   []netip.Prefix // nil = ipam.DefaultPools
	Fixed   netip.Prefix   // containers get their addresses from here; invalid = from the whole subnet
	MTU     int            // 0 = 1500
	NoICC   bool           // containers may not connect to each other
	NoMasq  bool           // connections to other networks keep the container's address
}

// Connection is one container on a network. It is also the content of a file in Options.StateDir, so its JSON names
// must not change.
type Connection struct {
	Container oci.ContainerID `json:"container"`
	Netns     string          `json:"netns"` // path at which the namespace is bound
	Endpoint  Endpoint        `json:"endpoint"`
	Ports     []PortBinding   `json:"ports,omitempty"`
	Published bool            `json:"published,omitempty"` // the ports are in the kernel's rules
}

// null is the driver of the network "none": its containers have a namespace with the interface lo only.
type null struct{}

func (null) Up(context.Context, Config, bool) (Segment, error)       { return null{}, nil }
func (null) Gateway() netip.Prefix                                   { return netip.Prefix{} }
func (null) Connect(context.Context, *Connection) error              { return nil }
func (null) Adopt(context.Context, Connection) error                 { return nil }
func (null) Disconnect(_ context.Context, _ Connection, done func()) { done() }
func (null) Down(context.Context) error                              { return nil }
func (null) Close() error                                            { return nil }
