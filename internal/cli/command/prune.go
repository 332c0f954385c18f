package command

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// Pruned is the answer of a prune of any kind.
type Pruned struct {
	ContainersDeleted, VolumesDeleted, NetworksDeleted, CachesDeleted []string
	ImagesDeleted                                                     []wire.Removed
	SpaceReclaimed                                                    int64
}

// Text lists what was removed.
func (p *Pruned) Text() string {
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

// PruneOptions describe the prune of one kind of objects.
type PruneOptions struct {
	Kind       string // singular, such as "container"
	Short      string // of the help
	FilterHelp string
	Space      bool // the answer says how much space was reclaimed

	// AllHelp is the help of the flag --all. There is no such flag when it is empty, and all is false below.
	AllHelp string
	Warning func(all bool) string
	Adjust  func(f *opts.Filters, all bool) // turns --all into a filter; nil changes nothing
}

// NewPrune returns the command that prunes one kind of objects.
func NewPrune(inv *Invocation, o PruneOptions) *cobra.Command {
	var force, all bool
	var filters opts.Filters
	c := &cobra.Command{
		Use: "prune [OPTIONS]", Short: o.Short, Args: NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if !force {
				if err := inv.ConfirmPrune(ctx, o.Kind, o.Warning(all)); err != nil {
					return err
				}
			}
			api, err := inv.Engine(ctx)
			if err != nil {
				return err
			}
			if o.Adjust != nil {
				o.Adjust(&filters, all)
			}
			out, err := Prune(ctx, api, "/"+o.Kind+"s/prune", filters, nil)
			if err != nil {
				return err
			}
			fmt.Fprint(inv.Out, out.Text())
			if o.Space {
				fmt.Fprintln(inv.Out, "Total reclaimed space:", format.Size4(out.SpaceReclaimed))
			}
			return nil
		},
	}
	if o.AllHelp != "" {
		c.Flags().BoolVarP(&all, "all", "a", false, o.AllHelp)
	}
	c.Flags().Var(&filters, "filter", o.FilterHelp)
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return c
}

// ConfirmPrune asks whether to prune, and returns an error when the answer is no.
func (inv *Invocation) ConfirmPrune(ctx context.Context, kind, warning string) error {
	ok, err := inv.Confirm(ctx, warning)
	if err == nil && !ok {
		err = &ExitError{Code: 1, Text: kind + " prune has been cancelled"}
	}
	return err
}

// Prune posts a prune to path; q, which may be nil, holds what goes beside the filters.
func Prune(ctx context.Context, api *client.Client, path string, filters opts.Filters, q url.Values) (*Pruned, error) {
	if q == nil {
		q = url.Values{}
	}
	if err := filters.Query(q); err != nil {
		return nil, err
	}
	var out Pruned
	err := api.Do(ctx, client.Request{Method: "POST", Path: path, Query: q}, &out)
	return &out, err
}
