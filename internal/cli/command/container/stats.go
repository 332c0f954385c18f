package container

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/wire"
)

// statsFlags are the flags of stats.
type statsFlags struct {
	all, noStream, noTrunc bool
	format                 string
}

// Stats returns the command stats.
func Stats(inv *command.Invocation) *cobra.Command {
	f := &statsFlags{}
	c := &cobra.Command{
		Use: "stats [OPTIONS] [CONTAINER...]", Short: "Display a live stream of container(s) resource usage statistics",
		Args: command.AnyArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return stats(cmd.Context(), inv, f, args) },
	}
	c.Flags().BoolVarP(&f.all, "all", "a", false, "Show all containers (default shows just running)")
	c.Flags().StringVar(&f.format, "format", "", format.TableHelp)
	c.Flags().BoolVar(&f.noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "Do not truncate the output")
	return c
}

// stats prints one reading of the containers, or a table that it refreshes until ctx ends.
func stats(ctx context.Context, inv *command.Invocation, f *statsFlags, refs []string) error {
	if f.format == "" {
		f.format = inv.Config().Format("stats")
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	if f.noStream {
		named, err := statsTargets(ctx, api, f, refs)
		if err != nil {
			return err
		}
		rows, err := statsOnce(ctx, api, named, len(refs) > 0, !f.noTrunc)
		if err != nil {
			return err
		}
		return format.Table(inv.Out, f.format, statsTable, statsTitles, rows)
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	w := newStatsWatch(ctx, api, !f.noTrunc)
	defer w.stop()
	for {
		named, err := statsTargets(ctx, api, f, refs)
		if err != nil {
			return command.EndOf(ctx, err)
		}
		w.follow(named)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		rows, err := w.rows(len(refs) > 0)
		if err != nil {
			return err
		}
		if f.format == "" || strings.HasPrefix(f.format, "table") {
			if inv.OutTerm != nil {
				io.WriteString(inv.Out, "\x1b[2J\x1b[H")
			}
		}
		if err := format.Table(inv.Out, f.format, statsTable, statsTitles, rows); err != nil {
			return err
		}
		if len(refs) > 0 && len(rows) == 0 {
			return nil
		}
	}
}

// statsTargets returns the containers that the user named, else the running ones, or all of them with --all.
func statsTargets(ctx context.Context, api *client.Client, f *statsFlags, refs []string) ([]string, error) {
	if len(refs) > 0 {
		return refs, nil
	}
	q := url.Values{}
	if f.all {
		q.Set("all", "1")
	}
	var list []wire.Container
	if err := api.Do(ctx, client.Request{Path: "/containers/json", Query: q}, &list); err != nil {
		return nil, err
	}
	for _, c := range list {
		refs = append(refs, c.ID)
	}
	return refs, nil
}

// statsOnce takes one reading of each container. With strict, a missing container is an error.
func statsOnce(ctx context.Context, api *client.Client, refs []string, strict, trunc bool) ([]statsRow, error) {
	rows := make([]statsRow, len(refs))
	failed := make([]error, len(refs))
	var wg sync.WaitGroup
	for i, ref := range refs {
		wg.Go(func() {
			var r wire.Stats
			err := api.Do(ctx, client.Request{Path: "/containers/" + ref + "/stats", Query: url.Values{"stream": {"0"}}}, &r)
			if err != nil {
				rows[i], failed[i] = emptyStats(ref), err
				return
			}
			rows[i] = statsRowOf(ref, &r, trunc)
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil && strict {
		return nil, err
	}
	return rows, nil
}
