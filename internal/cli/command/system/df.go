package system

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ply/internal/cli/client"
	"ply/internal/cli/command"
	"ply/internal/cli/format"
	"ply/internal/cli/table"
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
			var d wire.DiskUsage
			if err := api.Do(cmd.Context(), client.Request{Path: "/system/df"}, &d); err != nil {
				return err
			}
			if verbose {
				return writeVerbose(&d, inv.Out, inv.Now(), tmpl)
			}
			return format.Table(inv.Out, tmpl, "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}", dfTitles, dfRows(&d))
		},
	}
	c.Flags().StringVar(&tmpl, "format", "", format.TableHelp)
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	return c
}

// reclaim returns a size, and which part of the whole it is.
func reclaim(part, of int64) string {
	s := format.Size4(part)
	if of > 0 {
		s += fmt.Sprintf(" (%v%%)", part*100/of)
	}
	return s
}

// dfRows returns a row per kind of object.
func dfRows(d *wire.DiskUsage) []dfRow {
	var usedImages int
	var used int64
	for i := range d.Images {
		im := &d.Images[i]
		if im.Containers > 0 {
			usedImages++
			if im.Size != -1 && im.SharedSize != -1 {
				used += im.Size - im.SharedSize
			}
		}
	}
	rows := []dfRow{{Type: "Images", TotalCount: fmt.Sprint(len(d.Images)), Active: fmt.Sprint(usedImages), Size: format.Size4(d.LayersSize), Reclaimable: reclaim(d.LayersSize-used, d.LayersSize)}}
	var active int
	var size, free int64
	for i := range d.Containers {
		c := &d.Containers[i]
		size += c.SizeRw
		if strings.Contains(c.State, "running") || strings.Contains(c.State, "paused") || strings.Contains(c.State, "restarting") {
			active++
		} else {
			free += c.SizeRw
		}
	}
	rows = append(rows, dfRow{Type: "Containers", TotalCount: fmt.Sprint(len(d.Containers)), Active: fmt.Sprint(active), Size: format.Size4(size), Reclaimable: reclaim(free, size)})
	active, size, free = 0, 0, 0
	for i := range d.Volumes {
		u := d.Volumes[i].UsageData
		if u == nil {
			continue
		}
		if u.RefCount > 0 {
			active++
		}
		if u.Size != -1 {
			size += u.Size
			if u.RefCount == 0 {
				free += u.Size
			}
		}
	}
	rows = append(rows, dfRow{Type: "Local Volumes", TotalCount: fmt.Sprint(len(d.Volumes)), Active: fmt.Sprint(active), Size: format.Size4(size), Reclaimable: reclaim(free, size)})
	active, size, free = 0, 0, 0
	for i := range d.BuildCache {
		b := &d.BuildCache[i]
		if b.InUse {
			active++
		} else if !b.Shared {
			free += b.Size
		}
		if !b.Shared {
			size += b.Size
		}
	}
	return append(rows, dfRow{Type: "Build Cache", TotalCount: fmt.Sprint(len(d.BuildCache)), Active: fmt.Sprint(active), Size: format.Size4(size), Reclaimable: format.Size4(free)})
}

// writeVerbose prints a table per kind of object, or the whole answer with a template. Ages are relative to now.
func writeVerbose(d *wire.DiskUsage, w io.Writer, now time.Time, tmpl string) error {
	if tmpl != "" {
		b, err := json.Marshal(d)
		if err != nil {
			return err
		}
		if tmpl == "json" {
			tmpl = "{{json .}}"
		}
		t, err := format.Parse(tmpl)
		if err != nil {
			return err
		}
		return format.Execute(w, t, b)
	}
	fmt.Fprint(w, "Images space usage:\n\n")
	na := func(n int64, text string) string {
		if n < 0 {
			return "N/A"
		}
		return text
	}
	rows := []table.ImageRow{}
	for i := range d.Images { // one row per image, with its first name
		im := &d.Images[i]
		r := table.Images([]wire.Image{*im}, now, table.ImageOptions{Containers: true})[0]
		if len(im.RepoTags) == 0 {
			r.Repository, r.Tag = "<none>", "<none>"
		}
		r.SharedSize = na(im.SharedSize, format.Size4(im.SharedSize))
		r.UniqueSize = na(im.SharedSize, format.Size4(im.Size-im.SharedSize))
		r.Containers = na(im.Containers, fmt.Sprint(im.Containers))
		rows = append(rows, r)
	}
	if err := format.Table(w, "", "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}", table.ImageTitles, rows); err != nil {
		return err
	}
	fmt.Fprint(w, "\nContainers space usage:\n\n")
	containers := make([]table.PsRow, len(d.Containers))
	for i := range d.Containers {
		d.Containers[i].SizeRootFs = 0
		containers[i] = table.Ps(&d.Containers[i], now, true)
	}
	if err := format.Table(w, "", "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}", table.PsTitles, containers); err != nil {
		return err
	}
	fmt.Fprint(w, "\nLocal Volumes space usage:\n\n")
	volumes := make([]table.VolumeRow, len(d.Volumes))
	for i := range d.Volumes {
		volumes[i] = table.Volume(&d.Volumes[i])
	}
	if err := format.Table(w, "", "{{.Name}}\t{{.Links}}\t{{.Size}}", table.VolumeTitles, volumes); err != nil {
		return err
	}
	var total int64
	cache := [][]string{{"CACHE ID", "CACHE TYPE", "SIZE", "CREATED", "LAST USED", "USAGE", "SHARED"}}
	for _, b := range d.BuildCache {
		last := ""
		if b.LastUsedAt != nil {
			last = format.Ago(now, *b.LastUsedAt)
		}
		if !b.Shared {
			total += b.Size
		}
		cache = append(cache, []string{format.ShortID(b.ID), b.Type, format.Size4(b.Size), format.Ago(now, b.CreatedAt), last, fmt.Sprint(b.UsageCount), fmt.Sprint(b.Shared)})
	}
	fmt.Fprintf(w, "\nBuild cache usage: %s\n\n", format.Size4(total))
	return format.Columns(w, 10, cache)
}
