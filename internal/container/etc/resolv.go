package etc

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ply/internal/durable"
	"ply/internal/network/resolver"
)

// Resolver files of the host; variables for tests.
var (
	hostResolv    = "/etc/resolv.conf"
	systemdResolv = "/run/systemd/resolve/resolv.conf"
)

// publicDNS are the resolvers of containers on a host whose only resolvers are on its loopback, as with docker.
var publicDNS = []string{"8.8.8.8", "8.8.4.4"}

// Resolver is the content of a resolv.conf.
type Resolver struct{ Servers, Search, Options []string }

// Resolv returns /etc/resolv.conf. Each part comes from the first resolver that has it: the container's own, the
// engine's, then the host's, without the servers on the host's loopback unless the container has the host's network.
// file is the host's resolv.conf; "" = /etc/resolv.conf, or systemd-resolved's where that names only its stub.
func Resolv(own, engine Resolver, file string, hostNetwork bool) []byte {
	host := readResolver(cmp.Or(file, hostResolv))
	if file == "" && !hostNetwork && len(host.Servers) > 0 && len(notLoopback(host.Servers)) == 0 {
		if alt := readResolver(systemdResolv); len(alt.Servers) > 0 {
			host = alt
		}
	}
	if !hostNetwork {
		if host.Servers = notLoopback(host.Servers); len(host.Servers) == 0 {
			host.Servers = publicDNS
		}
	}
	return choose(own, engine, host).file()
}

// choose returns each part of the first resolver that has it.
func choose(own, engine, host Resolver) Resolver {
	r := Resolver{first(own.Servers, engine.Servers, host.Servers), first(own.Search, engine.Search, host.Search), first(own.Options, engine.Options, host.Options)}
	if len(r.Search) == 1 && r.Search[0] == "." {
		r.Search = nil // docker's way to ask for none
	}
	return r
}

// file returns the resolv.conf of a resolver.
func (r Resolver) file() []byte {
	var b bytes.Buffer
	for _, n := range r.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(r.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.Search, " "))
	}
	if len(r.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.Options, " "))
	}
	return b.Bytes()
}

// ResolvByShim returns the resolv.conf of a container for which a resolver at 127.0.0.11 answers, and the servers that the resolver asks: those of the first of own,
// engine and host that has any. inside says that they are to be asked from the container's namespace, because they are the container's own.
// file is the host's resolv.conf; "" = /etc/resolv.conf.
func ResolvByShim(own, engine Resolver, file string) (data []byte, servers []string, inside bool) {
	r := choose(own, engine, readResolver(cmp.Or(file, hostResolv)))
	servers, r.Servers = r.Servers, []string{resolver.Address.String()}
	if !slices.ContainsFunc(r.Options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		r.Options = append(slices.Clone(r.Options), "ndots:0") // names of containers have no dots
	}
	return r.file(), servers, len(own.Servers) > 0
}

// first returns the first list that is not empty.
func first(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// readResolver reads a resolv.conf. A host without the file has no resolvers.
func readResolver(path string) (r Resolver) {
	data, err := durable.ReadFile(durable.OS, path, maxHostFile)
	if err != nil {
		return r
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.Servers = append(r.Servers, f[1])
		case "search", "domain":
			r.Search = f[1:]
		case "options":
			r.Options = append(r.Options, f[1:]...)
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
