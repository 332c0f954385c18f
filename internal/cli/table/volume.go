package table

import (
	"fmt"
	"strings"

	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// VolumeRow is a row of volume ls. The exported fields are the names that templates of --format use.
type VolumeRow struct {
	format.RowMark
	Availability, Driver, Group, Labels, Links, Mountpoint, Name, Scope, Size, Status string
	labels                                                                            map[string]string
}

// Label returns the value of one label.
func (r VolumeRow) Label(name string) string { return r.labels[name] }

// VolumeTitles are the titles of the columns of volume ls.
var VolumeTitles = format.Titles{"Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS",
	"Links": "LINKS", "Size": "SIZE", "Availability": "AVAILABILITY", "Group": "GROUP", "Status": "STATUS"}

// Volume returns the row of a volume.
func Volume(v *wire.Volume) VolumeRow {
	r := VolumeRow{Availability: "N/A", Group: "N/A", Status: "N/A", Driver: v.Driver, Name: v.Name, Mountpoint: v.Mountpoint, Scope: v.Scope,
		Labels: strings.Join(opts.Pairs(v.Labels), ","), Links: "N/A", Size: "N/A", labels: v.Labels}
	if v.UsageData != nil {
		r.Links, r.Size = fmt.Sprint(v.UsageData.RefCount), format.Size4(v.UsageData.Size)
	}
	return r
}
