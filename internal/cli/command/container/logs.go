package container

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// Logs returns the command logs.
func Logs(inv *command.Invocation) *cobra.Command {
	var details, follow, stamps bool
	var since, until, tail string
	c := &cobra.Command{
		Use: "logs [OPTIONS] CONTAINER", Short: "Fetch the logs of a container", Args: command.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {tail}}
			for name, on := range map[string]bool{"details": details, "follow": follow, "timestamps": stamps} {
				if on {
					q.Set(name, "1")
				}
			}
			for name, v := range map[string]string{"since": since, "until": until} {
				if v == "" {
					continue
				}
				ts, err := opts.Timestamp(v, inv.Now())
				if err != nil {
					return fmt.Errorf("invalid value for %q: %w", name, err)
				}
				q.Set(name, ts)
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			var d wire.ContainerDetail
			if err := api.Do(ctx, client.Request{Path: "/containers/" + args[0] + "/json"}, &d); err != nil {
				return err
			}
			if follow {
				q.Set("resumable", "1")
			}
			resp, err := api.Open(ctx, client.Request{Path: "/containers/" + d.ID + "/logs", Query: q})
			if err != nil {
				return err
			}
			if resp.Header.Get("Content-Type") == wire.TypeResumable {
				f := follower{inv: inv, api: api, id: d.ID, query: q}
				return command.EndOf(ctx, f.follow(ctx, resp))
			}
			defer resp.Body.Close()
			if d.Config.Tty {
				return command.CopyOut(ctx, inv.Out, resp.Body)
			}
			return command.EndOf(ctx, client.Demux(inv.Out, inv.Err, resp.Body))
		},
	}
	fs := c.Flags()
	fs.BoolVar(&details, "details", false, "Show extra details provided to logs")
	fs.BoolVarP(&follow, "follow", "f", false, "Follow log output")
	fs.StringVar(&since, "since", "", `Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	fs.StringVarP(&tail, "tail", "n", "all", "Number of lines to show from the end of the logs")
	fs.BoolVarP(&stamps, "timestamps", "t", false, "Show timestamps")
	fs.StringVar(&until, "until", "", `Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)`)
	return c
}
