package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/errs"
	"ply/internal/wire"
)

// pruned is the answer of any prune.
type pruned struct {
	ContainersDeleted, VolumesDeleted, NetworksDeleted, CachesDeleted []string
	ImagesDeleted                                                     []wire.Removed
	SpaceReclaimed                                                    int64
}

func (p *pruned) text() string {
	var b strings.Builder
	part := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(&b, "%s\n%s\n\n", title, strings.Join(lines, "\n"))
		}
	}
	part("Deleted Containers:", p.ContainersDeleted)
	part("Deleted Networks:", p.NetworksDeleted)
	part("Deleted Volumes:", p.VolumesDeleted)
	var images []string
	for _, r := range p.ImagesDeleted {
		if r.Untagged != "" {
			images = append(images, "untagged: "+r.Untagged)
		} else {
			images = append(images, "deleted: "+r.Deleted)
		}
	}
	part("Deleted Images:", images)
	part("Deleted build cache objects:", p.CachesDeleted)
	return b.String()
}

// pruneCommand makes a prune of one kind.
func (a *App) pruneCommand(kind, short, filterHelp string, space bool, warning func(all bool) string, flags func(c *cobra.Command) *bool, adjust func(f *opts.Filters, all bool)) *cobra.Command {
	var force bool
	var filters opts.Filters
	c := &cobra.Command{Use: "prune [OPTIONS]", Short: short, Args: noArgs}
	var all *bool
	if flags != nil {
		all = flags(c)
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		everything := all != nil && *all
		if !force {
			ok, err := a.confirm(ctx, warning(everything))
			if err != nil {
				return err
			}
			if !ok {
				return &exitError{1, kind + " prune has been cancelled"}
			}
		}
		api, err := a.engine(ctx)
		if err != nil {
			return err
		}
		if adjust != nil {
			adjust(&filters, everything)
		}
		out, err := prune(ctx, api, kind+"s", filters)
		if err != nil {
			return err
		}
		fmt.Fprint(a.Out, out.text())
		if space {
			fmt.Fprintln(a.Out, "Total reclaimed space:", format.Size4(out.SpaceReclaimed))
		}
		return nil
	}
	c.Flags().Var(&filters, "filter", filterHelp)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return c
}

func prune(ctx context.Context, api *client.Client, kinds string, f opts.Filters) (*pruned, error) {
	q, err := pruneQuery(f)
	if err != nil {
		return nil, err
	}
	var out pruned
	err = api.Do(ctx, client.Request{Method: "POST", Path: "/" + kinds + "/prune", Query: q}, &out)
	return &out, err
}

func (a *App) cmdContainerPrune() *cobra.Command {
	return a.pruneCommand("container", "Remove all stopped containers", `Provide filter values (e.g. "until=<timestamp>")`, true,
		func(bool) string { return "WARNING! This will remove all stopped containers." }, nil, nil)
}

func (a *App) cmdNetworkPrune() *cobra.Command {
	return a.pruneCommand("network", "Remove all unused networks", `Provide filter values (e.g. "until=<timestamp>")`, false,
		func(bool) string {
			return "WARNING! This will remove all custom networks not used by at least one container."
		}, nil, nil)
}

func (a *App) cmdVolumePrune() *cobra.Command {
	var all bool
	return a.pruneCommand("volume", "Remove unused local volumes", `Provide filter values (e.g. "label=<label>")`, true,
		func(all bool) string {
			if all {
				return "WARNING! This will remove all local volumes not used by at least one container."
			}
			return "WARNING! This will remove anonymous local volumes not used by at least one container."
		},
		func(c *cobra.Command) *bool {
			c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused volumes, not just anonymous ones")
			return &all
		},
		func(f *opts.Filters, all bool) {
			if all {
				f.Add("all", "1")
			}
		})
}

func (a *App) cmdImagePrune() *cobra.Command {
	var all bool
	return a.pruneCommand("image", "Remove unused images", `Provide filter values (e.g. "until=<timestamp>")`, true,
		func(all bool) string {
			if all {
				return "WARNING! This will remove all images without at least one container associated to them."
			}
			return "WARNING! This will remove all dangling images."
		},
		func(c *cobra.Command) *bool {
			c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images, not just dangling ones")
			return &all
		},
		func(f *opts.Filters, all bool) { f.Add("dangling", fmt.Sprint(!all)) })
}

func (a *App) cmdBuilderPrune() *cobra.Command {
	var all, force bool
	var filters opts.Filters
	var keep opts.Bytes
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove build cache", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if !force {
				warning := "WARNING! This will remove all dangling build cache."
				if all {
					warning = "WARNING! This will remove all build cache."
				}
				ok, err := a.confirm(ctx, warning)
				if err != nil {
					return err
				}
				if !ok {
					return &exitError{1, "builder prune has been cancelled"}
				}
			}
			q, err := pruneQuery(filters)
			if err != nil {
				return err
			}
			if all {
				q.Set("all", "1")
			}
			if keep.N > 0 {
				q.Set("keep-storage", strconv.FormatInt(keep.N, 10))
			}
			api, err := a.engine(ctx)
			if err != nil {
				return err
			}
			var out pruned
			if err := api.Do(ctx, client.Request{Method: "POST", Path: "/build/prune", Query: q}, &out); err != nil {
				return err
			}
			fmt.Fprint(a.Out, out.text())
			fmt.Fprintln(a.Out, "Total reclaimed space:", format.Size4(out.SpaceReclaimed))
			return nil
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused build cache, not just dangling ones")
	c.Flags().Var(&filters, "filter", `Provide filter values (e.g. "until=24h")`)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	c.Flags().Var(&keep, "keep-storage", "Amount of disk space to keep for cache")
	return c
}

func (a *App) cmdSystemPrune() *cobra.Command {
	var all, force, volumes bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: "Remove unused data", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if volumes && filters["until"] != nil {
				return errs.New(errs.Invalid, `ERROR: The "until" filter is not supported with "--volumes"`)
			}
			if !force {
				ok, err := a.confirm(ctx, systemPruneWarning(all, volumes, filters))
				if err != nil {
					return err
				}
				if !ok {
					return &exitError{1, "system prune has been cancelled"}
				}
			}
			api, err := a.engine(ctx)
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
				if kind == "build" && f["label"] != nil {
					continue // the cache has no labels
				}
				out, err := prune(ctx, api, kind, f)
				if err != nil {
					if kind == "build" && (client.IsNotFound(err) || strings.Contains(err.Error(), "not implemented")) {
						continue // an engine without a builder
					}
					return err
				}
				space += out.SpaceReclaimed
				fmt.Fprint(a.Out, out.text())
			}
			fmt.Fprintln(a.Out, "Total reclaimed space:", format.Size4(space))
			return nil
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "Remove all unused images not just dangling ones")
	c.Flags().Var(&filters, "filter", `Provide filter values (e.g. "label=<key>=<value>")`)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	c.Flags().BoolVar(&volumes, "volumes", false, "Prune anonymous volumes")
	return c
}

func systemPruneWarning(all, volumes bool, filters opts.Filters) string {
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
