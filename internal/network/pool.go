package network

import (
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"

	"ply/internal/errs"
)

// DefaultPools are the subnets tried for the default bridge, in docker's order.
func DefaultPools() []netip.Prefix {
	var pools []netip.Prefix
	for b := 17; b <= 31; b++ {
		pools = append(pools, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(b), 0, 0}), 16))
	}
	for c := 0; c < 256; c += 16 {
		pools = append(pools, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(c), 0}), 20))
	}
	return pools
}

// freePool gives the first pool that no route or address of the host overlaps.
func freePool(pools []netip.Prefix) (netip.Prefix, error) {
	var taken []netip.Prefix
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, errs.New(errs.Internal, "network: list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP == nil {
			continue
		}
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			ones, _ := r.Dst.Mask.Size()
			if ones > 0 { // the default route overlaps everything and hides nothing
				taken = append(taken, netip.PrefixFrom(ip, ones))
			}
		}
	}
next:
	for _, p := range pools {
		for _, t := range taken {
			if p.Overlaps(t) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, errs.New(errs.Exhausted, "network: every address pool overlaps a network of this host").
		WithHint("Set \"bip\" or \"default-address-pools\" in daemon.json to a free range.")
}

// ipam hands out the addresses of one subnet, one after the other, so that an address that was just given back is not
// the next one given: peers may still hold its MAC. Safe for concurrent use.
type ipam struct {
	mu    sync.Mutex
	pool  netip.Prefix // where addresses come from
	net   netip.Prefix // the subnet they live in
	next  netip.Addr
	taken map[netip.Addr]bool
}

func newIPAM(subnet, pool netip.Prefix, reserved ...netip.Addr) *ipam {
	i := &ipam{pool: pool.Masked(), net: subnet.Masked(), taken: map[netip.Addr]bool{}}
	i.taken[i.net.Addr()] = true
	i.taken[lastAddr(i.net)] = true
	for _, a := range reserved {
		i.taken[a] = true
	}
	i.next = i.pool.Addr()
	return i
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	host := uint32(1)<<(32-p.Bits()) - 1
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) | host
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// take gives want when it is valid, else the next free address.
func (i *ipam) take(want netip.Addr) (netip.Addr, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if want.IsValid() {
		if !i.net.Contains(want) {
			return want, errs.New(errs.Invalid, "address %s is not in the network's subnet %s", want, i.net)
		}
		if i.taken[want] {
			return want, errs.New(errs.Conflict, "address %s is already in use", want)
		}
		i.taken[want] = true
		return want, nil
	}
	start := i.next
	for {
		a := i.next
		if i.next = a.Next(); !i.pool.Contains(i.next) {
			i.next = i.pool.Addr()
		}
		if !i.taken[a] {
			i.taken[a] = true
			return a, nil
		}
		if i.next == start {
			return netip.Addr{}, errs.New(errs.Exhausted, "no address is left in %s", i.pool)
		}
	}
}

func (i *ipam) giveBack(a netip.Addr) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.taken, a)
}

// Subnets cuts a pool into subnets of size bits, at most 256 of them.
func Subnets(pool netip.Prefix, size int) []netip.Prefix {
	var out []netip.Prefix
	a := pool.Masked().Addr()
	for len(out) < 256 && a.IsValid() && pool.Contains(a) {
		p := netip.PrefixFrom(a, size)
		out = append(out, p)
		a = lastAddr(p).Next()
	}
	return out
}
