package etc

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/network"
)

var hostHosts = "/etc/hosts" // a variable for tests

const ownHosts = "127.0.0.1\tlocalhost\n" +
	"::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"

// HostsOptions of Hosts.
type HostsOptions struct {
	HostNetwork bool     // start with the host's own file
	Extra       []string // --add-host as written: name:address or name=address; the address may be host-gateway
	Gateways    []string // addresses of host-gateway; none = the gateway of the first endpoint that has one
	Hostname    string
	Domainname  string
	Endpoints   map[string]network.Endpoint // by network name
	Links       []Link
}

// Link is an entry for another container.
type Link struct {
	Addr  netip.Addr
	Names string // separated by blanks; "alias short-id name"
}

func (l Link) line() string { return fmt.Sprintf("%s\t%s\n", l.Addr, l.Names) }

// changing is held while a hosts file is changed: those of linked containers are changed by each other's starts.
var changing sync.Mutex

// SetLink puts the entry of a link in the place of the one whose names begin with prefix, in the hosts file of a running container, which may have changed
// it. An entry that the container removed is not added again.
func SetLink(path, prefix string, l Link) error {
	changing.Lock()
	defer changing.Unlock()
	data, err := durable.ReadFile(durable.OS, path, maxHostFile)
	if err != nil {
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		_, names, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if ok && (names == prefix || strings.HasPrefix(names, prefix+" ")) {
			line = l.line()
		}
		out.WriteString(line)
	}
	if out.String() == string(data) {
		return nil
	}
	return Write(path, []byte(out.String()))
}

// Hosts returns /etc/hosts in docker's order: loopback names, --add-host, then the container's own addresses.
// Errors: errs.Invalid when host-gateway has no address.
func Hosts(o HostsOptions) ([]byte, error) {
	var b bytes.Buffer
	if o.HostNetwork {
		data, err := durable.ReadFile(durable.OS, hostHosts, maxHostFile)
		if err == nil { // a host need not have the file
			b.Write(data)
			if n := len(data); n > 0 && data[n-1] != '\n' {
				b.WriteByte('\n')
			}
		}
	} else {
		b.WriteString(ownHosts)
	}
	for _, h := range o.Extra {
		name, ip, _ := spec.CutHost(h)
		addrs := []string{strings.Trim(ip, "[]")}
		if ip == "host-gateway" {
			var err error
			if addrs, err = o.gateways(); err != nil {
				return nil, err
			}
		}
		for _, addr := range addrs {
			fmt.Fprintf(&b, "%s\t%s\n", addr, name)
		}
	}
	for _, l := range o.Links {
		b.WriteString(l.line())
	}
	names := ownNames(o.Hostname, o.Domainname)
	for _, e := range o.endpoints() {
		b.WriteString(ownLines(e, names))
	}
	return b.Bytes(), nil
}

// ownNames returns the names of a container as its hosts file has them: the full one, and the part before its first dot.
func ownNames(hostname, domainname string) string {
	full := hostname
	if domainname != "" {
		full += "." + domainname
	}
	if short, _, ok := strings.Cut(full, "."); ok {
		return full + " " + short
	}
	return full
}

// ownLines returns the lines of one endpoint.
func ownLines(e network.Endpoint, names string) string {
	lines := ""
	for _, ip := range []netip.Prefix{e.IPv4, e.IPv6} {
		if ip.IsValid() && names != "" {
			lines += fmt.Sprintf("%s\t%s\n", ip.Addr(), names)
		}
	}
	return lines
}

// ChangeHosts changes the hosts file of a running container, which may have changed it too: it removes the lines of networks that the container left, and
// adds those of networks that it joined.
func ChangeHosts(path, hostname, domainname string, before, after map[string]network.Endpoint) error {
	changing.Lock()
	defer changing.Unlock()
	data, err := durable.ReadFile(durable.OS, path, maxHostFile)
	if err != nil {
		return err
	}
	names, text := ownNames(hostname, domainname), string(data)
	for n, e := range before {
		if _, stays := after[n]; !stays {
			for line := range strings.Lines(ownLines(e, names)) {
				text = strings.Replace(text, line, "", 1)
			}
		}
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	joined := HostsOptions{Endpoints: map[string]network.Endpoint{}}
	for n, e := range after {
		if _, was := before[n]; !was {
			joined.Endpoints[n] = e
		}
	}
	for _, e := range joined.endpoints() {
		text += ownLines(e, names)
	}
	return Write(path, []byte(text))
}

// endpoints returns the endpoints in the order of their networks' names.
func (o *HostsOptions) endpoints() []network.Endpoint {
	var out []network.Endpoint
	for _, e := range o.Endpoints {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b network.Endpoint) int { return strings.Compare(a.Network, b.Network) })
	return out
}

func (o *HostsOptions) gateways() ([]string, error) {
	if len(o.Gateways) > 0 {
		return o.Gateways, nil
	}
	for _, e := range o.endpoints() {
		if e.Gateway.IsValid() {
			return []string{e.Gateway.String()}, nil
		}
	}
	return nil, errs.New(errs.Invalid, "unable to derive the IP value for host-gateway: the container's network has no gateway")
}
