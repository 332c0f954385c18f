package network

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// networkRow is a row of network ls. The exported fields are the names that templates of --format use.
type networkRow struct {
	format.RowMark
	CreatedAt, Driver, ID, IPv4, IPv6, Internal, Labels, Name, Scope string
	labels                                                           map[string]string
}

// Label returns the value of one label.
func (r networkRow) Label(name string) string { return r.labels[name] }

var networkTitles = format.Titles{"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
	"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT"}

// Ls returns the command network ls.
func Ls(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var quiet, noTrunc bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List networks", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tmpl == "" && !quiet {
				tmpl = inv.Config().Format("networks")
			}
			q := url.Values{}
			if err := filters.Query(q); err != nil {
				return err
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var list []wire.Network
			if err := api.Do(cmd.Context(), client.Request{Path: "/networks", Query: q}, &list); err != nil {
				return err
			}
			slices.SortFunc(list, func(x, y wire.Network) int { return format.Natural(x.Name, y.Name) })
			rows := make([]networkRow, len(list))
			for i := range list {
				n := &list[i]
				rows[i] = networkRow{ID: n.ID, Name: n.Name, Driver: n.Driver, Scope: n.Scope, IPv6: strconv.FormatBool(n.EnableIPv6),
					IPv4:     strconv.FormatBool(n.EnableIPv4 != nil && *n.EnableIPv4),
					Internal: strconv.FormatBool(n.Internal), Labels: strings.Join(opts.Pairs(n.Labels), ","), CreatedAt: n.Created.String(), labels: n.Labels}
				if !noTrunc {
					rows[i].ID = format.ShortID(n.ID)
				}
			}
			if quiet && (tmpl == "" || tmpl == "table") {
				tmpl = "{{.ID}}"
			}
			return format.Table(inv.Out, tmpl, "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}", networkTitles, rows)
		},
	}
	c.Flags().VarP(&filters, "filter", "f", `Provide filter values (e.g. "driver=bridge")`)
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "Do not truncate the output")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display network IDs")
	return c
}
