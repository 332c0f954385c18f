package etc

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"ply/internal/errs"
	"ply/internal/network"
)

// host replaces a file of the host for one test; "" makes it missing.
func host(t *testing.T, path *string, content string) {
	t.Helper()
	old := *path
	t.Cleanup(func() { *path = old })
	*path = filepath.Join(t.TempDir(), "file")
	if content == "" {
		return
	}
	if err := os.WriteFile(*path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestResolv(t *testing.T) {
	for name, c := range map[string]struct {
		host, systemd string
		own, engine   Resolver
		hostNetwork   bool
		want          string
	}{
		"the host's": {
			host: "# comment\nnameserver 192.0.2.1\nsearch a.test b.test\noptions ndots:2\noptions edns0\n",
			want: "nameserver 192.0.2.1\nsearch a.test b.test\noptions ndots:2 edns0\n",
		},
		"without loopback servers": {host: "nameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver ::1\n", want: "nameserver 192.0.2.1\n"},
		"systemd's servers instead of its stub": {
			host: "nameserver 127.0.0.53\n", systemd: "nameserver 192.0.2.2\n", want: "nameserver 192.0.2.2\n",
		},
		"public servers where only loopback is left": {host: "nameserver 127.0.0.53\n", want: "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		"public servers without a file":              {want: "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		"loopback servers in the host's network":     {host: "nameserver 127.0.0.53\n", hostNetwork: true, want: "nameserver 127.0.0.53\n"},
		"the engine's before the host's": {
			host: "nameserver 192.0.2.1\nsearch a.test\n", engine: Resolver{Servers: []string{"192.0.2.3"}},
			want: "nameserver 192.0.2.3\nsearch a.test\n",
		},
		"the container's before the engine's": {
			host: "nameserver 192.0.2.1\n", engine: Resolver{Servers: []string{"192.0.2.3"}, Search: []string{"e.test"}},
			own:  Resolver{Servers: []string{"192.0.2.4", "192.0.2.5"}, Options: []string{"rotate"}},
			want: "nameserver 192.0.2.4\nnameserver 192.0.2.5\nsearch e.test\noptions rotate\n",
		},
		"a dot asks for no search list": {
			host: "nameserver 192.0.2.1\nsearch a.test\n", own: Resolver{Search: []string{"."}}, want: "nameserver 192.0.2.1\n",
		},
	} {
		host(t, &hostResolv, c.host)
		host(t, &systemdResolv, c.systemd)
		if got := string(Resolv(c.own, c.engine, "", c.hostNetwork)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestHosts(t *testing.T) {
	host(t, &hostHosts, "192.0.2.9 host")
	two := map[string]network.Endpoint{
		"b": {Network: "b", IPv4: netip.MustParsePrefix("10.2.0.2/16"), IPv6: netip.MustParsePrefix("fd00::2/64"), Gateway: netip.MustParseAddr("10.2.0.1")},
		"a": {Network: "a", IPv4: netip.MustParsePrefix("10.1.0.2/16")},
	}
	for name, c := range map[string]struct {
		o    HostsOptions
		want string
	}{
		"no network": {HostsOptions{Hostname: "me"}, ownHosts},
		"host name with dots": {
			HostsOptions{Hostname: "foo.bar.baz", Endpoints: map[string]network.Endpoint{"a": two["a"]}}, ownHosts + "10.1.0.2\tfoo.bar.baz foo\n",
		},
		"two networks": {
			HostsOptions{Hostname: "me", Endpoints: two}, ownHosts + "10.1.0.2\tme\n10.2.0.2\tme\nfd00::2\tme\n",
		},
		"domain name": {
			HostsOptions{Hostname: "me", Domainname: "d.test", Endpoints: map[string]network.Endpoint{"a": two["a"]}}, ownHosts + "10.1.0.2\tme.d.test me\n",
		},
		"extra hosts": {
			HostsOptions{Extra: []string{"x:192.0.2.1", "y=[2001:db8::1]", "gw:host-gateway"}, Endpoints: two},
			ownHosts + "192.0.2.1\tx\n2001:db8::1\ty\n10.2.0.1\tgw\n",
		},
		"set gateway":        {HostsOptions{Extra: []string{"gw:host-gateway"}, Gateways: []string{"192.0.2.7", "2001:db8::7"}, Endpoints: two}, ownHosts + "192.0.2.7\tgw\n2001:db8::7\tgw\n"},
		"the host's network": {HostsOptions{HostNetwork: true, Extra: []string{"x:192.0.2.1"}, Hostname: "me"}, "192.0.2.9 host\n192.0.2.1\tx\n"},
	} {
		got, err := Hosts(c.o)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q %v, want %q", name, got, err, c.want)
		}
	}
	if _, err := Hosts(HostsOptions{Extra: []string{"gw:host-gateway"}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("host-gateway without a gateway: %v", err)
	}
}

// Write replaces a file and does not write through a link.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "hosts"), filepath.Join(dir, "link")
	for _, s := range []string{"long content\n", "short\n"} {
		if err := Write(file, []byte(s)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(file); err != nil || string(b) != s {
			t.Errorf("file has %q %v, want %q", b, err, s)
		}
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := Write(link, []byte("x")); err == nil {
		t.Error("a link was followed")
	}
}
