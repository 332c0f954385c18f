package builder

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/table"
	"ply/internal/wire"
)

// Ls returns the command builder ls.
func Ls(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var quiet, noTrunc bool
	c := &cobra.Command{
		Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List builds", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var builds []wire.PastBuild
			if err := api.Do(cmd.Context(), client.Request{Path: "/builds"}, &builds); err != nil {
				return err
			}
			now := time.Now()
			rows := make([]table.BuildRow, len(builds))
			for i := range builds {
				rows[i] = table.Build(&builds[i], now, noTrunc)
			}
			if quiet && (tmpl == "" || tmpl == "table") {
				tmpl = "{{.ID}}"
			}
			return format.Table(inv.Out, tmpl, strings.Join([]string{"{{.ID}}", "{{.Name}}", "{{.Status}}", "{{.Steps}}", "{{.CreatedSince}}", "{{.Duration}}"}, "\t"), table.BuildTitles, rows)
		},
	}
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	c.Flags().BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only display IDs")
	return c
}
