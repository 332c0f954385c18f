package container

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/errs"
	"ply/internal/wire"
)

// Port returns the command port.
func Port(inv *command.Invocation) *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PRIVATE_PORT[/PROTO]]", Short: "List port mappings or a specific mapping for the container", Args: command.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var d wire.ContainerDetail
			if err := api.Do(cmd.Context(), client.Request{Path: "/containers/" + args[0] + "/json"}, &d); err != nil {
				return err
			}
			lines, err := portLines(args, d.NetworkSettings.Ports)
			if err != nil {
				return err
			}
			for _, l := range lines {
				fmt.Fprintln(inv.Out, l)
			}
			return nil
		},
	}
}

// portLines returns the mappings of one port, args[1], or of all ports when args names only the container.
func portLines(args []string, ports map[string][]wire.PortBinding) ([]string, error) {
	var lines []string
	if len(args) > 1 {
		port, proto, _ := strings.Cut(args[1], "/")
		if proto == "" {
			proto = "tcp"
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, errs.New(errs.Invalid, "Error: invalid port (%s)", port)
		}
		bound, ok := ports[port+"/"+proto]
		if !ok || bound == nil {
			return nil, errs.New(errs.NotFound, "Error: No public port '%s' published for %s", args[1], args[0])
		}
		for _, b := range bound {
			lines = append(lines, net.JoinHostPort(b.HostIP, b.HostPort))
		}
	} else {
		for port, bound := range ports {
			for _, b := range bound {
				lines = append(lines, port+" -> "+net.JoinHostPort(b.HostIP, b.HostPort))
			}
		}
	}
	slices.SortFunc(lines, format.Natural)
	return lines, nil
}
