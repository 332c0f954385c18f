package cli

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// imageRow is a row of images.
type imageRow struct {
	format.RowMark
	Containers, CreatedAt, CreatedSince, Digest, ID, Repository, SharedSize, Size, Tag, UniqueSize, VirtualSize string
}

var imageTitles = format.Titles{
	"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
	"Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}

type imagesFlags struct {
	all, digests, noTrunc, quiet, tree bool
	format                             string
	filters                            opts.Filters
}

// cmdImages is `images`: `images inspect` is the layer view there.
func (a *App) cmdImages() *cobra.Command {
	f := &imagesFlags{}
	c := &cobra.Command{
		Use: "images [OPTIONS] [REPOSITORY[:TAG]]", Short: "List images",
		Long: "List images\n\n`ply images --tree` draws the parent layers of all images, `ply images inspect [IMAGE...]`\n" +
			"shows the layers of images. A repository that is called inspect is listed by `ply image ls inspect`.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == "inspect" {
				return dashes(cmd, args)
			}
			return maxArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == "inspect" {
				return a.layerView(cmd.Context(), args[1:], f.noTrunc)
			}
			return a.images(cmd.Context(), f, args)
		},
	}
	f.add(c)
	return c
}

func (a *App) cmdImageLs() *cobra.Command {
	f := &imagesFlags{}
	c := &cobra.Command{
		Use: "ls [OPTIONS] [REPOSITORY[:TAG]]", Short: "List images", Args: maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.images(cmd.Context(), f, args) },
	}
	f.add(c)
	return c
}

func (f *imagesFlags) add(c *cobra.Command) {
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "Show all images (default hides intermediate images)")
	fs.BoolVar(&f.digests, "digests", false, "Show digests")
	fs.VarP(&f.filters, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&f.format, "format", "", formatHelp)
	fs.BoolVar(&f.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "Only show image IDs")
	fs.BoolVarP(&f.tree, "tree", "t", false, "Draw the tree of parent layers")
}

func (a *App) images(ctx context.Context, f *imagesFlags, args []string) error {
	if len(args) > 0 {
		f.filters.Add("reference", args[0])
	}
	if f.format == "" && !f.quiet {
		f.format = a.config().Format("images")
	}
	api, err := a.engine(ctx)
	if err != nil {
		return err
	}
	list, err := listImages(ctx, api, f.filters, f.all)
	if err != nil {
		return err
	}
	if f.tree {
		return a.layerTree(ctx, api, list, f.noTrunc)
	}
	rows := imageRows(list, f)
	if len(args) > 0 && len(rows) == 0 && (args[0] == "ls" || args[0] == "list") {
		fmt.Fprintf(a.Err, "No images found matching %q: did you mean \"ply image %s\"?\n", args[0], args[0])
	}
	ft := f.format
	if f.quiet && (ft == "" || ft == "table") {
		ft = "{{.ID}}"
	}
	def := "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	if f.digests {
		def = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	}
	return format.Table(a.Out, ft, def, imageTitles, rows)
}

func listImages(ctx context.Context, api *client.Client, f opts.Filters, all bool) ([]wire.Image, error) {
	q := url.Values{}
	if all {
		q.Set("all", "1")
	}
	if err := filterQuery(q, f); err != nil {
		return nil, err
	}
	var list []wire.Image
	err := api.Do(ctx, client.Request{Path: "/images/json", Query: q}, &list)
	return list, err
}

// imageRows gives one row for every tag of every image, or every digest when digests are shown.
func imageRows(list []wire.Image, f *imagesFlags) []imageRow {
	digests := f.digests || format.Uses(strings.TrimPrefix(f.format, "json"), "Digest") && f.format != "" && !strings.Contains(f.format, "json")
	rows := []imageRow{}
	for i := range list {
		im := &list[i]
		for _, n := range imageNames(im, digests) {
			r := imageRow{ID: im.ID, Repository: n[0], Tag: n[1], Digest: n[2], CreatedAt: format.Stamp(im.Created),
				Size: format.Size(im.Size), VirtualSize: format.Size4(im.Size), Containers: "N/A", SharedSize: "N/A", UniqueSize: "N/A"}
			r.CreatedSince = "N/A"
			if t := time.Unix(im.Created, 0); im.Created > 0 {
				r.CreatedSince = format.Ago(now(), t)
			}
			if !f.noTrunc {
				r.ID = format.ShortID(im.ID)
			}
			if im.Containers >= 0 && im.Containers != -1 && f.format == "" {
				r.Containers = strconv.FormatInt(im.Containers, 10)
			}
			if im.SharedSize > 0 {
				r.SharedSize, r.UniqueSize = format.Size4(im.SharedSize), format.Size4(im.Size-im.SharedSize)
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// imageNames gives repository, tag and digest of every row of an image.
func imageNames(im *wire.Image, digests bool) [][3]string {
	const none = "<none>"
	type repo struct {
		tags, digests []string
	}
	repos := map[string]*repo{}
	var order []string
	get := func(name string) *repo {
		r := repos[name]
		if r == nil {
			r = &repo{}
			repos[name] = r
			order = append(order, name)
		}
		return r
	}
	for _, t := range im.RepoTags {
		if i := strings.LastIndexByte(t, ':'); i > 0 && t != "<none>:<none>" {
			r := get(t[:i])
			r.tags = append(r.tags, t[i+1:])
		}
	}
	for _, d := range im.RepoDigests {
		if name, dig, ok := strings.Cut(d, "@"); ok && name != none {
			r := get(name)
			r.digests = append(r.digests, dig)
		}
	}
	if len(order) == 0 {
		return [][3]string{{none, none, none}}
	}
	var out [][3]string
	for _, name := range order {
		r := repos[name]
		tags, digs := r.tags, r.digests
		switch {
		case len(tags) == 0 && len(digs) == 0:
			continue
		case len(tags) == 0 && !digests:
			out = append(out, [3]string{name, none, none})
			continue
		case len(tags) == 0:
			tags = []string{none}
		}
		if !digests || len(digs) == 0 {
			digs = []string{none}
		}
		for _, t := range tags {
			for _, d := range digs {
				out = append(out, [3]string{name, t, d})
			}
		}
	}
	return out
}

// historyRow is a row of history.
type historyRow struct {
	format.RowMark
	Comment, CreatedAt, CreatedBy, CreatedSince, ID, Size string
}

var historyTitles = format.Titles{"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}

func (a *App) cmdHistory() *cobra.Command {
	var human, noTrunc, quiet bool
	var ft, platform string
	c := &cobra.Command{
		Use: "history [OPTIONS] IMAGE", Short: "Show the history of an image", Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			q, err := platformQuery(platform)
			if err != nil {
				return err
			}
			var list []wire.HistoryItem
			if err := api.Do(cmd.Context(), client.Request{Path: "/images/" + args[0] + "/history", Query: q}, &list); err != nil {
				return err
			}
			rows := make([]historyRow, len(list))
			for i := range list {
				rows[i] = historyRowOf(&list[i], human, !noTrunc)
			}
			def := "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
			if quiet && (ft == "" || ft == "table") {
				ft = "{{.ID}}"
			}
			if !human {
				def = strings.Replace(def, "{{.CreatedSince}}", "{{.CreatedAt}}", 1)
			}
			return format.Table(a.Out, ft, def, historyTitles, rows)
		},
	}
	fs := c.Flags()
	fs.StringVar(&ft, "format", "", formatHelp)
	fs.BoolVarP(&human, "human", "H", true, "Print sizes and dates in human readable format")
	fs.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	fs.StringVar(&platform, "platform", "", `Show history for the given platform. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")`)
	return c
}

func historyRowOf(h *wire.HistoryItem, human, trunc bool) historyRow {
	r := historyRow{ID: h.ID, Comment: h.Comment, CreatedBy: strings.ReplaceAll(h.CreatedBy, "\t", " ")}
	created := time.Unix(h.Created, 0)
	r.CreatedAt = created.Format(time.RFC3339)
	if h.Created <= time.Time.Unix(time.Time{}) {
		r.CreatedAt, r.CreatedSince = "", "N/A"
	} else if human {
		r.CreatedSince = format.Ago(now(), created)
	} else {
		r.CreatedSince = r.CreatedAt
	}
	if trunc {
		r.ID = format.ShortID(h.ID)
		r.CreatedBy = format.Ellipsis(r.CreatedBy, 45)
	}
	if human {
		r.Size = format.Size(h.Size)
	} else {
		r.Size = strconv.FormatInt(h.Size, 10)
	}
	return r
}

func (a *App) cmdTag() *cobra.Command {
	return &cobra.Command{
		Use: "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", Short: "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE", Args: exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			repo, tag, err := splitName(args[1])
			if err != nil {
				return fmt.Errorf("Error parsing reference: %q is not a valid repository/tag: %w", args[1], err)
			}
			api, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{"repo": {repo}, "tag": {tag}}
			return api.Do(cmd.Context(), client.Request{Method: "POST", Path: "/images/" + args[0] + "/tag", Query: q}, nil)
		},
	}
}

func (a *App) cmdRmi() *cobra.Command {
	var force, noPrune bool
	var platforms []string
	c := &cobra.Command{
		Use: "rmi [OPTIONS] IMAGE [IMAGE...]", Short: "Remove one or more images", Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			api, err := a.engine(ctx)
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
				one, err := platformQuery(p)
				if err != nil {
					return err
				}
				q.Add("platforms", one.Get("platform"))
			}
			fatal := false
			err = each(ctx, args, func(ref string) error {
				var out []wire.Removed
				if err := api.Do(ctx, client.Request{Method: "DELETE", Path: "/images/" + ref, Query: q}, &out); err != nil {
					fatal = fatal || !client.IsNotFound(err)
					return err
				}
				for _, r := range out {
					if r.Deleted != "" {
						fmt.Fprintf(a.Out, "Deleted: %s\n", r.Deleted)
					} else {
						fmt.Fprintf(a.Out, "Untagged: %s\n", r.Untagged)
					}
				}
				return nil
			})
			if err != nil && force && !fatal {
				fmt.Fprintln(a.Err, err)
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
