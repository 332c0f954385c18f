package table

import (
	"fmt"
	"strings"
	"time"

	"ply/internal/cli/format"
	"ply/internal/wire"
)

// BuildRow is a build as a template sees it.
type BuildRow struct {
	format.RowMark

	ID, Name, Status, Steps string
	CreatedSince, CreatedAt string
	Duration, Error         string
}

// BuildTitles are the titles of the columns of builder ls.
var BuildTitles = format.Titles{
	"ID": "BUILD ID", "Name": "NAME", "Status": "STATUS", "Steps": "STEPS", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "Duration": "DURATION", "Error": "ERROR",
}

// Build returns the row of a build.
func Build(b *wire.PastBuild, now time.Time, whole bool) BuildRow {
	r := BuildRow{
		ID: b.ID, Name: b.Name, Status: b.Status, Steps: fmt.Sprintf("%d/%d cached", b.Cached, b.Steps), Error: b.Error,
		CreatedSince: format.Ago(now, b.Started), CreatedAt: b.Started.Local().Format(time.DateTime), Duration: time.Duration(b.Duration).Round(100 * time.Millisecond).String(),
	}
	if !whole && len(r.ID) > 12 {
		r.ID = r.ID[:12]
	}
	return r
}

// BuildCacheRow is an entry of the build cache as a template sees it.
type BuildCacheRow struct {
	format.RowMark

	ID, Description, Size, LastUsed, Shared, CreatedSince, UsageCount, Type string
}

// BuildCacheTitles are the titles of the columns of builder du.
var BuildCacheTitles = format.Titles{
	"ID": "ID", "Description": "DESCRIPTION", "Size": "SIZE", "LastUsed": "LAST ACCESSED", "Shared": "SHARED", "CreatedSince": "CREATED", "UsageCount": "USAGE", "Type": "TYPE",
}

// maxDescription is how much of a description builder du shows.
const maxDescription = 60

// BuildCache returns the row of an entry of the build cache.
func BuildCache(e *wire.BuildCache, now time.Time) BuildCacheRow {
	r := BuildCacheRow{
		ID: e.ID, Size: format.Size4(e.Size), Shared: fmt.Sprint(e.Shared), CreatedSince: format.Ago(now, e.CreatedAt), UsageCount: fmt.Sprint(e.UsageCount), Type: e.Type,
		Description: strings.Join(strings.Fields(e.Description), " "),
	}
	if text := []rune(r.Description); len(text) > maxDescription {
		r.Description = string(text[:maxDescription-1]) + "…"
	}
	if e.LastUsedAt != nil {
		r.LastUsed = format.Ago(now, *e.LastUsedAt)
	}
	return r
}
