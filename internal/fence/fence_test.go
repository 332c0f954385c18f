package fence

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"ply/internal/errs"
)

func TestRefused(t *testing.T) {
	for addr, want := range map[string]bool{
		"169.254.169.254": true, "169.254.1.1": true, "fe80::1": true, "fe80::1%eth0": true, "fd00:ec2::254": true, "100.100.100.200": true,
		"::ffff:169.254.169.254": true, "168.63.129.16": true, "0.0.0.0": true, "::": true, "224.0.0.1": true,
		"127.0.0.1": false, "10.0.0.1": false, "192.168.1.1": false, "8.8.8.8": false, "fd00:ec2::253": false, "100.100.100.201": false,
	} {
		if got := Refused(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: refused %v, want %v", addr, got, want)
		}
	}
}

// A name that resolves to a harmless and to a forbidden address leads to the harmless one; the address that was checked is the one that is connected to.
func TestDial(t *testing.T) {
	answers := map[string][]netip.Addr{
		"both.test": {netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("192.0.2.7")},
		"evil.test": {netip.MustParseAddr("::ffff:169.254.169.254")},
	}
	var went []string
	d := &Dialer{
		Timeout: time.Second, Check: Check,
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) { return answers[host], nil },
		Connect: func(_ context.Context, _, addr string) (net.Conn, error) {
			went = append(went, addr)
			a, b := net.Pipe()
			return a, b.Close()
		},
	}
	if c, err := d.Dial(t.Context(), "tcp", "both.test:80"); err != nil || c.Close() != nil {
		t.Fatal(err)
	}
	for _, addr := range []string{"evil.test:80", "169.254.169.254:80", "[fe80::1]:80"} {
		if _, err := d.Dial(t.Context(), "tcp", addr); !errors.Is(err, errs.Forbidden) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	var none *net.DNSError
	if _, err := d.Dial(t.Context(), "tcp", "none.test:80"); !errors.As(err, &none) {
		t.Errorf("a name without addresses: %v", err)
	}
	d.Target = "both.test"
	if c, err := d.Dial(t.Context(), "tcp", "169.254.0.1:3128"); err != nil || c.Close() != nil { // the proxy that the administrator chose
		t.Error(err)
	}
	if len(went) != 2 || went[0] != "192.0.2.7:80" || went[1] != "169.254.0.1:3128" {
		t.Errorf("connected to %v", went)
	}
}
