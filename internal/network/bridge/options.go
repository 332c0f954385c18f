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
	return nil
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
		if value == "" || len(value) > 15 || strings.ContainsAny(value, "/ \t\n:%") || value == "." || value == ".." || value == "none" {
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
	case "bridge.gateway_mode_ipv4":
		return mode(value, &c.NoMasq, &c.Open, &c.Direct, bad)
	case "bridge.gateway_mode_ipv6":
		return mode(value, &c.NoMasq6, &c.Open6, &c.Direct6, bad)
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
			WithHint("There are " + prefix + "{bridge.name,bridge.enable_icc,bridge.enable_ip_masquerade,bridge.host_binding_ipv4,bridge.gateway_mode_ipv4,bridge.gateway_mode_ipv6,driver.mtu,container_iface_prefix}.")
	}
	return nil
}

// mode reads how a network reaches others, and how it is reached: through the host's address (nat; nat-unprotected opens all ports of the containers as well) or
// with addresses of its own, of which the published ports are open (routed).
func mode(value string, noMasq, open, direct *bool, bad func(string) error) error {
	switch value {
	case "nat":
	case "nat-unprotected":
		*open = true
	case "routed":
		*noMasq, *direct = true, true
	default:
		return bad("it is nat, nat-unprotected or routed")
	}
	return nil
}
