package builder

import (
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/table"
	"ply/internal/wire"
)

// Du returns the command builder du.
func Du(inv *command.Invocation) *cobra.Command {
	var tmpl string
	c := &cobra.Command{
		Use: "du [OPTIONS]", Short: "Show the disk usage of the build cache", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			var usage struct{ BuildCache []wire.BuildCache }
			if err := api.Do(cmd.Context(), client.Request{Path: "/system/df", Query: url.Values{"type": {"build-cache"}}}, &usage); err != nil {
				return err
			}
			var shared, private int64
			now := time.Now()
			rows := make([]table.BuildCacheRow, len(usage.BuildCache))
			for i := range usage.BuildCache {
				e := &usage.BuildCache[i]
				if rows[i] = table.BuildCache(e, now); e.Shared {
					shared += e.Size
				} else {
					private += e.Size
				}
			}
			err = format.Table(inv.Out, tmpl, "{{.ID}}\t{{.Description}}\t{{.Size}}\t{{.LastUsed}}\t{{.Shared}}", table.BuildCacheTitles, rows)
			if err != nil || tmpl != "" {
				return err
			}
			fmt.Fprintf(inv.Out, "Shared:\t\t%s\nPrivate:\t%s\nReclaimable:\t%s\nTotal:\t\t%s\n", format.Size4(shared), format.Size4(private), format.Size4(private), format.Size4(shared+private))
			return nil
		},
	}
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	return c
}
