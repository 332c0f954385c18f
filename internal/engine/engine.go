// Package engine is the composition root: it opens the stores, builds the services, wires them and starts and stops
// them in order. It has no logic of its own.
package engine

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/api/docker"
	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/image"
	"ply/internal/mount"
	"ply/internal/network"
	"ply/internal/network/bridge"
	"ply/internal/network/ipam"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer/drivers"
	"ply/internal/transfer/archive"
	"ply/internal/transfer/registry"
	"ply/internal/version"
	"ply/internal/volume"
)

// Options of Open.
type Options struct {
	Config     *config.Config
	ConfigFile string // named in hints
	ShimPath   string // absolute path of ply-shim
	Log        *slog.Logger
	FS         durable.FS // nil = the real one; tests inject faults
	CertsDirs  []string   // nil = /etc/ply/certs.d and /etc/docker/certs.d
}

// Engine is everything that runs. Open makes it, Close ends it.
type Engine struct {
	opts  Options
	log   *slog.Logger
	notes [][2]string // why better storage drivers were not taken

	mu  sync.Mutex
	cfg *config.Config

	Store      *store.Store
	Events     *events.Bus
	Images     *image.Service
	Volumes    *volume.Service
	Networks   *network.Service
	Containers *container.Service
	Registry   *registry.Client
	Archive    *archive.Archive

	id string
}

// Open brings the engine up: stores, services, then the containers that outlived the last plyd.
func Open(ctx context.Context, opts Options) (_ *Engine, err error) {
	cfg := opts.Config
	if opts.FS == nil {
		opts.FS = durable.OS
	}
	if opts.CertsDirs == nil {
		opts.CertsDirs = []string{"/etc/ply/certs.d", "/etc/docker/certs.d"}
	}
	e := &Engine{opts: opts, log: opts.Log, cfg: cfg, Events: &events.Bus{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if err := privateExecRoot(cfg.ExecRoot); err != nil {
		return nil, err
	}
	driver, notes, err := drivers.Open(opts.FS, cfg.DataRoot, cfg.StorageDriver)
	if err != nil {
		return nil, err
	}
	e.notes = notes
	if e.Store, err = store.Open(cfg.DataRoot, driver, store.Options{FS: opts.FS, Retain: store.Retain(cfg.RetainBlobs)}); err != nil {
		return nil, errors.Join(err, driver.Close())
	}
	if e.id, err = e.identity(); err != nil {
		return nil, err
	}
	e.Images = image.New(e.Store, image.Options{
		Log: e.log, Events: e.Events, Format: oci.Format(cfg.ImageFormat), InUse: e.imageInUse, Running: e.containerRuns,
	})
	if e.Volumes, err = volume.New(volume.Options{
		Store: e.Store, Root: filepath.Join(cfg.DataRoot, "volumes"), Log: e.log, Events: e.Events,
	}); err != nil {
		return nil, err
	}
	if err := e.openNetwork(ctx); err != nil {
		return nil, err
	}
	if err := e.openContainers(); err != nil {
		return nil, err
	}
	if err := e.openTransfer(); err != nil {
		return nil, err
	}
	if err := e.Containers.Restore(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// privateExecRoot makes the exec root a mount of its own that does not spread: the mounts of containers stay where they are made.
func privateExecRoot(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return errs.New(errs.Internal, "exec root %s: %w", dir, err)
	}
	mounted, err := mount.IsMounted(dir)
	if err == nil && !mounted {
		err = unix.Mount(dir, dir, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = mount.MakePrivate(dir)
	}
	if err != nil {
		return errs.New(errs.Internal, "exec root %s: %w", dir, err)
	}
	return nil
}

func (e *Engine) openNetwork(ctx context.Context) error {
	c := e.cfg
	bridged := network.Config{Bridge: c.Bridge, MTU: c.MTU, NoICC: !c.ICC, NoMasq: !c.IPMasq}
	driver := bridge.Options{NoRules: !c.IPTables, NoForward: !c.IPForward, NoProxy: !c.UserlandProxy, Log: e.log}
	// The values were checked by config.Load.
	if c.BIP != "" {
		bridged.Address = netip.MustParsePrefix(c.BIP)
	}
	if c.FixedCIDR != "" {
		bridged.Fixed = netip.MustParsePrefix(c.FixedCIDR)
	}
	if c.IP != "" {
		driver.HostIP = netip.MustParseAddr(c.IP)
	}
	for _, p := range c.DefaultAddressPools {
		bridged.Pools = append(bridged.Pools, ipam.Subnets(netip.MustParsePrefix(p.Base), p.Size)...)
	}
	var err error
	e.Networks, err = network.Open(ctx, network.Options{
		Meta: e.Store.Meta, StateDir: filepath.Join(c.ExecRoot, "network"), Default: bridged,
		Drivers: map[string]network.Driver{"bridge": bridge.New(driver)}, Events: e.Events, Log: e.log,
	})
	return err
}

func (e *Engine) openContainers() error {
	c := e.cfg
	o := container.Options{
		Store: e.Store, Images: e.Images, Volumes: e.Volumes, Network: e.Networks, Events: e.Events, Log: e.log,
		ShimPath: e.opts.ShimPath, DataRoot: c.DataRoot, ExecRoot: c.ExecRoot,
		LogDriver: c.LogDriver, LogOpts: c.LogOpts, ShmSize: int64(c.DefaultShmSize), CgroupParent: c.CgroupParent,
		Init: c.Init, InitPath: c.InitPath, Runtimes: map[string]string{}, DNS: c.DNS, DNSOptions: c.DNSOpts, DNSSearch: c.DNSSearch,
		NoNewPrivs: c.NoNewPrivileges, IpcMode: c.DefaultIpcMode, CgroupnsMode: c.DefaultCgroupnsMode,
	}
	if c.SeccompProfile != "builtin" {
		o.SeccompProfile = c.SeccompProfile
	}
	for name, r := range c.Runtimes {
		o.Runtimes[name] = r.Path
	}
	if _, named := c.Runtimes[c.DefaultRuntime]; named { // else "ply" or "runc": the built-in one
		o.Runtime = c.DefaultRuntime
	}
	for _, u := range c.DefaultUlimits {
		o.Ulimits = append(o.Ulimits, spec.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	var err error
	e.Containers, err = container.New(o)
	return err
}

func (e *Engine) openTransfer() error {
	c := e.cfg
	e.Registry = registry.New(e.Store, e.Images, registry.Options{
		Mirrors: c.RegistryMirrors, Insecure: c.InsecureRegistries, AuthRealms: c.AuthRealms, CertsDirs: e.opts.CertsDirs, ConfigFile: e.opts.ConfigFile,
		MaxConcurrentDownloads: c.MaxConcurrentDownloads, MaxConcurrentUploads: c.MaxConcurrentUploads,
		DownloadAttempts: c.MaxDownloadAttempts, UserAgent: "ply/" + version.Version, Log: e.log,
	})
	e.Archive = archive.New(e.Store, e.Images, archive.Options{Log: e.log})
	return nil
}

// imageInUse and containerRuns are asked by the image service, which is made before the containers.
func (e *Engine) imageInUse(id oci.ImageID) []string {
	if e.Containers == nil {
		return nil
	}
	return e.Containers.InUse(id)
}

func (e *Engine) containerRuns(id string) bool {
	return e.Containers != nil && e.Containers.Running(id)
}

// API gives what the Engine API needs of the services; hosts are the names by which clients may call a TCP listener.
func (e *Engine) API(hosts []string) docker.Options {
	return docker.Options{
		Images: e.Images, Mover: mover{e.Registry, e.Archive}, Containers: e.Containers, Files: e.Containers.Files(), Sessions: e.Containers.Sessions(), Volumes: e.Volumes, Networks: e.Networks,
		Events: e.Events, System: e, Log: e.log, Driver: e.Store.Layers.Name(), Hosts: hosts,
	}
}

// Reload puts a new configuration in force where that can be done while running, and says what needs a restart.
func (e *Engine) Reload(next *config.Config) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	live, restart := config.Reloadable(e.cfg, next)
	taken := e.cfg.Take(next)
	if err := e.Registry.Reload(taken.RegistryMirrors, taken.InsecureRegistries, taken.AuthRealms); err != nil {
		return err
	}
	e.Registry.SetLimits(taken.MaxConcurrentDownloads, taken.MaxConcurrentUploads, taken.MaxDownloadAttempts)
	e.cfg = taken
	e.log.Info("configuration reloaded", "in-force", live, "needs-restart", restart)
	e.Events.Publish(events.Event{Type: "daemon", Action: "reload", ID: e.id})
	return nil
}

// Housekeeping collects now and then until ctx ends.
func (e *Engine) Housekeeping(ctx context.Context) {
	const every = time.Hour
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if freed, err := e.Store.Collect(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("collection", "err", err)
		} else if freed > 0 {
			e.log.Info("collection", "bytes", freed)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// Close ends the services in the opposite order. Containers run on.
func (e *Engine) Close() error {
	var err error
	if e.Registry != nil {
		err = errors.Join(err, e.Registry.Close())
	}
	idle := true
	if e.Containers != nil {
		idle = len(e.running()) == 0
		err = errors.Join(err, e.Containers.Close())
	}
	if e.Networks != nil {
		if idle {
			// Nothing of ours stays in the host's network when nothing runs; the next start makes it again.
			err = errors.Join(err, e.Networks.Teardown(context.Background()))
		}
		err = errors.Join(err, e.Networks.Close())
	}
	if e.Store != nil {
		err = errors.Join(err, e.Store.Close())
	}
	if idle {
		err = errors.Join(err, mount.Unmount(e.opts.Config.ExecRoot, true))
	}
	return err
}

func (e *Engine) running() []*container.Container {
	list, err := e.Containers.List(context.Background(), container.ListOptions{})
	if err != nil {
		e.log.Warn("list containers", "err", err)
	}
	return list
}
