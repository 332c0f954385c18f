package docker

import (
	"net/http"
	"strings"
	"time"

	"ply/internal/container"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/wire"
)

// imageHandlers serves the images in the store.
type imageHandlers struct {
	images     Images
	containers containerLister
	driver     string // the storage driver
}

func (h imageHandlers) routes(add adder) {
	add(get, "/images/json", h.list)
	add(get, "/images/tree", h.tree)
	add(get, "/images/{name...}/history", h.history)
	add(get, "/images/{name...}/layers", h.layers)
	add(get, "/images/{name...}/json", h.inspect)
	add(post, "/images/prune", h.prune)
	add(post, "/images/{name...}/tag", h.tag)
	add(remove, "/images/{name...}", h.remove)
}

// noName is what old clients expect for an image without names.
const noName = "<none>"

func summaryOf(img *image.Image, v int, containers int64, shared bool) wire.Image {
	a := wire.Image{Containers: containers, ID: img.ID.String(), Labels: img.Config.Config.Labels, ParentID: img.Parent.String(),
		RepoDigests: familiars(img.Digests), RepoTags: familiars(img.Names), SharedSize: -1, Size: img.Size}
	if shared {
		a.SharedSize = img.Shared
	}
	if img.Damaged != nil {
		a.Damaged = img.Damaged.Error()
	}
	if img.ID == "" { // of a name whose record is damaged; clients take an ID for granted
		a.ID = "sha256:" + strings.Repeat("0", 64)
	}
	if img.Config.Created != nil {
		a.Created = img.Config.Created.Unix()
	}
	if v < 43 {
		if len(a.RepoTags) == 0 && len(a.RepoDigests) == 0 {
			a.RepoDigests = []string{noName + "@" + noName}
		}
		if len(a.RepoTags) == 0 {
			a.RepoTags = []string{noName + ":" + noName}
		}
	}
	if v < 44 {
		a.VirtualSize = &img.Size
	}
	return a
}

func familiars(refs []oci.Reference) []string {
	names := make([]string, 0, len(refs))
	for _, r := range refs {
		names = append(names, r.Familiar())
	}
	return names
}

func (h imageHandlers) list(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	if old := c.get("filter"); old != "" { // until 1.27 the filter by name was a parameter of its own
		filters["reference"] = append(filters["reference"], old)
	}
	if c.bool("identity") {
		return unavailable("listing the identities of images", "this engine does not verify signatures")
	}
	shared := c.bool("shared-size")
	images, err := h.images.List(c.ctx(), image.ListOptions{All: c.bool("all"), Filters: filters, Shared: shared})
	if err != nil {
		return err
	}
	uses, err := h.uses(c)
	if err != nil {
		return err
	}
	list := make([]wire.Image, 0, len(images))
	for _, img := range images {
		n := int64(-1)
		if uses != nil {
			n = uses[img.ID]
		}
		list = append(list, summaryOf(img, c.v, n, shared))
	}
	if c.bool("manifests") && c.v >= 47 {
		if err := h.addManifests(c, images, list); err != nil {
			return err
		}
	}
	return c.json(http.StatusOK, list)
}

// uses returns the number of containers of each image, for the versions of the API that show it.
func (h imageHandlers) uses(c *call) (map[oci.ImageID]int64, error) {
	if c.v < 51 {
		return nil, nil
	}
	list, err := h.containers.List(c.ctx(), container.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	uses := map[oci.ImageID]int64{}
	for _, ctr := range list {
		uses[ctr.Image]++
	}
	return uses, nil
}

func imageRunConfigOf(rc oci.RunConfig, v int) wire.ImageConfig {
	a := wire.ImageConfig{ArgsEscaped: rc.ArgsEscaped, Cmd: rc.Cmd, Entrypoint: rc.Entrypoint, Env: rc.Env, ExposedPorts: rc.ExposedPorts,
		Healthcheck: rc.Healthcheck, Labels: rc.Labels, OnBuild: rc.OnBuild, Shell: rc.Shell, StopSignal: rc.StopSignal, User: rc.User,
		Volumes: rc.Volumes, WorkingDir: rc.WorkingDir}
	if v < 50 {
		a.EmptyContainerConfig = &wire.EmptyContainerConfig{}
	}
	return a
}

func (h imageHandlers) inspect(c *call) error {
	manifests := c.bool("manifests") && c.v >= 48
	if manifests && c.get("platform") != "" {
		return errs.New(errs.Invalid, "conflicting options: manifests and platform options cannot both be set")
	}
	img, err := h.image(c)
	if err != nil {
		return err
	}
	cfg := img.Config
	a := wire.ImageDetail{ID: img.ID.String(), RepoTags: familiars(img.Names), RepoDigests: familiars(img.Digests), Parent: img.Parent.String(),
		Comment: lastComment(cfg), DockerVersion: cfg.DockerVersion, Author: cfg.Author, Config: imageRunConfigOf(cfg.Config, c.v),
		Architecture: cfg.Architecture, Variant: cfg.Variant, Os: cfg.OS, OsVersion: cfg.OSVersion, Size: img.Size,
		GraphDriver: wire.GraphDriver{Name: h.driver}}
	a.RootFS.Type = cfg.RootFS.Type
	for _, d := range cfg.RootFS.DiffIDs {
		a.RootFS.Layers = append(a.RootFS.Layers, d.String())
	}
	a.Metadata.LastTagTime = img.Tagged
	switch {
	case cfg.Created != nil:
		a.Created = cfg.Created.Format(time.RFC3339Nano)
	case c.v < 44:
		a.Created = time.Time{}.Format(time.RFC3339Nano)
	}
	if c.v < 44 {
		a.VirtualSize = &img.Size
	}
	if manifests {
		if a.Manifests, err = h.manifests(c, c.vars["name"], nil); err != nil {
			return err
		}
	}
	empty := imageRunConfigOf(oci.RunConfig{}, c.v)
	a.ContainerConfig = &empty
	if c.v < 45 {
		a.Container = &cfg.Container
	}
	return c.json(http.StatusOK, a)
}

// lastComment returns the message of a commit, from the comment of the config or of the newest step of its history.
func lastComment(cfg oci.Config) string {
	if cfg.Comment == "" && len(cfg.History) > 0 {
		return cfg.History[len(cfg.History)-1].Comment
	}
	return cfg.Comment
}

func (h imageHandlers) history(c *call) error {
	img, err := h.image(c)
	if err != nil {
		return err
	}
	entries, err := h.images.History(c.ctx(), img.ID.String())
	if err != nil {
		return err
	}
	list := make([]wire.HistoryItem, 0, len(entries))
	for _, h := range entries {
		e := wire.HistoryItem{Comment: h.Comment, CreatedBy: h.CreatedBy, ID: h.ID.String(), Size: h.Size}
		if !h.Created.IsZero() {
			e.Created = h.Created.Unix()
		}
		if h.ID == "" {
			e.ID = "<missing>"
		}
		if len(h.Tags) > 0 {
			e.Tags = familiars(h.Tags)
		}
		list = append(list, e)
	}
	return c.json(http.StatusOK, list)
}

func layersOf(views []*image.LayerView) []*wire.Layer {
	list := make([]*wire.Layer, 0, len(views))
	for _, l := range views {
		a := &wire.Layer{DiffID: l.DiffID.String(), ChainID: l.Chain.String(), Size: l.Size, VirtualSize: l.Virtual, CreatedBy: l.CreatedBy,
			Tags: familiars(l.Tags), Images: []string{}}
		if l.Shown != nil {
			a.Tags = l.Shown
		}
		for _, id := range l.Images {
			a.Images = append(a.Images, id.String())
		}
		if len(l.Children) > 0 {
			a.Children = layersOf(l.Children)
		}
		list = append(list, a)
	}
	return list
}

func (h imageHandlers) layers(c *call) error {
	layers, err := h.images.Layers(c.ctx(), c.vars["name"])
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, layersOf(layers))
}

func (h imageHandlers) tree(c *call) error {
	opts := image.TreeOptions{History: c.get("history") == "" || c.bool("history")}
	if c.bool("listed") {
		filters, err := c.filters()
		if err != nil {
			return err
		}
		opts.Listed = &image.ListOptions{All: c.bool("all"), Filters: filters}
	}
	tree, err := h.images.Tree(c.ctx(), opts)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, layersOf(tree))
}

func (h imageHandlers) tag(c *call) error {
	name, err := repoTag(c.get("repo"), c.get("tag"))
	if err != nil {
		return err
	}
	if err := h.images.Tag(c.ctx(), c.vars["name"], name.WithDefaultTag()); err != nil {
		return err
	}
	return c.none(http.StatusCreated)
}

// repoTag returns the reference that Docker's two parameters make. A tag that is a digest makes repo@digest.
func repoTag(repo, tag string) (oci.Reference, error) {
	if repo == "" {
		return oci.Reference{}, errs.New(errs.Invalid, "invalid reference format: the repository's name is missing")
	}
	ref, err := oci.ParseReference(repo)
	if err != nil {
		return oci.Reference{}, err
	}
	switch {
	case tag == "":
		return ref, nil
	case strings.Contains(tag, ":"):
		d, err := oci.ParseDigest(tag)
		if err != nil {
			return oci.Reference{}, err
		}
		return ref.WithDigest(d), nil
	}
	return ref.WithTag(tag)
}

func removedList(removed []image.Removed) []wire.Removed {
	list := make([]wire.Removed, 0, len(removed))
	for _, r := range removed {
		list = append(list, wire.Removed{Untagged: r.Untagged, Deleted: r.Deleted.String()})
	}
	return list
}

func (h imageHandlers) remove(c *call) error {
	list, err := platformParams(c, "platforms")
	if err != nil {
		return err
	}
	removed, err := h.images.Remove(c.ctx(), c.vars["name"], image.RemoveOptions{Force: c.bool("force"), NoPrune: c.bool("noprune"), Platforms: list})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, removedList(removed))
}

func (h imageHandlers) prune(c *call) error {
	filters, err := c.filters()
	if err != nil {
		return err
	}
	removed, freed, err := h.images.Prune(c.ctx(), image.PruneOptions{Filters: filters})
	if err != nil {
		return err
	}
	answer := wire.ImagesPruned{SpaceReclaimed: freed} // as in Docker, null when nothing was removed
	if len(removed) > 0 {
		answer.ImagesDeleted = removedList(removed)
	}
	return c.json(http.StatusOK, answer)
}
