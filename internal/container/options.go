package container

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"

	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/image"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/volume"
)

// Images is what containers need of images; image.Service has it.
type Images interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
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
	LogDriver    string            // "" = json-file
	LogOpts      map[string]string // of LogDriver, for each option that a container does not set
	Ulimits      []spec.Ulimit
	ShmSize      int64 // bytes; 0 = 64 MiB
	CgroupParent string
	Init         bool
	InitPath     string            // program of --init; "" = ShimPath, which acts as one when it is called docker-init
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

// env is what all parts of the package share.
type env struct {
	opts    Options
	log     *slog.Logger
	seccomp string // security option that names the default profile; "" = built in
	index   *index
	execs   *session.Registry

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
	if name == "" {
		name = e.opts.Runtime
	}
	p := e.opts.Runtimes[name]
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
