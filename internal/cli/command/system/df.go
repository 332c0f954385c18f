package system

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/table"
	"ply/internal/errs"
	"ply/internal/wire"
)

// dfRow is a row of system df. The exported fields are the names that templates of --format use.
type dfRow struct {
	format.RowMark
	Active, Reclaimable, Size, TotalCount, Type string
}

var dfTitles = format.Titles{"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}

// Df returns the command system df.
func Df(inv *command.Invocation) *cobra.Command {
	var tmpl string
	var verbose bool
	c := &cobra.Command{
		Use: "df [OPTIONS]", Short: "Show disk usage", Args: command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := inv.Engine(cmd.Context())
			if err != nil {
				return err
			}
			q := url.Values{}
			if !verbose {
				q.Set("totals", "1")
			}
			var d wire.DiskUsage
			if err := api.Do(cmd.Context(), client.Request{Path: "/system/df", Query: q}, &d); err != nil {
				return err
			}
			if verbose {
				return writeVerbose(&d, inv.Out, inv.Now(), tmpl)
			}
			if d.Totals == nil { // an engine that is not ply's
				t := d.Total()
				d.Totals = &t
			}
			return format.Table(inv.Out, tmpl, "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}", dfTitles, dfRows(*d.Totals))
		},
	}
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	return c
}

// reclaim returns the bytes that can be reclaimed, and which part of the whole they are.
func reclaim(u wire.UsageTotal) string {
	s := format.Size4(u.Reclaimable)
	if u.Size > 0 {
		s += fmt.Sprintf(" (%v%%)", u.Reclaimable*100/u.Size)
	}
	return s
}

// dfRows returns a row per kind of object.
func dfRows(t wire.UsageTotals) []dfRow {
	row := func(kind string, u wire.UsageTotal, reclaimable string) dfRow {
		return dfRow{Type: kind, TotalCount: fmt.Sprint(u.Count), Active: fmt.Sprint(u.Active), Size: format.Size4(u.Size), Reclaimable: reclaimable}
	}
	return []dfRow{
		row("Images", t.Images, reclaim(t.Images)), row("Containers", t.Containers, reclaim(t.Containers)), row("Local Volumes", t.Volumes, reclaim(t.Volumes)),
		row("Build Cache", t.BuildCache, format.Size4(t.BuildCache.Reclaimable)),
	}
}

// usageRows is what a template of df -v sees: the rows of every kind of object.
type usageRows struct {
	Images     []table.ImageRow
	Containers []table.PsRow
	Volumes    []table.VolumeRow
	BuildCache []cacheRow
}

// cacheRow is an entry of the build cache as a template of df -v sees it.
type cacheRow struct {
	format.RowMark
	CacheType, CreatedAt, CreatedSince, Description, ID, InUse, LastUsedAt, LastUsedSince, Parent, Shared, Size, UsageCount string
}

// usage returns the rows of an answer. Ages are relative to now.
func usage(d *wire.DiskUsage, now time.Time, noTrunc bool) *usageRows {
	na := func(n int64, text string) string {
		if n < 0 {
			return "N/A"
		}
		return text
	}
	u := &usageRows{Images: []table.ImageRow{}}
	for i := range d.Images { // one row per image, with its first name
		im := &d.Images[i]
		r := table.Images([]wire.Image{*im}, now, table.ImageOptions{Containers: true, NoTrunc: noTrunc})[0]
		if len(im.RepoTags) == 0 {
			r.Repository, r.Tag = "<none>", "<none>"
		}
		r.Digest = ""
		r.SharedSize = na(im.SharedSize, format.Size4(im.SharedSize))
		r.UniqueSize = na(im.SharedSize, format.Size4(im.Size-im.SharedSize))
		r.Containers = na(im.Containers, fmt.Sprint(im.Containers))
		u.Images = append(u.Images, r)
	}
	for i := range d.Containers {
		d.Containers[i].SizeRootFs = 0
		u.Containers = append(u.Containers, table.Ps(&d.Containers[i], now, !noTrunc))
	}
	for i := range d.Volumes {
		u.Volumes = append(u.Volumes, table.Volume(&d.Volumes[i]))
	}
	for i := range d.BuildCache {
		b := &d.BuildCache[i]
		r := cacheRow{CacheType: b.Type, CreatedAt: b.CreatedAt.String(), CreatedSince: format.Ago(now, b.CreatedAt), Description: b.Description, ID: b.ID, InUse: fmt.Sprint(b.InUse),
			Shared: fmt.Sprint(b.Shared), Size: format.Size4(b.Size), UsageCount: fmt.Sprint(b.UsageCount)}
		if !noTrunc {
			r.ID = format.ShortID(b.ID)
		}
		if b.LastUsedAt != nil {
			r.LastUsedAt, r.LastUsedSince = b.LastUsedAt.String(), format.Ago(now, *b.LastUsedAt)
		}
		u.BuildCache = append(u.BuildCache, r)
	}
	return u
}

// MarshalJSON encodes the rows as docker does.
func (u *usageRows) MarshalJSON() ([]byte, error) {
	var out struct{ Images, Containers, Volumes, BuildCache json.RawMessage }
	var err error
	for _, f := range []func(){
		func() { out.Images, err = format.EncodeRows(u.Images) },
		func() { out.Containers, err = format.EncodeRows(u.Containers) },
		func() { out.Volumes, err = format.EncodeRows(u.Volumes) },
		func() { out.BuildCache, err = format.EncodeRows(u.BuildCache) },
	} {
		if f(); err != nil {
			return nil, err
		}
	}
	return json.Marshal(out)
}

// writeVerbose prints a table per kind of object, or executes a template on the rows of all.
func writeVerbose(d *wire.DiskUsage, w io.Writer, now time.Time, tmpl string) error {
	if tmpl != "" {
		if tmpl == "json" {
			tmpl = "{{json .}}"
		}
		t, err := format.Parse(tmpl)
		if err != nil {
			return err
		}
		if err := t.Execute(w, usage(d, now, true)); err != nil {
			return errs.New(errs.Invalid, "template parsing error: %w", err)
		}
		return nil
	}
	u := usage(d, now, false)
	fmt.Fprint(w, "Images space usage:\n\n")
	if err := format.Table(w, "", "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}", table.ImageTitles, u.Images); err != nil {
		return err
	}
	fmt.Fprint(w, "\nContainers space usage:\n\n")
	if err := format.Table(w, "", "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}", table.PsTitles, u.Containers); err != nil {
		return err
	}
	fmt.Fprint(w, "\nLocal Volumes space usage:\n\n")
	if err := format.Table(w, "", "{{.Name}}\t{{.Links}}\t{{.Size}}", table.VolumeTitles, u.Volumes); err != nil {
		return err
	}
	var total int64
	cache := [][]string{{"CACHE ID", "CACHE TYPE", "SIZE", "CREATED", "LAST USED", "USAGE", "SHARED"}}
	for i, r := range u.BuildCache {
		if b := &d.BuildCache[i]; !b.Shared {
			total += b.Size
		}
		cache = append(cache, []string{r.ID, r.CacheType, r.Size, r.CreatedSince, r.LastUsedSince, r.UsageCount, r.Shared})
	}
	fmt.Fprintf(w, "\nBuild cache usage: %s\n\n", format.Size4(total))
	return format.Columns(w, 10, cache)
}
