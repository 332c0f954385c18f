package builder

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
)

// Prune returns the command builder prune.
func Prune(inv *command.Invocation) *cobra.Command {
	var all, force bool
	var filters opts.Filters
	var keep, reserved, most, free opts.Bytes
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove build cache", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if !force {
				warning := "WARNING! This will remove all dangling build cache."
				if all {
					warning = "WARNING! This will remove all build cache."
				}
				if err := inv.ConfirmPrune(ctx, "builder", warning); err != nil {
					return err
				}
			}
			q := url.Values{}
			if all {
				q.Set("all", "1")
			}
			for name, v := range map[string]opts.Bytes{"keep-storage": keep, "reserved-space": reserved, "max-used-space": most, "min-free-space": free} {
				if v.N > 0 {
					q.Set(name, strconv.FormatInt(v.N, 10))
				}
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			out, err := command.Prune(ctx, api, "/build/prune", filters, q)
			if err != nil {
				return err
			}
			fmt.Fprint(inv.Out, out.Text())
			fmt.Fprintln(inv.Out, "Total reclaimed space:", format.Size4(out.SpaceReclaimed))
			return nil
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused build cache, not just dangling ones")
	c.Flags().Var(&filters, "filter", `Provide filter values (e.g. "until=24h")`)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	c.Flags().Var(&keep, "keep-storage", "Amount of disk space to keep for cache")
	c.Flags().Var(&reserved, "reserved-space", "Amount of disk space always allowed to keep for cache")
	c.Flags().Var(&most, "max-used-space", "Maximum amount of disk space allowed to keep for cache")
	c.Flags().Var(&free, "min-free-space", "Target amount of free disk space after pruning")
	return c
}
