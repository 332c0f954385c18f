package table

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/cli/format"
	"ply/internal/cli/opts"
	"ply/internal/wire"
)

// PsRow is a row of ps. The exported fields are the names that templates of --format use.
type PsRow struct {
	format.RowMark
	Command, CreatedAt, ID, Image, Labels, LocalVolumes, Mounts, Names, Networks string
	Platform                                                                     *struct{}
	Ports, RunningFor, Size, State, Status                                       string
	labels                                                                       map[string]string
}

// Label returns the value of one label.
func (r PsRow) Label(name string) string { return r.labels[name] }

// PsTitles are the titles of the columns of ps.
var PsTitles = format.Titles{
	"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Status": "STATUS",
	"Ports": "PORTS", "Names": "NAMES", "Size": "SIZE", "Labels": "LABELS", "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES",
	"Networks": "NETWORKS", "State": "STATE", "Platform": "PLATFORM",
}

// Ps returns the row of a container. Ages are relative to now; trunc shortens IDs, commands and mounts, and leaves out the names
// that links give.
func Ps(c *wire.Container, now time.Time, trunc bool) PsRow {
	r := PsRow{
		ID: c.ID, Image: c.Image, CreatedAt: format.Stamp(c.Created), RunningFor: format.Ago(now, time.Unix(c.Created, 0)),
		Ports: ports(c.Ports), State: c.State, Status: c.Status, Labels: strings.Join(opts.Pairs(c.Labels), ","), labels: c.Labels,
	}
	command := c.Command
	if trunc {
		r.ID = format.ShortID(c.ID)
		command = format.Ellipsis(command, 20)
		r.Image = shownImage(c)
	}
	if r.Image == "" {
		r.Image = "<no image>"
	}
	r.Command = strconv.Quote(command)
	var names []string
	for _, n := range c.Names {
		n = strings.TrimPrefix(n, "/")
		if trunc && strings.Contains(n, "/") {
			continue // a name that a link gives
		}
		names = append(names, n)
	}
	r.Names = strings.Join(names, ",")
	r.Size = format.Size(c.SizeRw)
	if c.SizeRootFs > 0 {
		r.Size += " (virtual " + format.Size(c.SizeRootFs) + ")"
	}
	volumes := 0
	var mounts []string
	for _, m := range c.Mounts {
		if m.Driver == "local" {
			volumes++
		}
		name := m.Name
		if name == "" {
			name = m.Source
		}
		if trunc {
			name = format.Ellipsis(name, 15)
		}
		mounts = append(mounts, name)
	}
	r.LocalVolumes, r.Mounts = strconv.Itoa(volumes), strings.Join(mounts, ",")
	nets := make([]string, 0, len(c.NetworkSettings.Networks))
	for n := range c.NetworkSettings.Networks {
		nets = append(nets, n)
	}
	slices.Sort(nets)
	r.Networks = strings.Join(nets, ",")
	return r
}

// shownImage shortens an image that is given by ID, and cuts the digest from a name that has one.
func shownImage(c *wire.Container) string {
	if strings.HasPrefix(c.Image, "sha256:") || strings.HasPrefix(c.ImageID, "sha256:"+c.Image) && len(c.Image) == 64 {
		return format.ShortID(c.Image)
	}
	if name, digest, ok := strings.Cut(c.Image, "@"); ok && digest != "" {
		return name
	}
	return c.Image
}
