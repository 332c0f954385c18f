package run

import (
	"strings"

	"github.com/spf13/pflag"

	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// networkFlags are the flags that several endpoints or the first one are made from.
type networkFlags struct {
	networks           opts.Networks
	aliases, linkLocal opts.List
	ip, ip6            string
}

// addNetwork defines the flags of networks, names and ports.
func (r *runFlags) addNetwork(f *pflag.FlagSet) {
	h, n := &r.host, &networkFlags{}
	listVar(f, &h.ExtraHosts, "add-host", "Add a custom host-to-IP mapping (host:ip)", opts.ExtraHost)
	listVar(f, &h.DNS, "dns", "Set custom DNS servers", opts.IP)
	listVar(f, &h.DNSOptions, "dns-option", "Set DNS options", nil)
	hiddenAlias(f, "dns-opt", "dns-option")
	listVar(f, &h.DNSSearch, "dns-search", "Set custom DNS search domains", nil)
	listVar(f, &h.Links, "link", "Add link to another container", opts.Link)
	f.BoolVarP(&h.PublishAllPorts, "publish-all", "P", false, "Publish all exposed ports to random ports")

	f.Var(&n.networks, "network", "Connect a container to a network")
	hiddenAlias(f, "net", "network")
	f.Var(&n.aliases, "network-alias", "Add network-scoped alias for the container")
	hiddenAlias(f, "net-alias", "network-alias")
	f.Var(&n.linkLocal, "link-local-ip", "Container IPv4/IPv6 link-local addresses")
	f.StringVar(&n.ip, "ip", "", "IPv4 address (e.g., 172.30.100.104)")
	f.StringVar(&n.ip6, "ip6", "", "IPv6 address (e.g., 2001:db8::33)")
	f.StringVar(&r.mac, "mac-address", "", "Container MAC address (e.g., 92:d0:c6:0a:29:33)")
	r.then(func() error { return r.endpoints(n) })

	var expose, publish opts.List
	f.Var(&expose, "expose", "Expose a port or a range of ports")
	f.VarP(&publish, "publish", "p", "Publish a container's port(s) to the host")
	r.then(func() (err error) {
		r.cfg.ExposedPorts, h.PortBindings, err = opts.Ports(publish.Values, expose.Values)
		return err
	})
}

// hiddenAlias defines a flag of docker's past that stands for another.
func hiddenAlias(f *pflag.FlagSet, alias, name string) {
	f.Var(f.Lookup(name).Value, alias, f.Lookup(name).Usage)
	f.Lookup(alias).Hidden = true
}

// endpoints fills in the networks; the first one is the container's mode and takes --ip, --network-alias, ….
func (r *runFlags) endpoints(flags *networkFlags) error {
	r.nets = map[string]*wire.EndpointSettings{}
	all := flags.networks.List
	if len(all) == 0 {
		all = []opts.Network{{Name: "default"}}
	}
	if len(all) > 1 {
		for _, n := range all {
			if n.Name == "host" || n.Name == "none" || strings.HasPrefix(n.Name, "container:") {
				return errs.New(errs.Invalid, "conflicting options: cannot attach both user-defined and non-user-defined network-modes")
			}
		}
	}
	r.host.NetworkMode = all[0].Name
	if err := r.mergeFirst(&all[0], flags); err != nil {
		return err
	}
	for i, n := range all {
		ep := &wire.EndpointSettings{Aliases: n.Aliases, DriverOpts: n.DriverOpts, MacAddress: n.MAC}
		if n.GwPriority != 0 {
			ep.GwPriority = &n.GwPriority
		}
		if n.IPv4 != "" || n.IPv6 != "" || len(n.LinkLocalIPs) > 0 {
			ep.IPAMConfig = &wire.EndpointIPAM{IPv4Address: n.IPv4, IPv6Address: n.IPv6, LinkLocalIPs: n.LinkLocalIPs}
		}
		if i == 0 && len(r.host.Links) > 0 && !predefined(n.Name) {
			ep.Links = r.host.Links
		}
		if _, twice := r.nets[n.Name]; twice {
			return errs.New(errs.Invalid, "network %q is specified multiple times", n.Name)
		}
		r.nets[n.Name] = ep
	}
	return nil
}

func predefined(mode string) bool {
	switch mode {
	case "default", "bridge", "host", "none":
		return true
	}
	return strings.HasPrefix(mode, "container:")
}

// mergeFirst folds the single-network flags into the first network.
func (r *runFlags) mergeFirst(n *opts.Network, flags *networkFlags) error {
	if len(n.Aliases) > 0 && len(flags.aliases.Values) > 0 {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --network-alias and per-network alias")
	}
	if n.IPv4 != "" && flags.ip != "" || n.IPv6 != "" && flags.ip6 != "" {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --ip and per-network IP address")
	}
	if n.MAC != "" && r.mac != "" {
		return errs.New(errs.Invalid, "conflicting options: cannot specify both --mac-address and per-network MAC address")
	}
	n.Aliases = append(n.Aliases, flags.aliases.Values...)
	n.LinkLocalIPs = append(n.LinkLocalIPs, flags.linkLocal.Values...)
	if n.IPv4 == "" {
		n.IPv4 = flags.ip
	}
	if n.IPv6 == "" {
		n.IPv6 = flags.ip6
	}
	if n.MAC == "" {
		n.MAC = r.mac
	}
	return nil
}
