package container

import (
	"context"
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ply/internal/container/shim"
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
	Stopped   bool                        `json:"stopped,omitempty"` // by a user: policies leave it alone
	Netns     string                      `json:"netns,omitempty"`   // namespace that Attach made and Detach must remove
}

// ctr is one container in memory.
type ctr struct {
	id   oci.ContainerID
	op   chan struct{} // see Service
	dir  string        // <data-root>/containers/<id>
	exec string        // <exec-root>/containers/<id>: the bundle
	root rootfs

	saveMu sync.Mutex

	// freezing is held for writing while the processes are frozen or thawed, for reading while an exec starts: a
	// process that is born into a frozen cgroup blocks its runtime.
	freezing sync.RWMutex

	mu      sync.Mutex
	rec     record
	life    *life // while a process lives
	waiters map[*waiter]struct{}
	waiting map[*pending]struct{} // attached before the start
	execs   map[string]*execution
	again   context.CancelFunc // cancels a restart that is due
	failed  int                // restarts in a row that did not last
	gone    bool               // removed, or about to be

	// done ends when the container is removed; copies out of it watch it.
	done   context.Context
	remove context.CancelFunc
}

// life is one run of a container's process.
type life struct {
	client *shim.Client
	began  time.Time
	ctx    context.Context // ends with the run
	end    context.CancelFunc
	manual bool // stop, kill or restart was asked for
	keep   bool // its end does not remove the container: it is being restarted
}

func (s *Service) newCtr(id oci.ContainerID) *ctr {
	c := &ctr{
		id: id, op: make(chan struct{}, 1),
		dir:     filepath.Join(s.opts.DataRoot, "containers", string(id)),
		exec:    filepath.Join(s.opts.ExecRoot, "containers", string(id)),
		waiters: map[*waiter]struct{}{},
		waiting: map[*pending]struct{}{},
		execs:   map[string]*execution{},
	}
	c.done, c.remove = context.WithCancel(context.Background())
	return c
}

func (s *Service) load(id oci.ContainerID, raw json.RawMessage) (*ctr, error) {
	if !oci.IsHex64(string(id)) {
		return nil, errs.New(errs.DataLoss, "container %q: not an ID", id)
	}
	c := s.newCtr(id)
	if err := json.Unmarshal(raw, &c.rec); err != nil {
		return nil, errs.New(errs.DataLoss, "container %s: record: %w", id.Short(), err)
	}
	return c, nil
}

// lock takes the life-cycle slot of a container that is not removed; release gives it back.
func (c *ctr) lock(ctx context.Context) error {
	if err := c.acquire(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone {
		c.release()
		return errs.New(errs.NotFound, "No such container: %s", c.id)
	}
	return nil
}

// acquire takes the life-cycle slot.
func (c *ctr) acquire(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	default:
	}
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *ctr) release() { <-c.op }

func (c *ctr) status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.State.Status
}

// isActive reports whether there is a process, or will be one again without anybody asking.
func (c *ctr) isActive() bool {
	switch c.status() {
	case StatusRunning, StatusPaused, StatusRestarting:
		return true
	}
	return false
}

func (c *ctr) name() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Name
}

// running gives the client of a container that runs (perhaps paused); the error is docker's.
func (c *ctr) running() (*life, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life == nil || (c.rec.State.Status != StatusRunning && c.rec.State.Status != StatusPaused) {
		return nil, errs.New(errs.Conflict, "container %s is not running", c.id)
	}
	return c.life, nil
}

// bundle paths.
func (c *ctr) rootfsDir() string   { return filepath.Join(c.exec, shim.RootfsDir) }
func (c *ctr) initFile() string    { return filepath.Join(c.exec, shim.InitFile) }
func (c *ctr) netnsPath() string   { return filepath.Join(c.exec, "netns") }
func (c *ctr) shmPath() string     { return filepath.Join(c.exec, "shm") }
func (c *ctr) exitPath() string    { return filepath.Join(c.dir, shim.ExitFile) }
func (c *ctr) hostsPath() string   { return filepath.Join(c.dir, "hosts") }
func (c *ctr) hostPath() string    { return filepath.Join(c.dir, "hostname") }
func (c *ctr) resolvPath() string  { return filepath.Join(c.dir, "resolv.conf") }
func (c *ctr) logFile() string     { return filepath.Join(c.dir, string(c.id)+"-json.log") }
func (c *ctr) writableDir() string { return filepath.Join(c.dir, "rw") }

// save makes the record as it is now durable, with what edit changes in the written copy only. Writes of one
// container are ordered, so the last state wins.
func (s *Service) save(c *ctr, edit ...func(*record)) error {
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
	err = s.opts.Store.Meta.Update(func(tx *meta.Tx) error {
		if !tx.Containers.Has(c.id) {
			return nil // removed; never bring it back
		}
		return tx.Containers.Put(c.id, raw)
	})
	if err != nil {
		return errs.New(errs.Internal, "container %s: record: %w", c.id.Short(), err)
	}
	return nil
}

// saveLogged is save for paths on which nobody can be told.
func (s *Service) saveLogged(c *ctr) {
	if err := s.save(c); err != nil {
		s.log.Error("container record not written", "container", c.id, "err", err)
	}
}

// snapshot copies what list and inspect show.
func (s *Service) snapshot(c *ctr) *Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.rec
	out := &Container{
		ID: c.id, Name: r.Name, Created: r.Created, Image: r.Image, ImageName: r.ImageName,
		Path: r.Path, Args: slices.Clone(r.Args), Spec: r.Spec, State: r.State,
		Mounts: slices.Clone(r.Mounts), Networks: maps.Clone(r.Networks), Ports: slices.Clone(r.Ports),
		LogPath: r.LogPath, Driver: r.Driver,
		HostnamePath: c.hostPath(), HostsPath: c.hostsPath(), ResolvConfPath: c.resolvPath(),
		SizeRw: -1, SizeRootFs: -1,
	}
	if h := r.State.Health; h != nil {
		copied := *h
		copied.Log = slices.Clone(h.Log)
		out.State.Health = &copied
	}
	for id := range c.execs {
		out.Execs = append(out.Execs, id)
	}
	slices.Sort(out.Execs)
	return out
}

func volumeNames(ms []volume.Mount) []string {
	var out []string
	for _, m := range ms {
		if m.Type == "volume" && m.Name != "" {
			out = append(out, m.Name)
		}
	}
	return out
}
