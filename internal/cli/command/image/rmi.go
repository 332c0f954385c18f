package image

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// Rmi returns the command rmi.
func Rmi(inv *command.Invocation) *cobra.Command {
	var force, noPrune bool
	var platforms []string
	c := &cobra.Command{
		Use: "rmi [OPTIONS] IMAGE [IMAGE...]", Short: "Remove one or more images", Args: command.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			if noPrune {
				q.Set("noprune", "1")
			}
			for _, p := range platforms {
				one, err := opts.PlatformQuery(p)
				if err != nil {
					return err
				}
				q.Add("platforms", one.Get("platform"))
			}
			fatal := false
			err = command.Each(ctx, args, func(ref string) error {
				var out []wire.Removed
				if err := api.Do(ctx, client.Request{Method: "DELETE", Path: "/images/" + ref, Query: q}, &out); err != nil {
					fatal = fatal || !client.IsNotFound(err)
					return err
				}
				for _, r := range out {
					if r.Deleted != "" {
						fmt.Fprintf(inv.Out, "Deleted: %s\n", r.Deleted)
					} else {
						fmt.Fprintf(inv.Out, "Untagged: %s\n", r.Untagged)
					}
				}
				return nil
			})
			if err != nil && force && !fatal {
				fmt.Fprintln(inv.Err, err)
				return nil
			}
			return err
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force removal of the image")
	c.Flags().StringSliceVar(&platforms, "platform", nil, `Remove only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`)
	c.Flags().BoolVar(&noPrune, "no-prune", false, "Do not delete untagged parents")
	return c
}
