package builder

import (
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/cli/table"
	"ply/internal/filter"
	"ply/internal/wire"
)

// Du returns the command builder du.
func Du(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var verbose bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "du [OPTIONS]", Short: "Show the disk usage of the build cache", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			args := filter.Args{}
			for name, values := range filters {
				args[name] = slices.Sorted(maps.Keys(values))
			}
			match, err := duFilters.Compile(args)
			if err != nil {
				return err
			}
			var usage struct{ BuildCache []wire.BuildCache }
			if err := api.Do(cmd.Context(), client.Request{Path: "/system/df", Query: url.Values{"type": {"build-cache"}}}, &usage); err != nil {
				return err
			}
			var shared, private, inUse int64
			now := time.Now()
			var rows []table.BuildCacheRow
			for i := range usage.BuildCache {
				e := &usage.BuildCache[i]
				if !match(e) {
					continue
				}
				rows = append(rows, table.BuildCache(e, now))
				if e.Shared {
					shared += e.Size
				} else {
					private += e.Size
				}
				if e.InUse && !e.Shared {
					inUse += e.Size
				}
				if verbose && tmpl == "" {
					describe(inv.Out, e, now)
				}
			}
			if verbose && tmpl == "" {
				total(inv.Out, shared, private, inUse)
				return nil
			}
			err = format.Table(inv.Out, tmpl, "{{.ID}}\t{{.Description}}\t{{.Size}}\t{{.LastUsed}}\t{{.Shared}}", table.BuildCacheTitles, rows)
			if err != nil || tmpl != "" {
				return err
			}
			total(inv.Out, shared, private, inUse)
			return nil
		},
	}
	c.Flags().Var(&filters, "filter", `Provide filter values (e.g. "until=24h")`)
	c.Flags().BoolVar(&verbose, "verbose", false, "Provide a more verbose output")
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	return c
}

// duFilters select entries of the build cache: the conditions of builder prune that an entry can meet. An ID is written as du prints it.
var duFilters = filter.Table[*wire.BuildCache]{
	"until":       filter.Until(lastUse),
	"unused-for":  filter.Until(lastUse),
	"shared":      filter.Bool(func(e *wire.BuildCache, v bool) bool { return e.Shared == v }),
	"private":     filter.Bool(func(e *wire.BuildCache, v bool) bool { return e.Shared != v }),
	"inuse":       filter.Bool(func(e *wire.BuildCache, v bool) bool { return e.InUse == v }),
	"description": filter.Exact(func(e *wire.BuildCache) string { return e.Description }),
	"type":        filter.Exact(func(e *wire.BuildCache) string { return e.Type }),
	"id":          filter.Exact(func(e *wire.BuildCache) string { return e.ID }),
}

func lastUse(e *wire.BuildCache) time.Time {
	if e.LastUsedAt == nil {
		return e.CreatedAt
	}
	return *e.LastUsedAt
}

// describe prints all that is known of an entry.
func describe(w io.Writer, e *wire.BuildCache, now time.Time) {
	fmt.Fprintf(w, "ID:\t\t%s\nCreated at:\t%s\nMutable:\t%t\nReclaimable:\t%t\nShared:\t\t%t\nSize:\t\t%s\nDescription:\t%s\nUsage count:\t%d\n",
		e.ID, e.CreatedAt.UTC().Format(time.RFC3339Nano), e.Type == "exec.cachemount", !e.InUse, e.Shared, format.Size4(e.Size), e.Description, e.UsageCount)
	if e.LastUsedAt != nil {
		fmt.Fprintf(w, "Last used:\t%s\n", format.Ago(now, *e.LastUsedAt))
	}
	fmt.Fprintf(w, "Type:\t\t%s\n\n", e.Type)
}

func total(w io.Writer, shared, private, inUse int64) {
	fmt.Fprintf(w, "Shared:\t\t%s\nPrivate:\t%s\nReclaimable:\t%s\nTotal:\t\t%s\n", format.Size4(shared), format.Size4(private), format.Size4(private-inUse), format.Size4(shared+private))
}
