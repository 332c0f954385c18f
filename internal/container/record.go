package container

import (
	"encoding/json"
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

// record is a container in the database. Collection and image removal read its first two fields.
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
	Stopped   bool                        `json:"stopped,omitempty"` // by a user: restart policies do not start it
	Netns     string                      `json:"netns,omitempty"`   // namespace that Attach made and Detach must remove
}

func (e *env) load(id oci.ContainerID, raw json.RawMessage) (*ctr, error) {
	if !oci.IsHex64(string(id)) {
		return nil, errs.New(errs.DataLoss, "container %q: not an ID", id)
	}
	c := e.newCtr(id)
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, errs.New(errs.DataLoss, "container %s: record: %w", id.Short(), err)
	}
	c.setRecord(r)
	return c, nil
}

// saveNew writes the first record, unless the image was removed since the creation began.
func (c *ctr) saveNew() error {
	raw, err := json.Marshal(&c.rec)
	if err != nil {
		return errs.New(errs.Internal, "container %s: record: %w", c.id.Short(), err)
	}
	return c.env.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if !tx.Images.Has(c.rec.Image) {
			return errs.New(errs.NotFound, "No such image: %s", c.rec.ImageName)
		}
		return tx.Containers.Put(c.id, raw)
	})
}

// save writes the record as it is now, with the changes that edit makes to the written copy only. It is durable when
// save returns. The writes of one container are ordered, so the last state wins.
func (c *ctr) save(edit ...func(*record)) error {
	c.saveMu.Lock()
	defer c.saveMu.Unlock()
	c.mu.Lock()
	gone := c.gone
	copied := c.rec
	for _, f := range edit {
		f(&copied)
	}
	raw, err := json.Marshal(&copied)
	c.mu.Unlock()
	if err != nil {
		return errs.New(errs.Internal, "container %s: record: %w", c.id.Short(), err)
	}
	if gone {
		return nil
	}
	err = c.env.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if !tx.Containers.Has(c.id) {
			return nil // removed meanwhile; do not bring it back
		}
		return tx.Containers.Put(c.id, raw)
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
		SizeRw: -1, SizeRootFs: -1,
	}
	if h := r.State.Health; h != nil {
		copied := *h
		copied.Log = slices.Clone(h.Log)
		out.State.Health = &copied
	}
	return out
}
