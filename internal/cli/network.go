package cli

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

type networkRow struct {
	format.RowMark
	CreatedAt, Driver, ID, IPv4, IPv6, Internal, Labels, Name, Scope string
	labels                                                           map[string]string
}

// Label gives one label.
func (r networkRow) Label(name string) string { return r.labels[name] }

var networkTitles = format.Titles{"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
	"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT"}

func (a *App) cmdNetworkLs() *cobra.Command {
	var ft string
	var quiet, noTrunc bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List networks", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ft == "" && !quiet {
				ft = a.config().Format("networks")
			}
			q := url.Values{}
			if err := filterQuery(q, filters); err != nil {
				return err
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var list []wire.Network
			if err := api.Do(cmd.Context(), client.Request{Path: "/networks", Query: q}, &list); err != nil {
				return err
			}
			slices.SortFunc(list, func(x, y wire.Network) int {
				if naturalLess(x.Name, y.Name) {
					return -1
				}
				return 1
			})
			rows := make([]networkRow, len(list))
			for i := range list {
				n := &list[i]
				rows[i] = networkRow{ID: n.ID, Name: n.Name, Driver: n.Driver, Scope: n.Scope, IPv6: strconv.FormatBool(n.IPv6),
					IPv4:     strconv.FormatBool(n.IPv4 != nil && *n.IPv4),
					Internal: strconv.FormatBool(n.Internal), Labels: strings.Join(opts.Pairs(n.Labels), ","), CreatedAt: stampOf(n.Created), labels: n.Labels}
				if !noTrunc {
					rows[i].ID = format.ShortID(n.ID)
				}
			}
			if quiet && (ft == "" || ft == "table") {
				ft = "{{.ID}}"
			}
			return format.Table(a.Out, ft, "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}", networkTitles, rows)
		},
	}
	c.Flags().VarP(&filters, "filter", "f", `Provide filter values (e.g. "driver=bridge")`)
	c.Flags().StringVar(&ft, "format", "", formatHelp)
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "Do not truncate the output")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display network IDs")
	return c
}

// stampOf shows the API's time as docker's tables do.
func stampOf(s string) string {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.String()
	}
	return s
}

func (a *App) cmdNetworkInspect() *cobra.Command {
	c := a.inspector("inspect [OPTIONS] NETWORK [NETWORK...]", "Display detailed information on one or more networks", "network", false)
	return c
}

// networkCreate is the body of a create.
type networkCreate struct {
	Name       string
	Driver     string
	Scope      string `json:",omitempty"`
	EnableIPv4 *bool  `json:",omitempty"`
	EnableIPv6 *bool  `json:",omitempty"`
	IPAM       ipam
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigOnly bool
	ConfigFrom *struct{ Network string } `json:",omitempty"`
	Options    map[string]string
	Labels     map[string]string
}

type ipam struct {
	Driver  string
	Options map[string]string
	Config  []ipamConfig
}

type ipamConfig struct {
	Subnet             string            `json:",omitempty"`
	IPRange            string            `json:",omitempty"`
	Gateway            string            `json:",omitempty"`
	AuxiliaryAddresses map[string]string `json:",omitempty"`
}

func (a *App) cmdNetworkCreate() *cobra.Command {
	var n networkCreate
	var from string
	var ipv4, ipv6 bool
	var aux, ipamOpt, options opts.Map
	labels := opts.List{Check: opts.Label}
	var subnets, ranges, gateways []string
	c := &cobra.Command{Use: "create [OPTIONS] NETWORK", Short: "Create a network", Args: exactArgs(1)}
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
			n.ConfigFrom = &struct{ Network string }{from}
		}
		var err error
		if n.IPAM.Config, err = ipamConfigs(subnets, ranges, gateways, aux.Values); err != nil {
			return err
		}
		api, err := a.engine(cmd.Context())
		if err != nil {
			return err
		}
		var out struct {
			ID      string `json:"Id"`
			Warning string
		}
		if err := api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/networks/create", Body: n}, &out); err != nil {
			return err
		}
		if out.Warning != "" {
			fmt.Fprintf(a.Err, "WARNING: %s\n", out.Warning)
		}
		fmt.Fprintln(a.Out, out.ID)
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

// ipamConfigs puts ranges, gateways and auxiliary addresses to the subnet that contains them.
func ipamConfigs(subnets, ranges, gateways []string, aux map[string]string) ([]ipamConfig, error) {
	if len(subnets) == 0 && len(ranges)+len(gateways)+len(aux) > 0 {
		return nil, errs.New(errs.Invalid, "every ip-range or gateway must have a corresponding subnet")
	}
	out := make([]ipamConfig, len(subnets))
	nets, err := parseSubnets(subnets)
	if err != nil {
		return nil, err
	}
	for i, s := range subnets {
		out[i].Subnet = s
	}
	place := func(what, addr string, put func(c *ipamConfig) bool) error {
		ip, _, _ := strings.Cut(addr, "/")
		for i := range nets {
			if nets[i].contains(ip) {
				if !put(&out[i]) {
					return errs.New(errs.Invalid, "cannot configure multiple %ss (%s) on the same subnet (%s)", what, addr, subnets[i])
				}
				return nil
			}
		}
		return errs.New(errs.Invalid, "no matching subnet for %s %s", what, addr)
	}
	for _, r := range ranges {
		if err := place("ip-range", r, func(c *ipamConfig) bool { ok := c.IPRange == ""; c.IPRange = r; return ok }); err != nil {
			return nil, err
		}
	}
	for _, g := range gateways {
		if err := place("gateway", g, func(c *ipamConfig) bool { ok := c.Gateway == ""; c.Gateway = g; return ok }); err != nil {
			return nil, err
		}
	}
	for k, v := range aux {
		if err := place("aux-address", v, func(c *ipamConfig) bool {
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

func (a *App) cmdNetworkConnect() *cobra.Command {
	var ep wire.EndpointSettings
	var ip, ip6 string
	var driverOpts, linkLocal []string
	var priority int
	var links opts.List
	links.Check = opts.Link
	c := &cobra.Command{
		Use: "connect [OPTIONS] NETWORK CONTAINER", Short: "Connect a container to a network", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ep.Links, ep.DriverOpts = links.Values, opts.KeyValues(driverOpts)
			if priority != 0 {
				ep.GwPriority = &priority
			}
			if ip != "" || ip6 != "" || len(linkLocal) > 0 {
				ep.IPAMConfig = &wire.EndpointIPAM{IPv4Address: ip, IPv6Address: ip6, LinkLocalIPs: linkLocal}
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			body := map[string]any{"Container": args[1], "EndpointConfig": ep}
			return api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/networks/" + args[0] + "/connect", Body: body}, nil)
		},
	}
	fs := c.Flags()
	fs.StringSliceVar(&ep.Aliases, "alias", nil, "Add network-scoped alias for the container")
	fs.StringSliceVar(&driverOpts, "driver-opt", nil, "driver options for the network")
	fs.IntVar(&priority, "gw-priority", 0, "Highest gw-priority provides the default gateway. Accepts positive and negative values.")
	fs.StringVar(&ip, "ip", "", `IPv4 address (e.g., "172.30.100.104")`)
	fs.StringVar(&ip6, "ip6", "", `IPv6 address (e.g., "2001:db8::33")`)
	fs.Var(&links, "link", "Add link to another container")
	fs.StringSliceVar(&linkLocal, "link-local-ip", nil, "Add a link-local address for the container")
	return c
}

func (a *App) cmdNetworkDisconnect() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "disconnect [OPTIONS] NETWORK CONTAINER", Short: "Disconnect a container from a network", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			body := map[string]any{"Container": args[1], "Force": force}
			return api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/networks/" + args[0] + "/disconnect", Body: body}, nil)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the container to disconnect from a network")
	return c
}

func (a *App) cmdNetworkRm() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm NETWORK [NETWORK...]", Aliases: []string{"remove"}, Short: "Remove one or more networks", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			return each(cmd.Context(), args, func(name string) error {
				err := api.Do(cmd.Context(), client.Request{Method: "DELETE", Path: "/networks/" + name}, nil)
				if force && client.IsNotFound(err) {
					return nil
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(a.Out, name)
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not error if the network does not exist")
	return c
}

// pruneQuery makes the query of a prune.
func pruneQuery(f opts.Filters) (url.Values, error) {
	q := url.Values{}
	return q, filterQuery(q, f)
}
