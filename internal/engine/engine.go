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
	"syscall"
	"time"

	"ply/internal/build"
	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/container/rootfs"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/host"
	"ply/internal/image"
	"ply/internal/importer"
	"ply/internal/mount"
	"ply/internal/network"
	"ply/internal/network/bridge"
	"ply/internal/network/firewalld"
	"ply/internal/network/ipam"
	"ply/internal/network/vlan"
	"ply/internal/oci"
	"ply/internal/procid"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/layer/drivers"
	"ply/internal/system"
	"ply/internal/transfer/archive"
	"ply/internal/transfer/pull"
	"ply/internal/transfer/push"
	"ply/internal/transfer/remote"
	"ply/internal/version"
	"ply/internal/volume"
)

// Options are the options of Open. Config and ShimPath are required.
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
	opts   Options
	log    *slog.Logger
	config *config.Live
	id     string

	Store      *store.Store
	Events     *events.Bus
	Images     *image.Service
	Volumes    *volume.Service
	Networks   *network.Service
	Containers *container.Service
	Remote     *remote.Client
	Puller     *pull.Puller
	Pusher     *push.Pusher
	Archive    *archive.Archive
	Importer   *importer.Service
	Builder    *build.Service
	System     *system.Service

	checking    sync.Mutex  // held during a check
	driverNotes [][2]string // why better storage drivers were not taken
	closers     []closer    // in the order of opening
	restored    bool        // the containers of an earlier plyd are known
	idle        bool        // no container ran when the containers were closed

	shuttingDown func() bool // this machine; asked once, so that what is said and what is done agree
}

// closer ends one part of the engine.
type closer struct {
	name string
	end  func() error
}

// Open brings the engine up: the store, which admits one engine per data root, then the services, then the containers that
// outlived the last plyd. On error everything that was opened is closed.
func Open(ctx context.Context, opts Options) (_ *Engine, err error) {
	e := newEngine(opts)
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	for _, open := range []func(context.Context) error{
		e.openStore, e.openExecRoot, e.openImages, e.openVolumes, e.openNetworks, e.openContainers, e.openTransfer, e.openBuilder, e.openSystem,
	} {
		if err := open(ctx); err != nil {
			return nil, err
		}
	}
	if err := e.Containers.Restore(ctx); err != nil {
		return nil, err
	}
	e.restored = true
	if err := e.Builder.Restore(ctx); err != nil {
		e.log.Warn("what builds of an earlier engine left was not removed completely", "err", err)
	}
	return e, nil
}

// KeepsContainers reports whether containers keep running after Close. It is to be called when the engine is about to be closed.
func (e *Engine) KeepsContainers() bool {
	return e.config.Current().LiveRestore && !e.shuttingDown()
}

// newEngine returns an engine of which nothing is open.
func newEngine(opts Options) *Engine {
	if opts.FS == nil {
		opts.FS = durable.OS
	}
	if opts.CertsDirs == nil {
		opts.CertsDirs = []string{"/etc/ply/certs.d", "/etc/docker/certs.d"}
	}
	e := &Engine{opts: opts, log: opts.Log, config: config.NewLive(opts.Config), Events: &events.Bus{}, shuttingDown: sync.OnceValue(host.ShuttingDown)}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e
}

// onClose makes Close call end, after the ends of all parts that are opened later.
func (e *Engine) onClose(name string, end func() error) {
	e.closers = append(e.closers, closer{name, end})
}

// Close ends the parts of the engine in the opposite order of their opening. Containers keep running unless live-restore is
// switched off.
func (e *Engine) Close() error {
	var err error
	for len(e.closers) > 0 {
		last := len(e.closers) - 1
		c := e.closers[last]
		e.closers = e.closers[:last]
		err = errors.Join(err, c.end())
	}
	return err
}

// recoverRecords tells what became of a database that could not be used, and takes the records that the one in its place
// lacks from the files beside the data.
func (e *Engine) recoverRecords(ctx context.Context) error {
	for _, n := range e.Store.Meta.Notices() {
		e.log.Error("database", "problem", n)
	}
	d := e.Store.Meta.Doubt()
	if d == "" {
		return nil
	}
	e.log.Error("records may be missing, so nothing that no record refers to is removed; run ply system check --repair", "cause", d)
	if len(e.Store.Meta.Notices()) == 0 {
		return nil
	}
	lost, err := e.Store.Lost(ctx)
	if err != nil {
		return err
	}
	n, err := e.Store.Rebuild(ctx, lost)
	if n > 0 {
		e.log.Warn("records were rebuilt from the files beside the data", "records", n)
	}
	return err
}

// databaseWarnings is what info shows of the state of the database.
func (e *Engine) databaseWarnings() (all []string) {
	for _, n := range e.Store.Meta.Notices() {
		all = append(all, "database: "+n)
	}
	if d := e.Store.Meta.Doubt(); d != "" {
		all = append(all, "records may be missing ("+d+"): nothing that no record refers to is removed until ply system check --repair was run")
	}
	return all
}

func (e *Engine) openStore(ctx context.Context) (err error) {
	c := e.opts.Config
	open := func(fsys durable.FS, root string) (d layer.Driver, err error) {
		d, e.driverNotes, err = drivers.Open(fsys, root, c.StorageDriver)
		return d, err
	}
	o := store.Options{FS: e.opts.FS, Retain: store.Retain(c.RetainBlobs), DamagedBlob: func(d, got oci.Digest) {
		e.log.Warn("damaged blob removed", "blob", d, "content", got)
	}}
	if e.Store, err = store.OpenWith(c.DataRoot, open, o); err != nil {
		return err
	}
	e.onClose("store", e.Store.Close)
	if err := e.recoverRecords(ctx); err != nil {
		return err
	}
	e.id, err = system.Identity(e.opts.FS, c.DataRoot)
	return err
}

// openExecRoot makes the exec root a private mount, so that the mounts of containers do not spread. It is unmounted when
// no container needs it any more.
func (e *Engine) openExecRoot(context.Context) error {
	dir := e.opts.Config.ExecRoot
	if err := e.lockExecRoot(dir); err != nil {
		return err
	}
	made, err := mount.Private(dir)
	if err != nil {
		return errs.New(errs.Internal, "exec root: %w", err)
	}
	e.onClose("exec root", func() error {
		if e.idle || made && !e.restored {
			return mount.Unmount(dir, true)
		}
		return nil
	})
	return nil
}

// lockExecRoot admits one engine per exec root. A second one would unmount the containers of the first.
func (e *Engine) lockExecRoot(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return errs.New(errs.Internal, "exec root: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "plyd.lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return errs.New(errs.Internal, "exec root: %w", err)
	}
	if err := procid.LockFile(f, lockWait); err != nil {
		_ = f.Close() // nothing was written
		if held := new(procid.LockedError); errors.As(err, &held) {
			return errs.New(errs.Unavailable, "exec root %s is in use by %s", dir, held.Holder).
				WithHint("Every engine needs a data root and an exec root of its own (--data-root, --exec-root).")
		}
		return errs.New(errs.Internal, "exec root: %w", err)
	}
	e.onClose("lock of the exec root", f.Close)
	return nil
}

// lockWait is how long Open waits for another process that has the exec root.
const lockWait = 2 * time.Second

func (e *Engine) openImages(context.Context) error {
	e.Images = image.New(e.Store, image.Options{
		Log: e.log, Events: e.Events, Format: oci.Format(e.opts.Config.ImageFormat),
		// The containers are opened later.
		InUse:   func(id oci.ImageID) []string { return e.Containers.InUse(id) },
		Running: func(id string) bool { return e.Containers.Running(id) },
	})
	return nil
}

func (e *Engine) openVolumes(context.Context) (err error) {
	e.Volumes, err = volume.New(volume.Options{
		Store: e.Store, Root: filepath.Join(e.opts.Config.DataRoot, "volumes"),
		MountRoot: filepath.Join(e.opts.Config.ExecRoot, "volumes"), Pack: rootfs.Pack, Unpack: rootfs.Unpack, Log: e.log, Events: e.Events,
	})
	return err
}

func (e *Engine) openNetworks(ctx context.Context) (err error) {
	c := e.opts.Config
	bridged := network.Config{Bridge: c.Bridge, MTU: c.MTU, NoICC: !c.ICC, NoMasq: !c.IPMasq}
	driver := bridge.Options{
		NoRules: !c.IPTables, NoForward: !c.IPForward, NoForwardDrop: c.IPForwardNoDrop, StateFile: filepath.Join(c.ExecRoot, "forwarding.json"),
		NoProxy: !c.UserlandProxy, Owner: c.ExecRoot, Log: e.log,
	}
	// The values were checked by config.Load.
	if c.BIP != "" {
		bridged.Address = netip.MustParsePrefix(c.BIP)
	}
	if c.FixedCIDR != "" {
		bridged.Fixed = netip.MustParsePrefix(c.FixedCIDR)
	}
	if c.IP != "" {
		driver.HostIP = netip.MustParseAddr(c.IP)
		bridged.HostIP = driver.HostIP
	}
	for _, p := range c.DefaultAddressPools {
		bridged.Pools = append(bridged.Pools, ipam.Subnets(netip.MustParsePrefix(p.Base), p.Size)...)
	}
	zone := firewalld.New(firewalld.Options{Log: e.log})
	driver.Zone = zone
	bridges := bridge.New(driver)
	stopWatch := e.watch(bridges)
	stopZone := func() {}
	if c.IPTables {
		stopZone = background(zone.Run)
	}
	e.Networks, err = network.Open(ctx, network.Options{
		Meta: e.Store.Meta, StateDir: filepath.Join(c.ExecRoot, "network"), Default: bridged, DefaultNames: c.BridgeNames,
		DefaultOptions: c.DefaultNetworkOpts,
		Drivers: map[string]network.Driver{
			"bridge":             bridges,
			string(vlan.MACVLAN): vlan.New(vlan.MACVLAN, vlan.Options{Owner: c.ExecRoot, Log: e.log}),
			string(vlan.IPVLAN):  vlan.New(vlan.IPVLAN, vlan.Options{Owner: c.ExecRoot, Log: e.log}),
		}, HostSubnets: bridge.Subnets, Events: e.Events, Log: e.log,
	})
	if err != nil {
		stopWatch()
		stopZone()
		return err
	}
	e.onClose("networks", func() error {
		stopWatch()
		defer stopZone()
		var err error
		if e.idle { // leave nothing in the host's network; the next container that needs it makes it again
			err = e.Networks.Teardown(context.Background())
			zone.Await(context.Background())
		}
		return errors.Join(err, e.Networks.Close())
	})
	return nil
}

// watch makes again what others remove of the networks, until stop is called.
func (e *Engine) watch(bridges *bridge.Driver) (stop func()) {
	return background(func(ctx context.Context) {
		if err := bridges.Watch(ctx, func() {}); err != nil {
			e.log.Error("what others remove of the networks is made again only when plyd starts", "err", err)
		}
	})
}

// background runs work until stop is called, which waits for its end.
func background(work func(ctx context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { work(ctx) })
	return func() { cancel(); running.Wait() }
}

func (e *Engine) openContainers(context.Context) (err error) {
	c := e.opts.Config
	var networks container.Network = detached{}
	if e.Networks != nil {
		networks = e.Networks
	}
	o := container.Options{
		Store: e.Store, Images: e.Images, Volumes: e.Volumes, Network: networks, Events: e.Events, Log: e.log,
		ShimPath: e.opts.ShimPath, DataRoot: c.DataRoot, ExecRoot: c.ExecRoot,
		Defaults: defaults(c), LogDriver: c.LogDriver, LogOpts: c.LogOpts, PidsLimit: int64(max(c.DefaultPidsLimit, 0)), WritableSize: c.WritableSize(), CgroupParent: c.CgroupParent,
		Init: c.Init, InitPath: c.InitPath, DNS: c.DNS, DNSOptions: c.DNSOpts, DNSSearch: c.DNSSearch, ResolvConf: c.ResolvConf,
		HostGateway: c.HostGatewayIPs, NoNewPrivs: c.NoNewPrivileges,
	}
	if c.SeccompProfile != "builtin" {
		o.SeccompProfile = c.SeccompProfile
	}
	for _, u := range c.DefaultUlimits {
		o.Ulimits = append(o.Ulimits, spec.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if e.Containers, err = container.New(o); err != nil {
		return err
	}
	e.onClose("containers", func() error {
		err := e.stopContainers()
		running, listErr := e.Containers.List(context.Background(), container.ListOptions{})
		e.idle = e.restored && listErr == nil && len(running) == 0
		return errors.Join(err, listErr, e.Containers.Close())
	})
	return nil
}

// defaults returns the defaults of containers that a reload can change.
func defaults(c *config.Config) container.Defaults {
	d := container.Defaults{ShmSize: int64(c.DefaultShmSize), IpcMode: c.DefaultIpcMode, CgroupnsMode: c.DefaultCgroupnsMode, Runtimes: map[string]string{}, CDIDirs: c.CDIDirs()}
	if c.Bridge == "none" { // as in Docker, a container that names no network has none then
		d.NetworkMode = "none"
	}
	for name, r := range c.Runtimes {
		d.Runtimes[name] = r.Path
	}
	if _, named := c.Runtimes[c.DefaultRuntime]; named { // else "ply" or "runc": the built-in one
		d.Runtime = c.DefaultRuntime
	}
	return d
}

// stopContainers stops all containers where live-restore is switched off, and everywhere when this machine is shut down: with their own
// signals and timeouts, and while there are networks and volumes. The service manager would send SIGTERM to all processes at once.
func (e *Engine) stopContainers() error {
	c := e.config.Current()
	if !e.restored || e.KeepsContainers() {
		return nil
	}
	return e.Containers.StopAll(context.Background(), c.ShutdownTimeout)
}

func (e *Engine) openTransfer(context.Context) error {
	c := e.opts.Config
	e.Remote = remote.New(remote.Options{
		Mirrors: c.RegistryMirrors, Insecure: c.InsecureRegistries, AuthRealms: c.AuthRealms, CertsDirs: e.opts.CertsDirs, ConfigFile: e.opts.ConfigFile,
		Attempts: c.MaxDownloadAttempts, UserAgent: "ply/" + version.Version, Log: e.log,
	})
	e.onClose("connections to registries", func() error { e.Remote.Close(); return nil })
	e.Puller = pull.New(e.Store, e.Images, e.Remote, pull.Options{Max: c.MaxConcurrentDownloads, Log: e.log})
	e.onClose("pulls", func() error { e.Puller.Close(); return nil })
	e.Pusher = push.New(e.Store, e.Images, e.Remote, push.Options{Max: c.MaxConcurrentUploads, Log: e.log})
	e.Archive = archive.New(e.Store, e.Images, archive.Options{Log: e.log})
	e.Importer = importer.New(importer.Services{
		Store: e.Store, Images: e.Images, Archive: e.Archive, Volumes: volume.Contents{Service: e.Volumes}, Networks: e.Networks,
		Containers: e.Containers, Adopter: container.NewAdopter(e.Containers),
	})
	return nil
}

// stepContainers are the containers as the builder sees them.
type stepContainers struct {
	*container.Service
	*container.Steps
}

func (e *Engine) openBuilder(context.Context) (err error) {
	c := e.opts.Config
	e.Builder, err = build.New(build.Options{
		Store: e.Store, Images: e.Images, Puller: e.Puller, Loader: e.Archive, Pusher: e.Pusher, Containers: stepContainers{e.Containers, container.NewSteps(e.Containers)}, Sessions: e.Containers.Sessions(), Networks: e.Networks,
		Format: oci.Format(c.ImageFormat), DataRoot: c.DataRoot, ExecRoot: c.ExecRoot, Events: e.Events, Log: e.log,
		Policy: policy(&c.Builder.GC), NoHostNetwork: denied(c.Builder.Entitlements.NetworkHost), NoInsecure: denied(c.Builder.Entitlements.SecurityInsecure),
	})
	if err != nil {
		return err
	}
	e.onClose("builder", e.Builder.Close)
	return nil
}

func denied(setting *bool) bool { return setting != nil && !*setting }

// policy returns what is pruned from the build cache after builds; nil = what the builder chooses.
func policy(gc *config.BuilderGC) []build.PruneOptions {
	if denied(gc.Enabled) {
		return []build.PruneOptions{}
	}
	var rules []build.PruneOptions
	for _, r := range gc.Policy {
		rules = append(rules, build.PruneOptions{
			All: r.All, Unused: time.Duration(r.KeepDuration), Filters: filter.Args(r.Filter),
			Space: build.Space{Reserved: int64(max(r.ReservedSpace, r.KeepStorage)), MaxUsed: int64(r.MaxUsedSpace), MinFree: int64(r.MinFreeSpace)},
		})
	}
	space := build.Space{Reserved: int64(max(gc.DefaultReservedSpace, gc.DefaultKeepStorage)), MaxUsed: int64(gc.DefaultMaxUsedSpace), MinFree: int64(gc.DefaultMinFreeSpace)}
	if rules == nil && space != (build.Space{}) {
		rules = []build.PruneOptions{{All: true, Space: space}}
	}
	return rules
}

func (e *Engine) openSystem(context.Context) error {
	e.System = system.New(system.Options{
		ID: e.id, Config: e.config, Images: e.Images, Containers: e.Containers,
		Warnings: e.databaseWarnings, Storage: e.Store.Layers, StorageNotes: e.driverNotes, ShimPath: e.opts.ShimPath,
	})
	return nil
}

// Reload puts the settings of a new configuration in force that can change while the engine runs. It logs which of the
// others need a restart. On error the old configuration stays in force.
func (e *Engine) Reload(next *config.Config) error {
	live, restart, err := e.config.Reload(next, func(c *config.Config) error {
		if err := e.Remote.Reload(c.RegistryMirrors, c.InsecureRegistries, c.AuthRealms); err != nil {
			return err
		}
		e.Remote.SetAttempts(c.MaxDownloadAttempts)
		e.Puller.SetMax(c.MaxConcurrentDownloads)
		e.Pusher.SetMax(c.MaxConcurrentUploads)
		e.Containers.SetDefaults(defaults(c))
		return nil
	})
	if err != nil {
		return err
	}
	e.log.Info("configuration reloaded", "in-force", live, "needs-restart", restart)
	e.Events.Publish(events.Event{Type: "daemon", Action: "reload", ID: e.id})
	return nil
}

// Housekeeping collects what nothing refers to, once an hour, until ctx ends.
func (e *Engine) Housekeeping(ctx context.Context) {
	const every = time.Hour
	t := time.NewTicker(every)
	defer t.Stop()
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() {
		e.Store.Meta.KeepCopies(ctx, func(err error) { e.log.Warn("no copy of the database was made", "err", err) })
	})
	work.Go(func() {
		if err := e.Store.RepeatRecords(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("records are not repeated beside the data", "err", err)
		}
	})
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
