package network

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Create returns the command network create.
func Create(inv *command.Invocation) *cobra.Command {
	var n wire.NetworkBody
	var from string
	var ipv4, ipv6 bool
	var aux, ipamOpt, options opts.Map
	labels := opts.List{Check: opts.Label}
	var subnets, ranges, gateways []string
	c := &cobra.Command{Use: "create [OPTIONS] NETWORK", Short: "Create a network", Args: command.ExactArgs(1)}
	fs := c.Flags()
	c.RunE = func(cmd *cobra.Command, args []string) error {
		n.Name, n.Options, n.Labels = args[0], options.Values, opts.KeyValues(labels.Values)
		n.IPAM.Options = ipamOpt.Values
		if fs.Changed("ipv4") {
			n.EnableIPv4 = &ipv4
		}
		if fs.Changed("ipv6") {
			n.EnableIPv6 = &ipv6
		}
		if from != "" {
			n.ConfigFrom = &wire.ConfigReference{Network: from}
		}
		var err error
		if n.IPAM.Config, err = ipamConfigs(subnets, ranges, gateways, aux.Values); err != nil {
			return err
		}
		api, err := inv.Engine(cmd.Context())
		if err != nil {
			return err
		}
		var out wire.NetworkCreated
		if err := api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/networks/create", Body: n}, &out); err != nil {
			return err
		}
		if out.Warning != "" {
			fmt.Fprintf(inv.Err, "WARNING: %s\n", out.Warning)
		}
		fmt.Fprintln(inv.Out, out.ID)
		return nil
	}
	fs.BoolVar(&n.Attachable, "attachable", false, "Enable manual container attachment")
	fs.Var(&aux, "aux-address", "Auxiliary IPv4 or IPv6 addresses used by Network driver")
	fs.StringVar(&from, "config-from", "", "The network from which to copy the configuration")
	fs.BoolVar(&n.ConfigOnly, "config-only", false, "Create a configuration only network")
	fs.StringVarP(&n.Driver, "driver", "d", "bridge", "Driver to manage the Network")
	fs.StringSliceVar(&gateways, "gateway", nil, "IPv4 or IPv6 Gateway for the master subnet")
	fs.BoolVar(&n.Ingress, "ingress", false, "Create swarm routing-mesh network")
	fs.BoolVar(&n.Internal, "internal", false, "Restrict external access to the network")
	fs.StringSliceVar(&ranges, "ip-range", nil, "Allocate container ip from a sub-range")
	fs.StringVar(&n.IPAM.Driver, "ipam-driver", "default", "IP Address Management Driver")
	fs.Var(&ipamOpt, "ipam-opt", "Set IPAM driver specific options")
	fs.BoolVar(&ipv4, "ipv4", true, "Enable or disable IPv4 address assignment")
	fs.BoolVar(&ipv6, "ipv6", false, "Enable or disable IPv6 address assignment")
	fs.Var(&labels, "label", "Set metadata on a network")
	fs.VarP(&options, "opt", "o", "Set driver specific options")
	fs.StringVar(&n.Scope, "scope", "", "Control the network's scope")
	fs.StringSliceVar(&subnets, "subnet", nil, "Subnet in CIDR format that represents a network segment")
	return c
}

// wire.IPAMConfigs returns one configuration per subnet. A range, a gateway or an auxiliary address goes to the subnet that contains it.
func ipamConfigs(subnets, ranges, gateways []string, aux map[string]string) ([]wire.IPAMConfig, error) {
	if len(subnets) == 0 && len(ranges)+len(gateways)+len(aux) > 0 {
		return nil, errs.New(errs.Invalid, "every ip-range or gateway must have a corresponding subnet")
	}
	out := make([]wire.IPAMConfig, len(subnets))
	nets, err := parseSubnets(subnets)
	if err != nil {
		return nil, err
	}
	for i, s := range subnets {
		out[i].Subnet = s
	}
	assign := func(what, addr string, set func(c *wire.IPAMConfig) bool) error {
		ip, _, _ := strings.Cut(addr, "/")
		for i := range nets {
			if contains(nets[i], ip) {
				if !set(&out[i]) {
					return errs.New(errs.Invalid, "cannot configure multiple %ss (%s) on the same subnet (%s)", what, addr, subnets[i])
				}
				return nil
			}
		}
		return errs.New(errs.Invalid, "no matching subnet for %s %s", what, addr)
	}
	for _, r := range ranges {
		if err := assign("ip-range", r, func(c *wire.IPAMConfig) bool { ok := c.IPRange == ""; c.IPRange = r; return ok }); err != nil {
			return nil, err
		}
	}
	for _, g := range gateways {
		if err := assign("gateway", g, func(c *wire.IPAMConfig) bool { ok := c.Gateway == ""; c.Gateway = g; return ok }); err != nil {
			return nil, err
		}
	}
	for k, v := range aux {
		if err := assign("aux-address", v, func(c *wire.IPAMConfig) bool {
			if c.AuxiliaryAddresses == nil {
				c.AuxiliaryAddresses = map[string]string{}
			}
			c.AuxiliaryAddresses[k] = v
			return true
		}); err != nil {
			return nil, err
		}
	}
	return out, nil
}
