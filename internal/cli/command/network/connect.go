package network

import (
	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// Connect returns the command network connect.
func Connect(inv *command.Invocation) *cobra.Command {
	var ep wire.EndpointSettings
	var ip, ip6 string
	var driverOpts, linkLocal []string
	var priority int
	var links opts.List
	links.Check = opts.Link
	c := &cobra.Command{
		Use: "connect [OPTIONS] NETWORK CONTAINER", Short: "Connect a container to a network", Args: command.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ep.Links, ep.DriverOpts = links.Values, opts.KeyValues(driverOpts)
			if priority != 0 {
				ep.GwPriority = &priority
			}
			if ip != "" || ip6 != "" || len(linkLocal) > 0 {
				ep.IPAMConfig = &wire.EndpointIPAM{IPv4Address: ip, IPv6Address: ip6, LinkLocalIPs: linkLocal}
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			body := wire.NetworkConnect{Container: args[1], EndpointConfig: &ep}
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
