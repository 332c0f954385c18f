package cli

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

type volumeRow struct {
	format.RowMark
	Availability, Driver, Group, Labels, Links, Mountpoint, Name, Scope, Size, Status string
	labels                                                                            map[string]string
}

// Label gives one label.
func (r volumeRow) Label(name string) string { return r.labels[name] }

var volumeTitles = format.Titles{"Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS",
	"Links": "LINKS", "Size": "SIZE", "Availability": "AVAILABILITY", "Group": "GROUP", "Status": "STATUS"}

func (a *App) cmdVolumeLs() *cobra.Command {
	var ft string
	var quiet bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List volumes", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ft == "" && !quiet {
				ft = a.config().Format("volumes")
			}
			q := url.Values{}
			if err := filterQuery(q, filters); err != nil {
				return err
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var out struct{ Volumes []wire.Volume }
			if err := api.Do(cmd.Context(), client.Request{Path: "/volumes", Query: q}, &out); err != nil {
				return err
			}
			slices.SortFunc(out.Volumes, func(x, y wire.Volume) int {
				if naturalLess(x.Name, y.Name) {
					return -1
				}
				return 1
			})
			rows := make([]volumeRow, len(out.Volumes))
			for i := range out.Volumes {
				rows[i] = volumeRowOf(&out.Volumes[i])
			}
			if quiet && (ft == "" || ft == "table") {
				ft = "{{.Name}}"
			}
			return format.Table(a.Out, ft, "{{.Driver}}\t{{.Name}}", volumeTitles, rows)
		},
	}
	c.Flags().VarP(&filters, "filter", "f", `Provide filter values (e.g. "dangling=true")`)
	c.Flags().StringVar(&ft, "format", "", formatHelp)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	return c
}

func volumeRowOf(v *wire.Volume) volumeRow {
	r := volumeRow{Availability: "N/A", Group: "N/A", Status: "N/A", Driver: v.Driver, Name: v.Name, Mountpoint: v.Mountpoint, Scope: v.Scope,
		Labels: strings.Join(opts.Pairs(v.Labels), ","), Links: "N/A", Size: "N/A", labels: v.Labels}
	if v.UsageData != nil {
		r.Links, r.Size = fmt.Sprint(v.UsageData.RefCount), format.Size4(v.UsageData.Size)
	}
	return r
}

func (a *App) cmdVolumeCreate() *cobra.Command {
	var driver, name string
	var labels opts.List
	labels.Check = opts.Label
	var options opts.Map
	c := &cobra.Command{
		Use: "create [OPTIONS] [VOLUME]", Short: "Create a volume", Args: maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if name != "" {
					return errs.New(errs.Invalid, "conflicting options: cannot specify a volume-name through both --name and as a positional arg")
				}
				name = args[0]
			}
			body := map[string]any{"Name": name, "Driver": driver, "DriverOpts": options.Values, "Labels": opts.KeyValues(labels.Values)}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			var v wire.Volume
			if err := api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/volumes/create", Body: body}, &v); err != nil {
				return err
			}
			fmt.Fprintln(a.Out, v.Name)
			return nil
		},
	}
	fs := c.Flags()
	fs.StringVarP(&driver, "driver", "d", "local", "Specify volume driver name")
	fs.StringVar(&name, "name", "", "Specify volume name")
	fs.Lookup("name").Hidden = true
	fs.Var(&labels, "label", "Set metadata for a volume")
	fs.VarP(&options, "opt", "o", "Set driver specific options")
	return c
}

func (a *App) cmdVolumeInspect() *cobra.Command {
	return a.inspector("inspect [OPTIONS] VOLUME [VOLUME...]", "Display detailed information on one or more volumes", "volume", false)
}

func (a *App) cmdVolumeRm() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [OPTIONS] VOLUME [VOLUME...]", Aliases: []string{"remove"}, Short: "Remove one or more volumes", Args: minArgs(1),
		Long: "Remove one or more volumes. You cannot remove a volume that is in use by a container.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			return each(cmd.Context(), args, func(name string) error {
				if err := api.Do(cmd.Context(), client.Request{Method: "DELETE", Path: "/volumes/" + name, Query: q}, nil); err != nil {
					return err
				}
				fmt.Fprintln(a.Out, name)
				return nil
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of one or more volumes")
	return c
}
