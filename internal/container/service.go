package container

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/image"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
	"ply/internal/volume"
)

// Errors that callers branch on.
var (
	// ErrNotModified says that a container is already in the state asked for; an API answers 304.
	ErrNotModified = errors.New("container is already in that state")
	// ErrDetached says that an attached client typed the detach keys; the process runs on.
	ErrDetached = errors.New("read escape sequence")
)

// Images is what containers need of images; image.Service has it.
type Images interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
	Create(ctx context.Context, lease *store.Lease, o image.CreateOptions) (oci.ImageID, error)
	Touch(ctx context.Context, id oci.ImageID) error
}

// Network gives containers their network; network.Service has it. Host mode and container:<id> never call it.
type Network interface {
	// Attach makes a network namespace bound at req.NetnsPath with an endpoint in it and its ports published.
	Attach(ctx context.Context, req network.AttachRequest) (network.Attachment, error)
	// Detach removes ports, interfaces, addresses and the namespace; idempotent.
	Detach(ctx context.Context, id oci.ContainerID, netnsPath string) error
}

// Options of New. Store, Images, Volumes, Network, ShimPath, DataRoot and ExecRoot are required.
type Options struct {
	Store   *store.Store
	Images  Images
	Volumes *volume.Service
	Network Network
	Events  *events.Bus
	Log     *slog.Logger

	ShimPath string // absolute path of ply-shim
	DataRoot string // containers/<id>/ lies below it
	ExecRoot string // bundles and sockets; on tmpfs

	// Defaults for what a container's spec leaves open.
	LogDriver    string // "" = json-file
	LogOpts      map[string]string
	Ulimits      []spec.Ulimit
	ShmSize      int64 // 0 = 64 MiB
	CgroupParent string
	Init         bool
	InitPath     string            // program of --init; "" = ShimPath, which is one when it is called docker-init
	Runtimes     map[string]string // name → absolute path of an OCI runtime
	Runtime      string            // default runtime; "" = built in
	StopTimeout  int               // seconds; 0 = 10
	DNS          []string
	DNSOptions   []string
	DNSSearch    []string
	HostGateway  string // address of host-gateway in --add-host; "" = the network's gateway

	SeccompProfile string // file of the default profile, or "unconfined"; "" = built in
	NoNewPrivs     bool
	IpcMode        string // "" = private
	CgroupnsMode   string // "" = private on cgroup v2, else host
}

func (o *Options) setDefaults() error {
	for name, missing := range map[string]bool{
		"a store": o.Store == nil, "images": o.Images == nil, "volumes": o.Volumes == nil, "a network": o.Network == nil,
		"a shim": o.ShimPath == "", "a data root": o.DataRoot == "", "an exec root": o.ExecRoot == "",
	} {
		if missing {
			return errs.New(errs.Invalid, "containers: options lack %s", name)
		}
	}
	if o.Events == nil {
		o.Events = &events.Bus{}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.InitPath == "" {
		o.InitPath = o.ShimPath
	}
	if o.LogDriver == "" {
		o.LogDriver = "json-file"
	}
	if o.ShmSize == 0 {
		o.ShmSize = 64 << 20
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 10
	}
	return nil
}

// Service runs the containers of this host. Safe for concurrent use.
//
// Who holds a reference to a container's root must not wait for its slot unless the wait ends with ctr.done: a
// removal holds the slot and waits for the references.
//
// Locks, in the order in which they may be taken:
//
//	ctr.op     a slot with a context: one life-cycle change of a container at a time (start, the end of a run,
//	           remove, rename, update, pause). Held over mounts and the launch of a shim, never over waiting for a
//	           process, a client or a copy.
//	ctr.freezing keeps the start of an exec and a freeze apart; held over one call to the shim
//	rootfs.mu  the mount count of a container's root; held over one mount or unmount
//	ctr.saveMu orders the writes of a container's record
//	ctr.mu     a container's fields; a leaf, held over memory only
//	Service.mu the indexes; a leaf too. ctr.mu and Service.mu are never held together.
type Service struct {
	opts Options
	log  *slog.Logger

	mu     sync.RWMutex
	byID   map[oci.ContainerID]*ctr
	byName map[string]oci.ContainerID
	execs  map[string]*execution

	// run is the life of background work: waiting for exits, restarts, health checks.
	run     context.Context
	stop    context.CancelFunc
	work    sync.WaitGroup
	seccomp string // option that names the default profile; "" = built in
}

// New opens the service over the records in the store. No container is touched before Restore.
func New(o Options) (*Service, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	s := &Service{
		opts: o, log: o.Log,
		byID:   map[oci.ContainerID]*ctr{},
		byName: map[string]oci.ContainerID{},
		execs:  map[string]*execution{},
	}
	s.run, s.stop = context.WithCancel(context.Background())
	if err := s.loadSeccomp(); err != nil {
		return nil, err
	}
	fsys := o.Store.FS
	if err := fsys.MkdirAll(filepath.Join(o.DataRoot, "containers"), 0o700); err != nil {
		return nil, errs.New(errs.Internal, "containers: %w", err)
	}
	if err := fsys.MkdirAll(filepath.Join(o.ExecRoot, "containers"), 0o700); err != nil {
		return nil, errs.New(errs.Internal, "containers: %w", err)
	}
	err := o.Store.Meta.View(func(tx *meta.Tx) error {
		for id, raw := range tx.Containers.All() {
			c, err := s.load(id, raw)
			if err != nil {
				// One damaged record must not keep the others from running.
				s.log.Error("container record is damaged", "container", id, "err", err)
				continue
			}
			s.byID[id] = c
			if c.rec.Name != "" {
				s.byName[c.rec.Name] = id
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for id, c := range s.byID {
		o.Volumes.Hold(id, volumeNames(c.rec.Mounts)...)
	}
	return s, nil
}

// maxSeccomp bounds a profile.
const maxSeccomp = 1 << 20

func (s *Service) loadSeccomp() error {
	switch p := s.opts.SeccompProfile; p {
	case "", "builtin":
	case "unconfined":
		s.seccomp = "seccomp=unconfined"
	default:
		data, err := durable.ReadFile(s.opts.Store.FS, p, maxSeccomp)
		if err != nil {
			return errs.New(errs.Invalid, "seccomp profile: %w", err)
		}
		s.seccomp = "seccomp=" + string(data)
	}
	return nil
}

// Close lets go of the containers: they run on under their shims. It waits for background work.
func (s *Service) Close() error {
	s.stop()
	s.work.Wait()
	return nil
}

// StopAll stops every running container, each with its own signal and timeout, for a shutdown that wants it.
func (s *Service) StopAll(ctx context.Context) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all error
	for _, c := range s.all() {
		if !c.isActive() {
			continue
		}
		wg.Go(func() {
			err := s.stopContainer(ctx, c, "", nil, byShutdown)
			if err != nil && !errors.Is(err, ErrNotModified) {
				mu.Lock()
				all = errors.Join(all, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all
}

func (s *Service) all() []*ctr {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*ctr, 0, len(s.byID))
	for _, c := range s.byID {
		out = append(out, c)
	}
	return out
}

// InUse names the containers, of any state, that were made from an image.
func (s *Service) InUse(id oci.ImageID) []string {
	var out []string
	for _, c := range s.all() {
		c.mu.Lock()
		if c.rec.Image == id {
			out = append(out, string(c.id))
		}
		c.mu.Unlock()
	}
	return out
}

// Running reports whether the container of that ID has a process.
func (s *Service) Running(id string) bool {
	s.mu.RLock()
	c := s.byID[oci.ContainerID(id)]
	s.mu.RUnlock()
	return c != nil && c.isActive()
}

// VolumeUsers names the containers that refer to a volume.
func (s *Service) VolumeUsers(name string) []string {
	var out []string
	for _, c := range s.all() {
		c.mu.Lock()
		for _, m := range c.rec.Mounts {
			if m.Name == name {
				out = append(out, string(c.id))
				break
			}
		}
		c.mu.Unlock()
	}
	return out
}

// UsedLayers gives the chains that containers stand on.
func (s *Service) UsedLayers() []oci.Chain {
	var out []oci.Chain
	for _, c := range s.all() {
		c.mu.Lock()
		out = append(out, c.rec.Chain)
		c.mu.Unlock()
	}
	return out
}

// Counts gives the numbers of containers by state, for `info`.
func (s *Service) Counts() (total, running, paused, stopped int) {
	for _, c := range s.all() {
		total++
		switch c.status() {
		case StatusRunning, StatusRestarting:
			running++
		case StatusPaused:
			paused++
		default:
			stopped++
		}
	}
	return total, running, paused, stopped
}

// find resolves an ID, a name or an unambiguous prefix of an ID, in docker's order.
func (s *Service) find(ref string) (*ctr, error) {
	name := strings.TrimPrefix(ref, "/")
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.byID[oci.ContainerID(ref)]; c != nil {
		return c, nil
	}
	if c := s.byID[s.byName[name]]; c != nil {
		return c, nil
	}
	var found *ctr
	if ref != "" && isHex(ref) {
		for id, c := range s.byID {
			if !strings.HasPrefix(string(id), ref) {
				continue
			}
			if found != nil {
				return nil, errs.New(errs.Invalid, "Multiple IDs found with provided prefix: %s", ref)
			}
			found = c
		}
	}
	if found == nil {
		return nil, errs.New(errs.NotFound, "No such container: %s", clip(ref))
	}
	return found, nil
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) <= 64
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// publish tells of a container event, with docker's attributes: the labels, image, name, and what is given.
func (s *Service) publish(c *ctr, action string, more ...string) {
	c.mu.Lock()
	attrs := make(map[string]string, len(c.rec.Spec.Labels)+4)
	for k, v := range c.rec.Spec.Labels {
		attrs[k] = v
	}
	attrs["image"], attrs["name"] = c.rec.ImageName, c.rec.Name
	c.mu.Unlock()
	for i := 0; i+1 < len(more); i += 2 {
		attrs[more[i]] = more[i+1]
	}
	s.opts.Events.Publish(events.Event{Type: "container", Action: action, ID: string(c.id), Attributes: attrs, Time: time.Now()})
}
