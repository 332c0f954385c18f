package volume

import (
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/cli/table"
	"ply/internal/wire"
)

// Ls returns the command volume ls.
func Ls(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var quiet bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List volumes", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tmpl == "" && !quiet {
				tmpl = inv.Config().Format("volumes")
			}
			q := url.Values{}
			if err := filters.Query(q); err != nil {
				return err
			}
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var out wire.Volumes
			if err := api.Do(cmd.Context(), client.Request{Path: "/volumes", Query: q}, &out); err != nil {
				return err
			}
			slices.SortFunc(out.Volumes, func(x, y wire.Volume) int { return format.Natural(x.Name, y.Name) })
			rows := make([]table.VolumeRow, len(out.Volumes))
			for i := range out.Volumes {
				rows[i] = table.Volume(&out.Volumes[i])
			}
			if quiet && (tmpl == "" || tmpl == "table") {
				tmpl = "{{.Name}}"
			}
			return format.Table(inv.Out, tmpl, "{{.Driver}}\t{{.Name}}", table.VolumeTitles, rows)
		},
	}
	c.Flags().VarP(&filters, "filter", "f", `Provide filter values (e.g. "dangling=true")`)
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	return c
}
