package bridge

import (
	"net/netip"
	"strconv"
	"strings"

	"ply/internal/errs"
	"ply/internal/network"
)

// Configure implements network.Driver. The options are those of Docker's bridge driver.
func (d *Driver) Configure(c *network.Config, options map[string]string) error {
	for name, value := range options {
		if err := option(c, name, value); err != nil {
			return err
		}
	}
	if (c.Isolated || c.Isolated6) && !c.Internal {
		return errs.New(errs.Invalid, "gateway mode 'isolated' can only be used for an internal network").WithHint("Create the network with --internal.")
	}
	return nil
}

// maxTrusted bounds the interfaces that a network trusts.
const maxTrusted = 64

// interfaceName reports whether a name can be that of an interface and means only this one in the rules: there a star stands for any end, and quotes cannot be
// quoted.
func interfaceName(name string) bool {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/:%*"\`, r) }
	return name != "" && len(name) <= 15 && name != "." && name != ".." && !strings.ContainsFunc(name, odd)
}

func option(c *network.Config, name, value string) (err error) {
	bad := func(why string) error {
		return errs.New(errs.Invalid, "invalid value for option %s: %.64q: %s", name, value, why)
	}
	flag := func(set func(on bool)) error {
		on, err := strconv.ParseBool(value)
		if err != nil {
			return bad("it is true or false")
		}
		set(on)
		return nil
	}
	const prefix = "com.docker.network."
	switch strings.TrimPrefix(name, prefix) {
	case "bridge.name":
		if !interfaceName(value) || value == "none" {
			return bad("it is no name of an interface")
		}
		c.Bridge = value
	case "bridge.enable_icc":
		return flag(func(on bool) { c.NoICC = !on })
	case "bridge.enable_ip_masquerade":
		return flag(func(on bool) { c.NoMasq, c.NoMasq6 = !on, !on })
	case "bridge.host_binding_ipv4":
		if c.HostIP, err = netip.ParseAddr(value); err != nil || !c.HostIP.Is4() {
			return bad("it is no IPv4 address")
		}
	case "host_ipv4", "host_ipv6":
		to, v6 := &c.Source, strings.HasSuffix(name, "6")
		if v6 {
			to = &c.Source6
		}
		if *to, err = netip.ParseAddr(value); err != nil || to.Is4() == v6 || to.Is4In6() || to.Zone() != "" || to.IsUnspecified() || to.IsMulticast() {
			return bad("it is no " + map[bool]string{false: "IPv4", true: "IPv6"}[v6] + " address of a host")
		}
	case "bridge.gateway_mode_ipv4":
		return mode(value, &c.NoMasq, &c.Open, &c.Direct, &c.Isolated, bad)
	case "bridge.gateway_mode_ipv6":
		return mode(value, &c.NoMasq6, &c.Open6, &c.Direct6, &c.Isolated6, bad)
	case "bridge.inhibit_ipv4":
		return flag(func(on bool) { c.Inhibit = on })
	case "bridge.trusted_host_interfaces":
		c.Trusted = strings.FieldsFunc(value, func(r rune) bool { return r == ':' })
		if len(c.Trusted) > maxTrusted {
			return bad("it has more than " + strconv.Itoa(maxTrusted) + " interfaces")
		}
		for _, name := range c.Trusted {
			if !interfaceName(name) {
				return bad(strconv.Quote(name) + " is no name of an interface")
			}
		}
	case "driver.mtu":
		if c.MTU, err = strconv.Atoi(value); err != nil || c.MTU < 68 || c.MTU > 65535 {
			return bad("it is a number from 68 to 65535")
		}
	case "container_iface_prefix":
		if value == "" || len(value) > 12 || strings.ContainsAny(value, "/ \t\n:%.") {
			return bad("it is no start of a name of an interface")
		}
		c.IfPrefix = value
	default:
		return errs.New(errs.Invalid, "unknown option %.128q of the bridge driver", name).
			WithHint("There are " + prefix + "{bridge.name,bridge.enable_icc,bridge.enable_ip_masquerade,bridge.host_binding_ipv4,bridge.gateway_mode_ipv4,bridge.gateway_mode_ipv6,bridge.inhibit_ipv4,bridge.trusted_host_interfaces,host_ipv4,host_ipv6,driver.mtu,container_iface_prefix}.")
	}
	return nil
}

// mode reads how a network reaches others, and how it is reached: through the host's address (nat; nat-unprotected opens all ports of the containers as well) or
// with addresses of its own, of which the published ports are open (routed). Or it reaches nobody, not even the host (isolated).
func mode(value string, noMasq, open, direct, isolated *bool, bad func(string) error) error {
	switch value {
	case "nat":
	case "nat-unprotected":
		*open = true
	case "routed":
		*noMasq, *direct = true, true
	case "isolated":
		*isolated = true
	default:
		return bad("it is nat, nat-unprotected, routed or isolated")
	}
	return nil
}
