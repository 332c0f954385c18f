// Package runner does the work of build steps that needs containers, mounts and layers: it runs the commands of RUN, mounts chains for reading,
// and writes layers. It is the solver's worker.
//
// Invariants: a command runs in a container as `run` makes it, with the same limits and the same default rights; the container is gone when Run
// returns; secrets lie on a tmpfs of their own and are never in a layer; a mount point that exists only for a mount is not in the result.
package runner

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/build/tree"
	"ply/internal/container"
	"ply/internal/container/rootfs"
	"ply/internal/container/session"
	"ply/internal/container/spec"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/host"
	"ply/internal/image"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/meta"
	"ply/internal/volume"
)

// defaultHostname is the host name of a step that has no other. It is BuildKit's, and the same in every build, because steps write it into files.
const defaultHostname = "buildkitsandbox"

// Label shows people which containers are those of build steps. Its value is the name of the step.
const Label = "ply.build.step"

// Containers is what steps need of the containers; container.Service has it.
type Containers interface {
	CreateFrom(ctx context.Context, sp spec.Spec, private []string, img *image.Image) (oci.ContainerID, []string, error)
	Start(ctx context.Context, ref string) error
	Wait(ctx context.Context, ref string, cond container.WaitCondition) (<-chan container.Exit, error)
	CommitLayer(ctx context.Context, ref string, lease *store.Lease, o container.LayerOptions) (oci.Chain, error)
	Remove(ctx context.Context, ref string, force, volumes, link bool) error
	List(ctx context.Context, o container.ListOptions) ([]*container.Container, error)
	Get(ctx context.Context, ref string, size bool) (*container.Container, error)
}

// Sessions connects the output; container.Sessions has it.
type Sessions interface {
	Attach(ctx context.Context, ref string, o session.AttachOptions) error
}

// Images records the images that containers of steps are made from; image.Service has it.
type Images interface {
	Put(ctx context.Context, lease *store.Lease, o image.PutOptions) (oci.ImageID, error)
	RemoveSteps(ctx context.Context, gone func(step string, used time.Time) bool) ([]image.Removed, int64, error)
}

// Options of New. All fields but Log are required.
type Options struct {
	Store      *store.Store
	Images     Images
	Containers Containers
	Sessions   Sessions
	ExecRoot   string // mounts are made below <ExecRoot>/build
	DataRoot   string // cache mounts lie below <DataRoot>/build/mounts
	Log        *slog.Logger
}

// Runner implements solver.Worker.
type Runner struct {
	o      Options
	mounts string
	caches caches

	// making is locked for reading while a container is made from an image of imageOf, and for writing while such images are removed.
	making sync.RWMutex

	mu   sync.Mutex
	next int
}

var _ solver.Worker = (*Runner)(nil)

// New returns a runner. It makes its directories.
func New(o Options) (*Runner, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Runner{o: o, mounts: filepath.Join(o.ExecRoot, "build"), caches: caches{dir: filepath.Join(o.DataRoot, "build", "mounts"), fs: o.Store.FS}}
	if err := errors.Join(durable.MkdirPrivate(o.Store.FS, r.mounts), o.Store.FS.MkdirAll(r.caches.dir, 0o700)); err != nil {
		return nil, errs.New(errs.Internal, "builder: %w", err)
	}
	return r, nil
}

// Restore removes what an engine that was killed left: mounts, and the containers of its steps.
func (r *Runner) Restore(ctx context.Context) error {
	list, err := r.o.Containers.List(ctx, container.ListOptions{All: true})
	if err != nil {
		return err
	}
	var all error
	for _, c := range list {
		if c.Step { // not by its label, which any container may have
			all = errors.Join(all, r.o.Containers.Remove(ctx, string(c.ID), true, true, false))
		}
	}
	entries, err := os.ReadDir(r.mounts)
	if err != nil {
		return errors.Join(all, err)
	}
	for _, e := range entries {
		all = errors.Join(all, r.clean(filepath.Join(r.mounts, e.Name())))
	}
	return errors.Join(all, r.caches.clean())
}

// clean unmounts everything below a directory of this package and removes it.
func (r *Runner) clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if e.IsDir() && strings.HasPrefix(e.Name(), "w") {
			err = errors.Join(err, r.o.Store.Layers.RemoveWritable(ctx, p))
			continue
		}
		err = errors.Join(err, r.o.Store.Layers.Unmount(ctx, p))
		for range 8 { // a mount point may carry several mounts
			if on, _ := mount.IsMounted(p); !on {
				break
			}
			err = errors.Join(err, mount.Unmount(p, true))
		}
	}
	err = errors.Join(err, r.o.Store.Layers.Unmount(ctx, dir), mount.Unmount(dir, true))
	return errors.Join(err, os.RemoveAll(dir))
}

// place makes a directory for mounts.
func (r *Runner) place(kind string) (string, error) {
	r.mu.Lock()
	r.next++
	dir := filepath.Join(r.mounts, fmt.Sprintf("%s-%d-%d", kind, os.Getpid(), r.next))
	r.mu.Unlock()
	return dir, os.Mkdir(dir, 0o700)
}

// Layer implements solver.Worker.
func (r *Runner) Layer(ctx context.Context, l solver.Leaser, base oci.Chain, write func(io.Writer) error) (_ oci.Chain, err error) {
	w, err := r.o.Store.Layers.Create(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	if err := write(w); err != nil {
		return nil, err
	}
	w.End()
	// The lease comes before the layer is visible, so that no collection sees it without one.
	chain := append(slices.Clone(base), w.DiffID())
	l.Layer(chain)
	info, err := w.Commit(ctx, base, chain.Top())
	if err != nil {
		return nil, err
	}
	return chain, r.o.Store.RecordLayer(info, nil)
}

// Scratch implements solver.Worker. The directory is one from which Restore removes what a crash has left.
func (r *Runner) Scratch() (*os.File, error) {
	return durable.Nameless(r.caches.dir)
}

// Rebase implements solver.Worker.
func (r *Runner) Rebase(ctx context.Context, l solver.Leaser, chain, base oci.Chain) (oci.Chain, error) {
	want := append(slices.Clone(base), chain.Top())
	l.Layer(want)
	if _, err := r.o.Store.Layers.Stat(ctx, want); !errors.Is(err, errs.NotFound) {
		return want, err
	}
	return r.Layer(ctx, l, base, func(w io.Writer) (err error) {
		tar, err := r.o.Store.Layers.Tar(ctx, chain)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tar.Close()) }()
		_, err = io.Copy(w, tar)
		return err
	})
}

// view is a chain that is mounted for reading.
type view struct {
	r    *Runner
	dir  string
	root *os.File
	tree *tree.Tree
}

func (v *view) Tree() *tree.Tree { return v.tree }

func (v *view) Close() error {
	return errors.Join(v.root.Close(), v.r.o.Store.Layers.Unmount(context.Background(), v.dir), os.Remove(v.dir))
}

// Mount implements solver.Worker.
func (r *Runner) Mount(ctx context.Context, chain oci.Chain) (_ solver.View, err error) {
	dir, err := r.place("view")
	if err != nil {
		return nil, err
	}
	if err := r.o.Store.Layers.View(ctx, chain, dir); err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	v := &view{r: r, dir: dir}
	if v.root, err = os.Open(dir); err == nil {
		v.tree, err = tree.New(v.root, tree.Options{})
	}
	if err != nil {
		return nil, errors.Join(err, r.clean(dir))
	}
	return v, nil
}

// LookupUser implements solver.Worker.
func (r *Runner) LookupUser(t *tree.Tree, name string, group bool) (uid, gid uint32, err error) {
	if t == nil {
		return 0, 0, errs.New(errs.Invalid, "unable to find %s: the file system has no /etc/passwd", name)
	}
	word := name
	if group {
		word = "0:" + name
	}
	a, err := rootfs.LookupUser(t.Root(), word, nil)
	return a.UID, a.GID, err
}

// endLimit bounds the work after a step was cancelled.
const endLimit = 30 * time.Second

// Run implements solver.Worker.
func (r *Runner) Run(ctx context.Context, l solver.Leaser, run *solver.Run) (_ map[int]oci.Chain, err error) {
	lease, ok := l.(*store.Lease)
	if !ok {
		return nil, errs.New(errs.Internal, "a build needs a lease of the store")
	}
	s := &step{r: r, run: run, lease: lease}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
		defer cancel()
		err = errors.Join(err, s.close(end))
	}()
	sp, err := s.prepare(ctx)
	if err != nil {
		return nil, err
	}
	id, warnings, err := s.create(ctx, sp)
	if err != nil {
		return nil, err
	}
	s.id = string(id)
	run.Started(id)
	for _, w := range warnings {
		run.Log(true, []byte("WARNING: "+w+"\n"))
	}
	exit, err := s.execute(ctx)
	if err != nil {
		return nil, err
	}
	valid := run.Exec.ValidExit
	if len(valid) == 0 {
		valid = []int{0}
	}
	if !slices.Contains(valid, exit.Code) {
		failed := &solver.ExitError{Command: run.Exec.Args, Code: exit.Code, OOMKilled: exit.OOMKilled}
		failed.Failed, err = s.commit(ctx)
		if err != nil {
			r.o.Log.Warn("the state of a failed step was not kept", "step", run.Vertex.Name, "err", err)
		}
		return nil, failed
	}
	return s.outputs(ctx)
}

// step is one command under way.
type step struct {
	r     *Runner
	run   *solver.Run
	lease *store.Lease
	id    string // of the container
	dir   string // mount points
	stubs []stub
	// private are variables that nothing may record: secrets, and proxies, which may have a password.
	private []string
	undo    []func(context.Context) error

	base   oci.Chain
	writes []writable // besides the root
}

// stub is a mount point that the root file system does not have.
type stub struct{ path string }

// writable is a mount that the command may change.
type writable struct {
	output int // -1 = changes are dropped
	dir    string
	chain  oci.Chain
}

// close undoes the step in reverse order.
func (s *step) close(ctx context.Context) error {
	var all error
	if s.id != "" {
		err := s.r.o.Containers.Remove(ctx, s.id, true, true, false)
		if err != nil && !errors.Is(err, errs.NotFound) {
			all = err
		}
	}
	for _, f := range slices.Backward(s.undo) {
		all = errors.Join(all, f(ctx))
	}
	return all
}

// create makes the container.
func (s *step) create(ctx context.Context, sp spec.Spec) (oci.ContainerID, []string, error) {
	s.r.making.RLock()
	defer s.r.making.RUnlock()
	img, err := s.image(ctx)
	if err != nil {
		return "", nil, err
	}
	return s.r.o.Containers.CreateFrom(ctx, sp, s.private, img)
}

// RemoveImages removes the images from which containers of steps were made.
func (r *Runner) RemoveImages(ctx context.Context) error {
	r.making.Lock()
	defer r.making.Unlock()
	_, _, err := r.o.Images.RemoveSteps(ctx, func(step string, _ time.Time) bool { return step == meta.StepOfRun })
	return err
}

// prepare makes the mounts, and returns the options of the container.
func (s *step) prepare(ctx context.Context) (sp spec.Spec, err error) {
	e := s.run.Exec
	if err := checkPlatform(s.run.Vertex.Platform); err != nil {
		return sp, err
	}
	sp = spec.Spec{
		Entrypoint: e.Args, Cmd: nil, Env: slices.Clone(e.Env), WorkingDir: e.Dir, User: e.User, Hostname: cmp.Or(e.Hostname, defaultHostname), CgroupParent: e.Cgroup,
		AttachStdout: true, AttachStderr: true, Privileged: e.Privileged, LogDriver: "none", Labels: map[string]string{Label: s.run.Vertex.Name},
		Healthcheck: &oci.Healthcheck{Test: []string{"NONE"}},
	}
	switch e.Network {
	case ops.NetworkHost:
		sp.NetworkMode = "host"
	case ops.NetworkNone:
		sp.NetworkMode = "none"
	default:
		sp.NetworkMode = s.run.Network
	}
	for _, h := range e.ExtraHosts {
		ip := h.IP
		if ip == ops.HostGateway {
			ip = "host-gateway"
		}
		sp.ExtraHosts = append(sp.ExtraHosts, h.Name+":"+ip)
	}
	for _, u := range e.Ulimits {
		sp.Ulimits = append(sp.Ulimits, spec.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if v := s.run.Vertex.Limits; v != nil {
		sp.Resources = spec.Resources{
			Memory: v.Memory, MemorySwap: v.MemorySwap, CPUShares: int64(v.CPUShares), CPUPeriod: int64(v.CPUPeriod), CPUQuota: v.CPUQuota,
			CpusetCpus: v.CpusetCpus, CpusetMems: v.CpusetMems,
		}
	}
	s.private = proxyEnv(e.Proxy)
	for _, secret := range e.SecretEnv {
		value, err := s.run.Client.Secret(ctx, secret.ID)
		if errors.Is(err, errs.NotFound) && secret.Optional {
			continue
		}
		if err != nil {
			return sp, err
		}
		s.private = append(s.private, secret.Name+"="+string(value))
	}
	if s.dir, err = s.r.place("step"); err != nil {
		return sp, err
	}
	s.undo = append(s.undo, func(context.Context) error { return s.r.clean(s.dir) })
	for i := range e.Mounts {
		m := &e.Mounts[i]
		if m.Target == "/" {
			if in := s.input(m); in != nil {
				s.base = in.Chain
			}
			sp.ReadonlyRootfs = m.ReadOnly
		}
	}
	for i := range e.Mounts {
		m := &e.Mounts[i]
		if m.Target == "/" {
			continue
		}
		if err := s.mount(ctx, i, m, &sp); err != nil {
			return sp, fmt.Errorf("mount at %s: %w", m.Target, err)
		}
	}
	return sp, nil
}

// native are the architectures whose programs the processors of another one run, too.
var native = map[string]string{"386": "amd64", "arm": "arm64"}

// checkPlatform refuses a platform whose programs this machine cannot run: otherwise the first of them would fail without a reason.
func checkPlatform(p oci.Platform) error {
	here := oci.HostPlatform()
	if p.Architecture == "" || p.Architecture == here.Architecture || native[p.Architecture] == here.Architecture || host.Emulator(p.Architecture) != "" {
		return nil
	}
	return errs.New(errs.Unimplemented, "this machine is %s, and no program that runs commands for %s is registered in binfmt_misc", here, p).
		WithHint("Install qemu-user-static and binfmt-support, or what your system has in their place.")
}

func proxyEnv(p ops.Proxy) (env []string) {
	for _, v := range [][2]string{{"HTTP_PROXY", p.HTTP}, {"HTTPS_PROXY", p.HTTPS}, {"FTP_PROXY", p.FTP}, {"NO_PROXY", p.No}, {"ALL_PROXY", p.All}} {
		if v[1] != "" {
			env = append(env, v[0]+"="+v[1], strings.ToLower(v[0])+"="+v[1])
		}
	}
	return env
}

func (s *step) input(m *ops.Mount) *solver.Result {
	if m.Input < 0 {
		return nil
	}
	return s.run.Inputs[m.Input]
}

// image records an image with the layers of the root, because a container refers to one. Its config has nothing that a container takes over.
func (s *step) image(ctx context.Context) (*image.Image, error) {
	p := s.run.Vertex.Platform
	if p.Architecture == "" {
		p = oci.HostPlatform()
	}
	cfg := oci.Config{Architecture: p.Architecture, Variant: p.Variant, OS: p.OS, RootFS: oci.RootFS{Type: "layers", DiffIDs: s.base}}
	raw, err := image.EncodeConfig(cfg)
	if err != nil {
		return nil, err
	}
	id, err := s.r.o.Images.Put(ctx, s.lease, image.PutOptions{Config: raw, Step: meta.StepOfRun})
	if err != nil {
		return nil, err
	}
	return &image.Image{ID: id, Config: cfg, Raw: raw, Chain: s.base}, nil
}

// execute runs the container to its end.
func (s *step) execute(ctx context.Context) (container.Exit, error) {
	none := container.Exit{}
	wait, err := s.r.o.Containers.Wait(ctx, s.id, container.WaitNextExit)
	if err != nil {
		return none, err
	}
	ready, attached := make(chan struct{}), make(chan error, 1)
	go func() {
		attached <- s.r.o.Sessions.Attach(ctx, s.id, session.AttachOptions{
			Stream: true, Stdout: output{s.run.Log, false}, Stderr: output{s.run.Log, true}, Ready: func() error { close(ready); return nil },
		})
	}()
	select {
	case <-ready:
	case err := <-attached:
		return none, errors.Join(err, errs.New(errs.Internal, "the output of the step could not be read"))
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
	if err := s.r.o.Containers.Start(ctx, s.id); err != nil {
		return none, err
	}
	select {
	case exit, ok := <-wait:
		if !ok {
			return none, errors.Join(context.Cause(ctx), errs.New(errs.Unavailable, "the engine is stopping"))
		}
		select {
		case err := <-attached: // all output is there
			return exit, err
		case <-ctx.Done():
			return none, context.Cause(ctx)
		}
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// output passes what a process writes to a log.
type output struct {
	log    func(bool, []byte)
	stderr bool
}

func (o output) Write(p []byte) (int, error) {
	o.log(o.stderr, p)
	return len(p), nil
}

// commit stores the changed root as a layer.
func (s *step) commit(ctx context.Context) (oci.Chain, error) {
	o := container.LayerOptions{Latest: s.run.Latest}
	if len(s.stubs) > 0 {
		o.Prepare = s.removeStubs
	}
	return s.r.o.Containers.CommitLayer(ctx, s.id, s.lease, o)
}

// outputs stores what the command changed.
func (s *step) outputs(ctx context.Context) (map[int]oci.Chain, error) {
	out := map[int]oci.Chain{}
	for _, m := range s.run.Exec.Mounts {
		if m.Target == "/" && m.Output >= 0 {
			chain := s.base
			if !m.ReadOnly {
				var err error
				if chain, err = s.commit(ctx); err != nil {
					return nil, err
				}
			}
			out[m.Output] = chain
		} else if m.Output >= 0 && m.ReadOnly {
			if in := s.input(&m); in != nil {
				out[m.Output] = in.Chain
			} else {
				out[m.Output] = nil
			}
		}
	}
	for _, w := range s.writes {
		if w.output < 0 {
			continue
		}
		chain, err := s.r.Layer(ctx, s.lease, w.chain, func(to io.Writer) error {
			if s.run.Latest.IsZero() {
				return s.r.o.Store.Layers.Diff(ctx, w.dir, w.chain, to)
			}
			c := layer.Clamp(to, s.run.Latest)
			return errors.Join(s.r.o.Store.Layers.Diff(ctx, w.dir, w.chain, c), c.Close())
		})
		if err != nil {
			return nil, err
		}
		out[w.output] = chain
	}
	return out, nil
}

// note remembers which components of a mount's target do not exist, so that they can be removed afterwards.
func (s *step) note(base *os.File, target string) {
	if s.run.Exec.KeepStubs {
		return
	}
	parts := strings.Split(strings.TrimPrefix(target, "/"), "/")
	for i := range parts {
		p := strings.Join(parts[:i+1], "/")
		missing := base == nil
		if !missing {
			f, err := openPath(base, p)
			if missing = errors.Is(err, unix.ENOENT); err == nil {
				_ = f.Close() // opened with O_PATH
			}
		}
		if missing {
			s.stubs = append(s.stubs, stub{p})
		}
	}
}

func cacheName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:])
}

// bind adds a prepared path of the host to the container.
func bind(sp *spec.Spec, source, target string, readOnly bool) {
	sp.Mounts = append(sp.Mounts, volume.MountSpec{Type: "bind", Source: source, Target: target, ReadOnly: readOnly, Propagation: "rprivate"})
}
