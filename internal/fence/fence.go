// Package fence opens connections to hosts whose names come from strangers: registries, token servers, web servers that a Dockerfile names. It
// resolves each name itself and checks every address before it connects. It also reads how a registry wants its clients to log in (Challenges), and
// decides whether its token server may get their credentials (Realms).
//
// Invariant: the address that was checked is the one that is connected to, so an answer of DNS that changes leads nowhere else.
package fence

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"ply/internal/errs"
)

// metadata has the addresses of the metadata services of clouds, which give the credentials of the machine to anyone who asks.
var metadata = map[netip.Addr]bool{
	netip.MustParseAddr("169.254.169.254"): true,
	netip.MustParseAddr("fd00:ec2::254"):   true,
	netip.MustParseAddr("100.100.100.200"): true,
	netip.MustParseAddr("168.63.129.16"):   true,
}

// Refused reports whether no name of a stranger may lead to an address: it is link-local, multicast, unspecified, or that of a metadata service.
func Refused(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	return ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || metadata[ip]
}

// Check is a Dialer's check: it refuses the addresses of Refused.
func Check(host string, ip netip.Addr) error {
	if Refused(ip) {
		return errs.New(errs.Forbidden, "%s is at %s, a link-local address or that of a metadata service, which no build may connect to", host, ip)
	}
	return nil
}

// Dialer connects to addresses that pass a check.
type Dialer struct {
	Timeout time.Duration // of the whole dial; required
	Check   func(host string, ip netip.Addr) error
	Target  string // when it is not "", every other host is a proxy, which is not checked

	// Lookup and Connect replace the system's; nil = the system's.
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	Connect func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Dial connects to the first address of a host that passes the check and answers.
func (d *Dialer) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ips, err := d.Resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	var all error
	for i, ip := range ips {
		if err := d.Check(host, ip); err != nil && (d.Target == "" || d.Target == host) {
			all = errors.Join(all, err)
			continue
		}
		// Leave time for the next addresses.
		share, cancel := context.WithTimeout(ctx, d.Timeout/time.Duration(min(3, len(ips)-i)))
		conn, err := d.connect(share, network, net.JoinHostPort(ip.String(), port))
		cancel()
		if err == nil {
			return conn, nil
		}
		all = errors.Join(all, err)
	}
	return nil, all
}

// Resolve returns the addresses of a host, which are not checked.
func (d *Dialer) Resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	lookup := d.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	ips, err := lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	if len(ips) == 0 {
		return nil, &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, nil
}

func (d *Dialer) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.Connect != nil {
		return d.Connect(ctx, network, addr)
	}
	return (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext(ctx, network, addr)
}
