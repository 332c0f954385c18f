package table

import (
	"strconv"
	"strings"
	"time"

	"ply/internal/cli/format"
	"ply/internal/wire"
)

// ImageRow is a row of images. The exported fields are the names that templates of --format use.
type ImageRow struct {
	format.RowMark
	Containers, CreatedAt, CreatedSince, Digest, ID, Repository, SharedSize, Size, Tag, UniqueSize, VirtualSize string
}

// ImageTitles are the titles of the columns of images.
var ImageTitles = format.Titles{
	"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT",
	"Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}

// ImageOptions say what the rows of images hold.
type ImageOptions struct {
	Digests    bool // one row per digest, not one per tag
	Containers bool // the number of containers, not "N/A"
	NoTrunc    bool // whole IDs
}

// Images returns the rows of a list of images: one per name of every image. Ages are relative to now.
func Images(list []wire.Image, now time.Time, o ImageOptions) []ImageRow {
	rows := []ImageRow{}
	for i := range list {
		im := &list[i]
		for _, n := range imageNames(im, o.Digests) {
			r := ImageRow{ID: im.ID, Repository: n[0], Tag: n[1], Digest: n[2], CreatedAt: format.Stamp(im.Created),
				Size: format.Size(im.Size), VirtualSize: format.Size4(im.Size), Containers: "N/A", SharedSize: "N/A", UniqueSize: "N/A"}
			r.CreatedSince = "N/A"
			if t := time.Unix(im.Created, 0); im.Created > 0 {
				r.CreatedSince = format.Ago(now, t)
			}
			if !o.NoTrunc {
				r.ID = format.ShortID(im.ID)
			}
			if im.Containers >= 0 && o.Containers {
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

// imageNames returns repository, tag and digest of every row of an image.
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
