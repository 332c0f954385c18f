package container

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
)

// Resolver files of the host; variables for tests.
var (
	hostResolv    = "/etc/resolv.conf"
	systemdResolv = "/run/systemd/resolve/resolv.conf"
	hostHosts     = "/etc/hosts"
)

// publicDNS are the resolvers of containers on a host whose only resolvers are on its loopback, as with docker.
var publicDNS = []string{"8.8.8.8", "8.8.4.4"}

const maxHostFile = 1 << 20

// hostname returns the container's names, or the host's where it shares the host's UTS namespace.
func (c *ctr) hostname() (name, domain string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name = c.rec.Spec.Hostname; name == "" {
		name, _ = os.Hostname()
	}
	return name, c.rec.Spec.Domainname
}

// writeHostFiles writes hosts, hostname and resolv.conf. Each start writes them again, so they need no fsync.
func writeHostFiles(c *ctr, p *prepared) error {
	if p.files != c {
		return nil // another container's files are used
	}
	c.mu.Lock()
	spec := c.rec.Spec
	c.mu.Unlock()
	hostname, domain := c.hostname()
	if domain != "" {
		hostname += "." + domain
	}
	resolv, err := resolvConf(&spec, &c.env.opts)
	if err != nil {
		return err
	}
	hosts, err := hostsFile(&spec, p, c.env.opts.HostGateway)
	if err != nil {
		return err
	}
	for path, data := range map[string][]byte{
		c.paths.hostname: []byte(hostname + "\n"), c.paths.resolv: resolv, c.paths.hosts: hosts,
	} {
		if err := writePlain(path, data); err != nil {
			return errs.New(errs.Internal, "container %s: %s: %w", c.id.Short(), filepath.Base(path), err)
		}
	}
	return nil
}

func writePlain(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		_ = f.Close() // the error of the write is returned
		return err
	}
	return f.Close()
}

// hostsFile returns /etc/hosts in docker's order: loopback names, --add-host, then the container's own addresses.
// gateway is the address of host-gateway; "" = the network's gateway.
func hostsFile(sp *spec.Spec, p *prepared, gateway string) ([]byte, error) {
	var b bytes.Buffer
	if sp.NetworkMode == "host" {
		data, err := durable.ReadFile(durable.OS, hostHosts, maxHostFile)
		if err == nil {
			b.Write(data)
			if n := len(data); n > 0 && data[n-1] != '\n' {
				b.WriteByte('\n')
			}
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n")
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, h := range sp.ExtraHosts {
		name, ip, _ := spec.CutHost(h)
		if ip == "host-gateway" {
			var err error
			if ip, err = hostGateway(p, gateway); err != nil {
				return nil, err
			}
		}
		fmt.Fprintf(&b, "%s\t%s\n", strings.Trim(ip, "[]"), name)
	}
	for _, e := range p.att.Endpoints {
		names := sp.Hostname
		if sp.Domainname != "" {
			names = sp.Hostname + "." + sp.Domainname + " " + sp.Hostname
		}
		for _, ip := range []netip.Prefix{e.IPv4, e.IPv6} {
			if ip.IsValid() && names != "" {
				fmt.Fprintf(&b, "%s\t%s\n", ip.Addr(), names)
			}
		}
	}
	return b.Bytes(), nil
}

func hostGateway(p *prepared, gateway string) (string, error) {
	if gateway != "" {
		return gateway, nil
	}
	for _, e := range p.att.Endpoints {
		if e.Gateway.IsValid() {
			return e.Gateway.String(), nil
		}
	}
	return "", invalid("unable to derive the IP value for host-gateway: the container's network has no gateway")
}

// resolvConf returns /etc/resolv.conf with the container's own resolvers, else the engine's, else the host's without
// those on the host's loopback.
func resolvConf(spec *spec.Spec, opts *Options) ([]byte, error) {
	host := readResolv(hostResolv)
	if spec.NetworkMode != "host" && len(host.servers) > 0 && len(notLoopback(host.servers)) == 0 {
		if alt := readResolv(systemdResolv); len(alt.servers) > 0 {
			host = alt
		}
	}
	servers, search, options := spec.DNS, spec.DNSSearch, spec.DNSOptions
	if len(servers) == 0 {
		servers = opts.DNS
	}
	if len(search) == 0 {
		search = opts.DNSSearch
	}
	if len(options) == 0 {
		options = opts.DNSOptions
	}
	if len(servers) == 0 {
		servers = host.servers
		if spec.NetworkMode != "host" {
			if servers = notLoopback(servers); len(servers) == 0 {
				servers = publicDNS
			}
		}
	}
	if len(search) == 0 {
		search = host.search
	}
	if len(options) == 0 {
		options = host.options
	}
	if len(search) == 1 && search[0] == "." {
		search = nil
	}
	var b bytes.Buffer
	for _, n := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes(), nil
}

type resolver struct{ servers, search, options []string }

func readResolv(path string) (r resolver) {
	data, err := durable.ReadFile(durable.OS, path, maxHostFile)
	if err != nil {
		return r // a host without the file has no resolvers
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.servers = append(r.servers, f[1])
		case "search", "domain":
			r.search = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

func notLoopback(servers []string) []string {
	var out []string
	for _, n := range servers {
		if a, err := netip.ParseAddr(n); err == nil && !a.IsLoopback() {
			out = append(out, n)
		}
	}
	return out
}
