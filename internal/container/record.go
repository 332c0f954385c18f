package container

import (
	"maps"
	"slices"
	"time"

	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/volume"
)

// record is a container in the database; the version of its form is the database's (meta.Containers). Collection and image
// removal read its first two fields and the layers of mounted images.
type record struct {
	Image oci.ImageID `json:"image"`
	Chain oci.Chain   `json:"chain"`

	Name      string                      `json:"name"`
	Created   time.Time                   `json:"created"`
	ImageName string                      `json:"imageName"`
	Platform  oci.Platform                `json:"platform"`
	Path      string                      `json:"path"`
	Args      []string                    `json:"args,omitempty"`
	Spec      spec.Spec                   `json:"spec"` // with the image's defaults merged in
	State     State                       `json:"state"`
	Mounts    []volume.Mount              `json:"mounts,omitempty"`
	Networks  map[string]network.Endpoint `json:"networks,omitempty"`
	Ports     []network.PortBinding       `json:"ports,omitempty"`
	LogPath   string                      `json:"logPath,omitempty"`
	Driver    string                      `json:"driver"`
	Boot      string                      `json:"boot,omitempty"`    // boot of the last start
	Run       string                      `json:"run,omitempty"`     // ID of the last start, which its exit file has too
	Stopped   bool                        `json:"stopped,omitempty"` // by a user: restart policies do not start it
	Netns     string                      `json:"netns,omitempty"`   // namespace that Attach made and Detach must remove
	Step      bool                        `json:"step,omitempty"`    // of a build: what the builder does not remove, the next engine does
}

// volatile reports whether nothing of the container has to survive a power cut, because it is removed after one.
func (r *record) volatile() bool { return r.Spec.AutoRemove || r.Step }

// load reads the record of a container. Errors: DataLoss when it is damaged.
func (e *env) load(tx *meta.Tx, id oci.ContainerID) (*ctr, error) {
	if !oci.IsHex64(string(id)) {
		return nil, errs.New(errs.DataLoss, "container %q: not an ID", id)
	}
	r, err := meta.As[record](tx.Containers).Get(id)
	if err != nil {
		return nil, err
	}
	c := e.newCtr(id)
	c.setRecord(r)
	return c, nil
}

// saveNew writes the first record, unless the image or one that is mounted was removed since the creation began.
func (c *ctr) saveNew() error {
	return c.env.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if !tx.Images.Has(c.rec.Image) {
			return errs.New(errs.NotFound, "No such image: %s", c.rec.ImageName)
		}
		for _, m := range c.rec.Mounts {
			if m.Type == "image" && slices.ContainsFunc(c.rec.Spec.Mounts, func(s volume.MountSpec) bool { return s.Source == m.Name }) && !tx.Images.Has(m.Image) {
				return errs.New(errs.NotFound, "No such image: %s", m.Name)
			}
		}
		return meta.As[record](tx.Containers).Put(c.id, c.rec)
	})
}

// save writes the record as it is now, with the changes that edit makes to the written copy only. It is durable when
// save returns. The writes of one container are ordered, so the last state wins.
func (c *ctr) save(edit ...func(*record)) error {
	c.saveMu.Lock()
	defer c.saveMu.Unlock()
	c.mu.Lock()
	gone := c.gone
	copied := c.rec // what its pointers, slices and maps lead to is replaced, never changed
	c.mu.Unlock()
	if gone {
		return nil
	}
	for _, f := range edit {
		f(&copied)
	}
	err := c.env.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if !tx.Containers.Has(c.id) {
			return nil // removed meanwhile; do not bring it back
		}
		return meta.As[record](tx.Containers).Put(c.id, copied)
	})
	if err != nil {
		return errs.New(errs.Internal, "container %s: record: %w", c.id.Short(), err)
	}
	return nil
}

// saveLogged is save for code that has no caller to return an error to.
func (c *ctr) saveLogged() {
	if err := c.save(); err != nil {
		c.env.log.Error("container record not written", "container", c.id, "err", err)
	}
}

// snapshot copies what list and inspect show.
func (c *ctr) snapshot() *Container {
	execs := c.sessions.Execs()
	slices.Sort(execs)
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.rec
	out := &Container{
		ID: c.id, Name: r.Name, Created: r.Created, Image: r.Image, ImageName: r.ImageName,
		Path: r.Path, Args: slices.Clone(r.Args), Spec: r.Spec, State: r.State,
		Mounts: slices.Clone(r.Mounts), Networks: maps.Clone(r.Networks), Ports: slices.Clone(r.Ports),
		Execs: execs, LogPath: r.LogPath, Driver: r.Driver,
		HostnamePath: c.paths.hostname, HostsPath: c.paths.hosts, ResolvConfPath: c.paths.resolv,
		NetnsPath: r.Netns, Step: r.Step,
		AppArmor: appArmorProfile(&r.Spec), SizeRw: -1, SizeRootFs: -1,
	}
	if h := r.State.Health; h != nil {
		copied := *h
		copied.Log = slices.Clone(h.Log)
		out.State.Health = &copied
	}
	return out
}
