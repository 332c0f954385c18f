package container

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/image"
	"ply/internal/network"
	"ply/internal/network/proxy"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/volume"
)

// Images is what containers need of images; image.Service has it.
type Images interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
	// GetFor is Get for a platform: of an index, the image for it. "" = any.
	GetFor(ctx context.Context, ref, platform string) (*image.Image, error)
	Create(ctx context.Context, lease *store.Lease, o image.CreateOptions) (oci.ImageID, error)
	Touch(ctx context.Context, id oci.ImageID) error
}

// Network connects containers to networks; network.Service has it. It is not called for host mode and container:<id>.
type Network interface {
	// Attach makes a network namespace bound at req.NetnsPath with an endpoint in it and its ports published.
	Attach(ctx context.Context, req network.AttachRequest) (network.Attachment, error)
	// Detach removes ports, interfaces, addresses and the namespace; idempotent.
	Detach(ctx context.Context, id oci.ContainerID, netnsPath string) error
	// Attached returns what Attach made for a container, which may have been in an earlier engine; false when the
	// container is not attached.
	Attached(id oci.ContainerID) (network.Attachment, bool)
	// Connect connects a container, whose namespace is bound at netnsPath, to one more network; Disconnect takes it out of one.
	Connect(ctx context.Context, id oci.ContainerID, netnsPath string, req network.EndpointRequest) (network.Attachment, error)
	Disconnect(ctx context.Context, id oci.ContainerID, ref string) (network.Attachment, error)
	// Settle publishes the ports of a container that could not be published when the engine began, and reports whether it did.
	Settle(ctx context.Context, id oci.ContainerID) (bool, error)
	// HandOver calls take with the published ports of a container, and with their sockets as far as its shim has not got them.
	HandOver(id oci.ContainerID, take func(list []proxy.Port, sockets []*os.File) error) error
	// Relink makes linked the containers whose exposed ports are open to a container in a network that keeps its containers apart.
	Relink(ctx context.Context, id oci.ContainerID, network string, linked []oci.ContainerID) error
	// Rename changes a name of a container in its networks.
	Rename(id oci.ContainerID, old, name string) error
	// Name returns the name of a network, which may be given by name or ID. The error's class is errs.NotFound when there is none.
	Name(ref string) (string, error)
	// Tables returns the directory of the names, for resolvers.
	Tables() string
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
	Defaults
	LogDriver    string            // "" = json-file
	LogOpts      map[string]string // of LogDriver, for each option that a container does not set
	Ulimits      []spec.Ulimit
	WritableSize int64 // bytes that the writable layer of a container may take; 0 = no limit
	PidsLimit    int64 // processes and threads of a container that is not privileged; 0 = no limit
	CgroupParent string
	Init         bool
	InitPath     string // program of --init; "" = ShimPath, which acts as one when it is called docker-init
	StopTimeout  int    // seconds; 0 = 10
	DNS          []string
	DNSOptions   []string
	DNSSearch    []string
	ResolvConf   string   // resolv.conf of the host; "" = the one that the host uses
	HostGateway  []string // addresses of host-gateway in --add-host; none = the network's gateway

	SeccompProfile string // file of the default profile, or "unconfined"; "" = built in
	NoNewPrivs     bool
}

// Defaults are the defaults of containers that can change while the service runs. A container takes them when it is created,
// except for the runtime, the size of /dev/shm and the CDI devices, which it takes each time that it starts.
type Defaults struct {
	ShmSize      int64             // bytes; 0 = 64 MiB
	Runtimes     map[string]string // name → absolute path of an OCI runtime
	Runtime      string            // default runtime; "" = built in
	IpcMode      string            // "" = private
	NetworkMode  string            // network of a container that names none; "" = bridge
	CgroupnsMode string            // "" = private on cgroup v2, else host
	CDIDirs      []string          // with descriptions of CDI devices; none = there are no such devices
}

func (d Defaults) withDefaults() *Defaults {
	if d.ShmSize == 0 {
		d.ShmSize = 64 << 20
	}
	return &d
}

// stateDir is where runtimes keep the state of containers, each in a directory with the container's ID.
func (o *Options) stateDir() string { return filepath.Join(o.ExecRoot, "runtime") }

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
	if o.StopTimeout == 0 {
		o.StopTimeout = 10
	}
	return nil
}

// env is what all parts of the package share.
type env struct {
	opts    Options // its Defaults are those of the start; live has those in force
	live    atomic.Pointer[Defaults]
	log     *slog.Logger
	seccomp string // security option that names the default profile; "" = built in
	index   *index
	execs   *session.Registry
	moves   cgroupMoves

	// workdirs has the IDs of the images that contain the working directory of their own config.
	workdirs sync.Map

	// run is the life of background work: waiting for exits, restarts, health checks. work counts that work.
	run  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
}

func newEnv(o Options) (*env, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	e := &env{opts: o, log: o.Log, index: newIndex()}
	e.live.Store(o.Defaults.withDefaults())
	e.run, e.stop = context.WithCancel(context.Background())
	e.execs = session.NewRegistry(e.run, &e.work)
	if o.LogDriver != "none" {
		if _, err := session.LogConfig(o.LogDriver, o.LogOpts); err != nil {
			return nil, errs.New(errs.Invalid, "default log driver and log-opts: %w", err)
		}
	}
	if err := e.loadSeccomp(); err != nil {
		return nil, err
	}
	for _, root := range []string{o.DataRoot, o.ExecRoot} {
		if err := durable.MkdirPrivate(o.Store.FS, filepath.Join(root, "containers")); err != nil {
			return nil, errs.New(errs.Internal, "containers: %w", err)
		}
	}
	return e, nil
}

const maxSeccomp = 1 << 20 // bytes of a profile

func (e *env) loadSeccomp() error {
	switch p := e.opts.SeccompProfile; p {
	case "", "builtin":
	case "unconfined":
		e.seccomp = "seccomp=unconfined"
	default:
		data, err := durable.ReadFile(e.opts.Store.FS, p, maxSeccomp)
		if err != nil {
			return errs.New(errs.Invalid, "seccomp profile: %w", err)
		}
		e.seccomp = "seccomp=" + string(data)
	}
	return nil
}

// runtimePath returns the program of a runtime; "" is the runtime that is built into the shim.
func (e *env) runtimePath(name string) (string, error) {
	live := e.live.Load()
	if name == "" {
		name = live.Runtime
	}
	p := live.Runtimes[name]
	switch name {
	case "", "runc", "ply", "io.containerd.runc.v2": // docker's names for its default
		if p == "" {
			return "", nil
		}
	}
	if p == "" {
		return "", invalid("unknown or invalid runtime name: %s", clip(name))
	}
	if !filepath.IsAbs(p) {
		return "", invalid("runtime %s: path %q is not absolute", name, p)
	}
	return p, nil
}
