package system

import (
	"fmt"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/errs"
)

// Prune returns the command system prune.
func Prune(inv *command.Invocation) *cobra.Command {
	var all, force, volumes bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused data", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if volumes && filters["until"] != nil {
				return errs.New(errs.Invalid, `ERROR: The "until" filter is not supported with "--volumes"`)
			}
			if !force {
				if err := inv.ConfirmPrune(ctx, "system", pruneWarning(all, volumes, filters)); err != nil {
					return err
				}
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			var space int64
			kinds := []string{"containers", "networks"}
			if volumes {
				kinds = append(kinds, "volumes")
			}
			for _, kind := range append(kinds, "images", "build") {
				f := opts.Filters{}
				for k, vs := range filters {
					for v := range vs {
						f.Add(k, v)
					}
				}
				if kind == "images" {
					f.Add("dangling", fmt.Sprint(!all))
				}
				out, err := command.Prune(ctx, api, "/"+kind+"/prune", f, nil)
				if err != nil {
					if kind == "build" && client.IsAbsent(err) {
						continue // the engine has no builder
					}
					return err
				}
				space += out.SpaceReclaimed
				fmt.Fprint(inv.Out, out.Text())
			}
			fmt.Fprintln(inv.Out, "Total reclaimed space:", format.Size4(space))
			return nil
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images not just dangling ones")
	c.Flags().Var(&filters, "filter", `Provide filter values (e.g. "label=<key>=<value>")`)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	c.Flags().BoolVar(&volumes, "volumes", false, "Prune anonymous volumes")
	return c
}

// pruneWarning lists what will be removed.
func pruneWarning(all, volumes bool, filters opts.Filters) string {
	lines := []string{"all stopped containers", "all networks not used by at least one container"}
	if volumes {
		lines = append(lines, "all anonymous volumes not used by at least one container")
	}
	if all {
		lines = append(lines, "all images without at least one container associated to them", "all build cache")
	} else {
		lines = append(lines, "all dangling images", "unused build cache")
	}
	text := "WARNING! This will remove:\n"
	for _, l := range lines {
		text += "  - " + l + "\n"
	}
	if len(filters) > 0 {
		text += "\n  Items to be pruned will be filtered with:\n"
		for k, vs := range filters {
			for v := range vs {
				text += "  - " + k + "=" + v + "\n"
			}
		}
	}
	return text
}
