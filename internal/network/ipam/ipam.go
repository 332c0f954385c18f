// Package ipam manages addresses: which subnet a network gets, and which address of it an endpoint gets.
//
// The package touches neither the host nor the disk. The caller says which subnets the host uses, and allocates the
// addresses of restored endpoints again.
package ipam

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"

	"ply/internal/errs"
)

// DefaultPools returns the subnets to try for the default bridge, in Docker's order.
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

// maxSubnets is how many subnets one pool is divided into at most.
const maxSubnets = 256

// Subnets divides a pool into subnets with prefixes of the given length and returns the first 256 of them.
func Subnets(pool netip.Prefix, bits int) []netip.Prefix {
	var out []netip.Prefix
	a := pool.Masked().Addr()
	for len(out) < maxSubnets && a.IsValid() && pool.Contains(a) {
		p := netip.PrefixFrom(a, bits)
		out = append(out, p)
		a = Broadcast(p).Next()
	}
	return out
}

// FreePool returns the first pool that overlaps none of the used subnets. The error's class is errs.Exhausted when
// there is none.
func FreePool(pools, used []netip.Prefix) (netip.Prefix, error) {
next:
	for _, p := range pools {
		for _, u := range used {
			if p.Overlaps(u) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, errs.New(errs.Exhausted, "network: every address pool overlaps a network of this host").
		WithHint("Set \"bip\" or \"default-address-pools\" in daemon.json to a free range.")
}

// FreeUniqueLocal returns the first /64 of a unique local prefix (RFC 4193) that overlaps none of the used subnets. The prefix follows from a name, so
// that two hosts have different ones.
func FreeUniqueLocal(name string, used []netip.Prefix) (netip.Prefix, error) {
	sum := sha256.Sum256([]byte(name))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], sum[:])
	var pools []netip.Prefix
	for n := range len(used) + maxSubnets {
		binary.BigEndian.PutUint16(a[6:8], uint16(n))
		pools = append(pools, netip.PrefixFrom(netip.AddrFrom16(a), 64))
	}
	return FreePool(pools, used)
}

// Broadcast returns the last address of an IPv4 subnet.
func Broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	var last [4]byte
	binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(b[:])|(uint32(1)<<(32-p.Bits())-1))
	return netip.AddrFrom4(last)
}

// Allocator allocates the addresses of one subnet in rising order. An address that was freed is not the next one to
// be allocated, because peers may still have its MAC address cached. Safe for concurrent use.
type Allocator struct {
	mu     sync.Mutex
	subnet netip.Prefix
	pool   netip.Prefix // the part of subnet to choose from
	next   netip.Addr
	used   map[netip.Addr]bool

	leaving map[netip.Addr]chan struct{} // closed when the address is free
}

// NewAllocator returns an allocator that chooses addresses from pool, which lies in subnet. The subnet's first
// address, the last one of an IPv4 subnet, and the reserved ones are never allocated.
func NewAllocator(subnet, pool netip.Prefix, reserved ...netip.Addr) *Allocator {
	a := &Allocator{subnet: subnet.Masked(), pool: pool.Masked(), used: map[netip.Addr]bool{}, leaving: map[netip.Addr]chan struct{}{}}
	if a.subnet.Bits() < a.subnet.Addr().BitLen()-1 {
		a.used[a.subnet.Addr()] = true
	}
	if a.subnet.Addr().Is4() && a.subnet.Bits() < 31 {
		a.used[Broadcast(a.subnet)] = true
	}
	for _, r := range reserved {
		a.used[r] = true
	}
	a.next = a.pool.Addr()
	return a
}

// Allocate returns want when it is valid, else the next unused address of the pool. The error's class is errs.Invalid
// for an address outside the subnet, errs.Conflict for one that is in use and errs.Exhausted when none is left.
func (a *Allocator) Allocate(want netip.Addr) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.allocate(want)
}

// AllocateSoon is Allocate that waits when only an address that is about to be free will do: the one that is wanted, or any when no other is left.
func (a *Allocator) AllocateSoon(ctx context.Context, want netip.Addr) (netip.Addr, error) {
	for {
		a.mu.Lock()
		addr, err := a.allocate(want)
		free := a.leaving[want]
		if !want.IsValid() {
			free = a.nextFree()
		}
		a.mu.Unlock()
		if err == nil || free == nil {
			return addr, err
		}
		select {
		case <-free:
		case <-ctx.Done():
			return addr, context.Cause(ctx)
		}
	}
}

// allocate is Allocate. The caller holds a.mu.
func (a *Allocator) allocate(want netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		if !a.subnet.Contains(want) {
			return want, errs.New(errs.Invalid, "address %s is not in the network's subnet %s", want, a.subnet)
		}
		if a.used[want] {
			return want, errs.New(errs.Conflict, "address %s is already in use", want)
		}
		a.used[want] = true
		return want, nil
	}
	start := a.next
	for {
		addr := a.next
		if a.next = addr.Next(); !a.pool.Contains(a.next) {
			a.next = a.pool.Addr()
		}
		if !a.used[addr] {
			a.used[addr] = true
			return addr, nil
		}
		if a.next == start {
			return netip.Addr{}, errs.New(errs.Exhausted, "no address is left in %s", a.pool)
		}
	}
}

// Leave says that an allocated address will be free soon: Free follows.
func (a *Allocator) Leave(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used[addr] && a.leaving[addr] == nil {
		a.leaving[addr] = make(chan struct{})
	}
}

// nextFree returns the channel of an address of the pool that is about to be free; nil = there is none. The caller holds a.mu.
func (a *Allocator) nextFree() chan struct{} {
	for addr, free := range a.leaving {
		if a.pool.Contains(addr) {
			return free
		}
	}
	return nil
}

// Free makes an allocated address available again.
func (a *Allocator) Free(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.used, addr)
	if free := a.leaving[addr]; free != nil {
		close(free)
		delete(a.leaving, addr)
	}
}
