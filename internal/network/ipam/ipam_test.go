package ipam

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func TestAllocateEveryAddressOnce(t *testing.T) {
	a := NewAllocator(prefix("10.0.0.1/29"), prefix("10.0.0.0/29"), addr("10.0.0.1"))
	var got []string
	for {
		next, err := a.Allocate(netip.Addr{})
		if err != nil {
			if !errors.Is(err, errs.Exhausted) {
				t.Error(err)
			}
			break
		}
		got = append(got, next.String())
	}
	if want := "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"; strings.Join(got, " ") != want {
		t.Errorf("addresses = %v, want %s", got, want)
	}
	a.Free(addr("10.0.0.3"))
	if got, err := a.Allocate(addr("10.0.0.4")); !errors.Is(err, errs.Conflict) {
		t.Errorf("Allocate of an address in use = %v, %v", got, err)
	}
	if _, err := a.Allocate(addr("10.9.0.4")); !errors.Is(err, errs.Invalid) {
		t.Errorf("Allocate outside the subnet: %v", err)
	}
	if got, err := a.Allocate(netip.Addr{}); err != nil || got.String() != "10.0.0.3" {
		t.Errorf("Allocate after Free = %v, %v", got, err)
	}
}

func TestAllocateFromPartOfTheSubnet(t *testing.T) {
	a := NewAllocator(prefix("10.0.0.1/24"), prefix("10.0.0.128/31"), addr("10.0.0.1"))
	for _, want := range []string{"10.0.0.128", "10.0.0.129"} {
		if got, err := a.Allocate(netip.Addr{}); err != nil || got.String() != want {
			t.Errorf("Allocate = %v, %v, want %s", got, err, want)
		}
	}
	if got, err := a.Allocate(netip.Addr{}); !errors.Is(err, errs.Exhausted) {
		t.Errorf("Allocate from an exhausted pool = %v, %v", got, err)
	}
	if _, err := a.Allocate(addr("10.0.0.9")); err != nil {
		t.Errorf("Allocate of a chosen address of the subnet: %v", err)
	}
}

func TestFreedAddressIsNotAllocatedNext(t *testing.T) {
	a := NewAllocator(prefix("10.0.0.1/24"), prefix("10.0.0.0/24"), addr("10.0.0.1"))
	first, err := a.Allocate(netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	a.Free(first)
	if next, err := a.Allocate(netip.Addr{}); err != nil || next == first {
		t.Errorf("Allocate after Free = %v, %v, want another address than %v", next, err, first)
	}
}

func TestFreePool(t *testing.T) {
	pools := []netip.Prefix{prefix("172.17.0.0/16"), prefix("172.18.0.0/16")}
	if got, err := FreePool(pools, []netip.Prefix{prefix("172.17.5.0/24")}); err != nil || got != pools[1] {
		t.Errorf("FreePool = %v, %v, want %v", got, err, pools[1])
	}
	if got, err := FreePool(pools, []netip.Prefix{prefix("172.16.0.0/12")}); !errors.Is(err, errs.Exhausted) {
		t.Errorf("FreePool without a free pool = %v, %v", got, err)
	}
}

func TestSubnets(t *testing.T) {
	got := Subnets(prefix("10.0.0.0/22"), 24)
	if len(got) != 4 || got[3] != prefix("10.0.3.0/24") {
		t.Errorf("Subnets = %v", got)
	}
	if got := Subnets(prefix("10.0.0.0/8"), 24); len(got) != maxSubnets {
		t.Errorf("Subnets of a large pool returns %d", len(got))
	}
	if got := Subnets(prefix("255.255.255.0/24"), 25); len(got) != 2 {
		t.Errorf("Subnets at the end of the address space = %v", got)
	}
}

// Who asks for an address that is about to be free gets it; who asks for any address gets another, and waits only when there is no other.
func TestLeavingAddress(t *testing.T) {
	subnet := netip.MustParsePrefix("10.0.0.0/29")
	a := NewAllocator(subnet, subnet)
	own, err := a.Allocate(netip.MustParseAddr("10.0.0.3"))
	if err != nil {
		t.Fatal(err)
	}
	a.Leave(own)
	for range 5 {
		if other, err := a.AllocateSoon(t.Context(), netip.Addr{}); err != nil || other == own {
			t.Errorf("any address: %s, %v", other, err)
		}
	}
	for _, want := range []netip.Addr{own, {}} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if got, err := a.AllocateSoon(ctx, want); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before the address was free: %s, %v", got, err)
		}
		cancel()
		time.AfterFunc(20*time.Millisecond, func() { a.Free(own) })
		if again, err := a.AllocateSoon(t.Context(), want); err != nil || again != own {
			t.Errorf("%s, %v", again, err)
		}
		if want.IsValid() {
			a.Leave(own)
		}
	}
	if _, err := a.AllocateSoon(t.Context(), own); !errors.Is(err, errs.Conflict) { // it stays: nothing to wait for
		t.Error(err)
	}
	if _, err := a.AllocateSoon(t.Context(), netip.Addr{}); !errors.Is(err, errs.Exhausted) {
		t.Error(err)
	}
}
