package image

import (
	"context"
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/cli/table"
	"ply/internal/wire"
)

// imagesFlags are the flags of images and image ls.
type imagesFlags struct {
	all, digests, noTrunc, quiet, tree bool
	format                             string
	filters                            opts.Filters
}

// Images returns the command images. Its first argument may be the word inspect: then it shows the layers of the images that follow.
func Images(inv *command.Invocation) *cobra.Command {
	f := &imagesFlags{}
	c := &cobra.Command{
		Use: "images [OPTIONS] [REPOSITORY[:TAG]]", Short: "List images",
		Long: "List images\n\n`ply images --tree` draws the parent layers of all images, `ply images inspect [IMAGE...]`\n" +
			"shows the layers of images. A repository that is called inspect is listed by `ply image ls inspect`.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == "inspect" {
				return command.AnyArgs(cmd, args)
			}
			return command.MaxArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == "inspect" {
				return showLayers(cmd.Context(), inv, args[1:], f.noTrunc)
			}
			return images(cmd.Context(), inv, f, args)
		},
	}
	f.add(c)
	return c
}

// add defines the flags.
func (f *imagesFlags) add(c *cobra.Command) {
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all images (default hides intermediate images)")
	fs.BoolVar(&f.digests, "digests", false, "Show digests")
	fs.VarP(&f.filters, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", format.TableHelp)
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only show image IDs")
	fs.BoolVarP(&f.tree, "tree", "t", false, "Draw the tree of parent layers")
}

// images lists the images that f selects; args may hold a repository or a name.
func images(ctx context.Context, inv *command.Invocation, f *imagesFlags, args []string) error {
	if len(args) > 0 {
		f.filters.Add("reference", args[0])
	}
	if f.format == "" && !f.quiet {
		f.format = inv.Config().Format("images")
	}
	api, err := inv.Engine(ctx)
	if err != nil {
		return err
	}
	if f.tree {
		return showTree(ctx, inv.Out, api, f)
	}
	list, err := listImages(ctx, api, f.filters, f.all, false)
	if err != nil {
		return err
	}
	rows := table.Images(list, inv.Now(), table.ImageOptions{
		Digests: f.digests || format.Uses(f.format, "Digest"), Containers: f.format == "", NoTrunc: f.noTrunc,
	})
	if len(args) > 0 && len(rows) == 0 && (args[0] == "ls" || args[0] == "list") {
		fmt.Fprintf(inv.Err, "No images found matching %q: did you mean \"ply image %s\"?\n", args[0], args[0])
	}
	for _, i := range list {
		if i.Damaged != "" {
			fmt.Fprintf(inv.Err, "WARNING: damaged: %s\n", i.Damaged)
		}
	}
	tmpl := f.format
	if f.quiet && (tmpl == "" || tmpl == "table") {
		tmpl = "{{.ID}}"
	}
	def := "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	if f.digests {
		def = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	}
	return format.Table(inv.Out, tmpl, def, table.ImageTitles, rows)
}

// listImages returns the images of the engine; all includes those without a name that others are built on. With manifests, names that mean several images
// come with all of them.
func listImages(ctx context.Context, api *client.Client, f opts.Filters, all, manifests bool) ([]wire.Image, error) {
	q := url.Values{}
	if all {
		q.Set("all", "1")
	}
	if manifests {
		q.Set("manifests", "1")
	}
	if err := f.Query(q); err != nil {
		return nil, err
	}
	var list []wire.Image
	err := api.Do(ctx, client.Request{Path: "/images/json", Query: q}, &list)
	return list, err
}
