package container

import (
	"context"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/cli/table"
	"ply/internal/wire"
)

// psTable is the default template.
const psTable = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"

// psFlags are the flags of ps.
type psFlags struct {
	all, latest, noTrunc, quiet, size bool
	last                              int
	format                            string
	filters                           opts.Filters
}

// Ps returns the command ps.
func Ps(inv *command.Invocation) *cobra.Command {
	f := &psFlags{}
	c := &cobra.Command{
		Use: "ps [OPTIONS]", Short: "List containers", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return ps(cmd.Context(), inv, f) },
	}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	fs.VarP(&f.filters, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", format.TableHelp)
	fs.IntVarP(&f.last, "last", "n", -1, "Show n last created containers (includes all states)")
	fs.BoolVarP(&f.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only display container IDs")
	fs.BoolVarP(&f.size, "size", "s", false, "Display total file sizes")
	return c
}

// ps lists the containers that f selects.
func ps(ctx context.Context, inv *command.Invocation, f *psFlags) error {
	if f.format == "" && !f.quiet {
		f.format = inv.Config().Format("ps")
	}
	q := url.Values{}
	if f.all {
		q.Set("all", "1")
	}
	if f.latest && f.last < 0 {
		f.last = 1
	}
	if f.last > 0 {
		q.Set("limit", strconv.Itoa(f.last))
	}
	if f.size || !f.quiet && format.Uses(f.format, "Size") {
		q.Set("size", "1")
	}
	if err := f.filters.Query(q); err != nil {
		return err
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	var list []wire.Container
	if err := api.Do(ctx, client.Request{Path: "/containers/json", Query: q}, &list); err != nil {
		return err
	}
	rows := make([]table.PsRow, len(list))
	for i := range list {
		rows[i] = table.Ps(&list[i], inv.Now(), !f.noTrunc)
	}
	def := psTable
	if f.size {
		def += "\t{{.Size}}"
	}
	tmpl := f.format
	if f.quiet && (tmpl == "" || tmpl == "table") {
		tmpl = "{{.ID}}"
	}
	return format.Table(inv.Out, tmpl, def, table.PsTitles, rows)
}
