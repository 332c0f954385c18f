package container_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container"
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
	"ply/internal/store/layer"
	"ply/internal/store/layer/drivers"
	"ply/internal/volume"
	"ply/test/private"
)

func TestMain(m *testing.M) {
	code := m.Run()
	private.RemoveShim()
	os.Exit(code)
}

// world is a data root with one image, "box", and the services over it.
type world struct {
	t        testing.TB
	dir      string
	shim     string
	bus      *events.Bus
	store    *store.Store
	images   *image.Service
	vols     *volume.Service
	net      *fakeNetwork
	s        *container.Service
	files    *container.Files
	sessions *container.Sessions
	log      *slog.Logger
	tweak    func(*container.Options)
	driver   string // storage driver
	cgroups  string // parent of the cgroups of the containers
	wrap     func(layer.Driver) layer.Driver
}

// worlds counts the worlds, whose cgroups have different parents.
var worlds atomic.Int64

// newWorld returns a world on the default storage driver.
func newWorld(t testing.TB) *world { return newWorldWith(t, nil) }

func newWorldWith(t testing.TB, tweak func(*container.Options)) *world {
	return newWorldOn(t, drivers.Names()[0], tweak)
}

// onDrivers runs a test once per storage driver, for tests of what the driver does for containers.
func onDrivers(t *testing.T, test func(*testing.T, *world)) {
	for _, d := range drivers.Names() {
		t.Run(d, func(t *testing.T) { test(t, newWorldOn(t, d, nil)) })
	}
}

func newWorldOn(t testing.TB, driver string, tweak func(*container.Options)) *world {
	t.Helper()
	bin, err := private.Shim()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: t.TempDir(), shim: bin, bus: &events.Bus{}, net: &fakeNetwork{up: map[oci.ContainerID]string{}, made: map[oci.ContainerID]network.Attachment{}}, tweak: tweak, driver: driver,
		cgroups: fmt.Sprintf("/ply-test-%d-%d", os.Getpid(), worlds.Add(1))}
	w.log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	w.open()
	t.Cleanup(w.end)
	w.makeImage("box", nil)
	return w
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// open starts the services, as plyd does.
func (w *world) open() {
	w.t.Helper()
	drv, _, err := drivers.Open(durable.OS, filepath.Join(w.dir, "data"), w.driver)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.wrap != nil {
		drv = w.wrap(drv)
	}
	if w.store, err = store.Open(filepath.Join(w.dir, "data"), drv, store.Options{}); err != nil {
		w.t.Fatal(err)
	}
	w.images = image.New(w.store, image.Options{Log: w.log, Events: w.bus, Format: oci.FormatOCI})
	if w.vols, err = volume.New(volume.Options{Store: w.store, Root: filepath.Join(w.dir, "data", "volumes"),
		MountRoot: filepath.Join(w.dir, "run", "volumes"), Log: w.log, Events: w.bus}); err != nil {
		w.t.Fatal(err)
	}
	o := container.Options{
		Store: w.store, Images: w.images, Volumes: w.vols, Network: w.net, Events: w.bus, Log: w.log,
		ShimPath: w.shim, DataRoot: filepath.Join(w.dir, "data"), ExecRoot: filepath.Join(w.dir, "run"), CgroupParent: w.cgroups, StopTimeout: 2,
	}
	if w.tweak != nil {
		w.tweak(&o)
	}
	if w.s, err = container.New(o); err != nil {
		w.t.Fatal(err)
	}
	w.files, w.sessions = w.s.Files(), w.s.Sessions()
	if err := w.s.Restore(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

// close ends the services like the death of plyd; the containers run on.
func (w *world) close() {
	w.t.Helper()
	if err := w.s.Close(); err != nil {
		w.t.Error(err)
	}
	if err := w.store.Close(); err != nil {
		w.t.Error(err)
	}
}

// end removes all containers and fails the test when something of them is left.
func (w *world) end() {
	ctx := context.Background()
	list, err := w.s.List(ctx, container.ListOptions{All: true})
	if err != nil {
		w.t.Error(err)
	}
	for _, c := range list {
		err := w.s.Remove(ctx, string(c.ID), true, true, false)
		if err != nil && !(c.Spec.AutoRemove && errors.Is(err, errs.NotFound)) { // one with --rm may have ended meanwhile
			w.t.Errorf("remove %s: %v", c.Name, err)
		}
	}
	w.close()
	w.clean()
}

// clean checks that no mount, cgroup, namespace or directory is left behind.
func (w *world) clean() {
	w.t.Helper()
	parents, err := filepath.Glob("/sys/fs/cgroup/*" + w.cgroups)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range append(parents, "/sys/fs/cgroup"+w.cgroups) {
		if err := unix.Rmdir(p); err != nil && err != unix.ENOENT {
			left, _ := filepath.Glob(p + "/*/")
			w.t.Errorf("cgroups are left: %v %v", err, left)
		}
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], w.dir) {
			w.t.Errorf("mount left: %s", f[4])
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	for _, d := range []string{"data/containers", "run/containers"} {
		entries, err := os.ReadDir(filepath.Join(w.dir, d))
		if err != nil {
			w.t.Error(err)
		}
		for _, e := range entries {
			w.t.Errorf("left in %s: %s", d, e.Name())
		}
	}
	if n := len(w.net.up); n > 0 {
		w.t.Errorf("%d networks left", n)
	}
}

// file is one entry of a test image.
type file struct {
	name, data string
	mode       int64
	kind       byte
	uid, gid   int
}

var busyboxNames = strings.Fields("sh ls cat echo sleep true false id stty kill mount ps env head tail wc touch stat chmod cp ln rm mkdir nc yes test usleep find seq dd trap printf date ip readlink xz hostname mv chown setsid")

// boxFiles is the root file system of the image box.
func boxFiles(t testing.TB) []file {
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("these tests run Debian's busybox-static: %v", err)
	}
	files := []file{{name: "bin", kind: tar.TypeDir, mode: 0o755}, {name: "bin/busybox", data: string(data), mode: 0o755}}
	for _, n := range busyboxNames {
		files = append(files, file{name: "bin/" + n, kind: tar.TypeSymlink, data: "busybox"})
	}
	return append(files,
		file{name: "etc", kind: tar.TypeDir, mode: 0o755},
		file{name: "etc/passwd", data: "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n", mode: 0o644},
		file{name: "etc/group", data: "root:x:0:\nuser:x:1000:\n", mode: 0o644},
		file{name: "tmp", kind: tar.TypeDir, mode: 0o1777},
		file{name: "root", kind: tar.TypeDir, mode: 0o700},
		file{name: "seeded", kind: tar.TypeDir, mode: 0o750, uid: 1000, gid: 1000},
		file{name: "seeded/file", data: "from the image\n", mode: 0o640, uid: 1000, gid: 1000},
		file{name: "seeded/link", kind: tar.TypeSymlink, data: "/etc/passwd"},
		file{name: "seeded/hard", kind: tar.TypeLink, data: "seeded/file"},
	)
}

func makeTar(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Typeflag: f.kind, Uid: f.uid, Gid: f.gid, ModTime: time.Unix(1e9, 0)}
		switch f.kind {
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = f.data
		case tar.TypeDir:
			h.Name += "/"
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.data))
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := tw.Write([]byte(f.data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// makeImage makes an image of one layer.
func (w *world) makeImage(name string, edit func(*oci.Config, *[]file)) oci.ImageID {
	w.t.Helper()
	ctx := context.Background()
	files := boxFiles(w.t)
	cfg := oci.Config{Config: oci.RunConfig{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin", "FROM=image"}, Labels: map[string]string{"of": "image"}}}
	if edit != nil {
		edit(&cfg, &files)
	}
	lw, err := w.store.Layers.Create(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := lw.Write(makeTar(w.t, files)); err != nil {
		w.t.Fatal(err)
	}
	info, err := lw.Commit(ctx, nil, "")
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.RecordLayer(info, nil); err != nil {
		w.t.Fatal(err)
	}
	cfg.RootFS.DiffIDs = oci.Chain{info.DiffID}
	cfg.History = []oci.History{{CreatedBy: "a test"}}
	ref, err := oci.ParseReference(name)
	if err != nil {
		w.t.Fatal(err)
	}
	lease := w.store.Lease()
	defer lease.Release()
	id, err := w.images.Create(ctx, lease, image.CreateOptions{Config: cfg, Name: ref.WithDefaultTag()})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func sh(line string) spec.Spec {
	return spec.Spec{Image: "box", Cmd: []string{"sh", "-c", line}, NetworkMode: "none"}
}

func (w *world) create(spec spec.Spec) string {
	w.t.Helper()
	id, _, err := w.s.Create(context.Background(), spec)
	if err != nil {
		w.t.Fatalf("create: %v", err)
	}
	return string(id)
}

func (w *world) start(id string) {
	w.t.Helper()
	if err := w.s.Start(context.Background(), id); err != nil {
		w.t.Fatalf("start: %v", err)
	}
}

// up starts a container that runs until it is stopped.
func (w *world) up(edit func(*spec.Spec)) string {
	w.t.Helper()
	spec := sh("trap 'exit 3' TERM; echo ready; while :; do sleep 1 & wait $!; done")
	if edit != nil {
		edit(&spec)
	}
	id := w.create(spec)
	w.start(id)
	w.waitLog(id, "ready")
	return id
}

// run runs a container to its end and returns exit code, stdout and stderr.
func (w *world) run(spec spec.Spec) (code int, stdout, stderr string) {
	w.t.Helper()
	id := w.create(spec)
	exit := w.wait(id, container.WaitNextExit)
	w.start(id)
	e := recv(w.t, exit)
	stdout, stderr = w.logs(id)
	return e.Code, stdout, stderr
}

func (w *world) wait(id string, cond container.WaitCondition) <-chan container.Exit {
	w.t.Helper()
	c, err := w.s.Wait(context.Background(), id, cond)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

const patience = 60 * time.Second

func recv(t testing.TB, c <-chan container.Exit) container.Exit {
	t.Helper()
	select {
	case e, ok := <-c:
		if !ok {
			t.Fatal("wait was given up")
		}
		return e
	case <-time.After(patience):
		t.Fatal("container did not end")
		return container.Exit{}
	}
}

func (w *world) logs(id string) (stdout, stderr string) {
	w.t.Helper()
	var o, e bytes.Buffer
	if err := w.sessions.Logs(context.Background(), id, session.LogOptions{Stdout: true, Stderr: true, Tail: -1}, &o, &e); err != nil {
		w.t.Fatal(err)
	}
	return o.String(), e.String()
}

func (w *world) waitLog(id, text string) {
	w.t.Helper()
	w.eventually("log has "+text, func() bool {
		o, e := w.logs(id)
		return strings.Contains(o+e, text)
	})
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("never: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (w *world) get(id string) *container.Container {
	w.t.Helper()
	c, err := w.s.Get(context.Background(), id, false)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// exec runs a command in a running container.
func (w *world) exec(id string, cmd ...string) (code int, out string) {
	w.t.Helper()
	return w.execSpec(id, spec.ExecSpec{Cmd: cmd, AttachStdout: true, AttachStderr: true})
}

func (w *world) execSpec(id string, spec spec.ExecSpec) (code int, out string) {
	w.t.Helper()
	ctx := context.Background()
	e, err := w.sessions.ExecCreate(ctx, id, spec)
	if err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	err = w.sessions.ExecStart(ctx, e, session.AttachOptions{Stdout: &b, Stderr: &b, Stream: true}, false, [2]uint{})
	x, gerr := w.sessions.ExecGet(ctx, e)
	if gerr != nil {
		w.t.Fatal(gerr)
	}
	if x.ExitCode == nil {
		w.t.Fatalf("exec %v: no exit code: %v", spec.Cmd, err)
	}
	if err != nil {
		return *x.ExitCode, err.Error()
	}
	return *x.ExitCode, b.String()
}

func wantErr(t testing.TB, err, class error, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", text)
	}
	if !strings.Contains(err.Error(), text) {
		t.Errorf("error = %q, want it to hold %q", err, text)
	}
	if class != nil && !errors.Is(err, class) {
		t.Errorf("error %q is not of class %v", err, class)
	}
}

// fakeNetwork makes empty namespaces.
type fakeNetwork struct {
	mu   sync.Mutex
	up   map[oci.ContainerID]string
	made map[oci.ContainerID]network.Attachment
	fail error
	last network.AttachRequest

	linked []oci.ContainerID // of the last Relink

	attaching func(network.AttachRequest) // called by Attach, if set
	detaching func()                      // called by Detach, if set
}

func (f *fakeNetwork) Attach(_ context.Context, req network.AttachRequest) (a network.Attachment, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = req
	if f.attaching != nil {
		f.attaching(req)
	}
	if f.fail != nil {
		return a, f.fail
	}
	if err := os.WriteFile(req.NetnsPath, nil, 0o600); err != nil {
		return a, err
	}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked, so that the thread ends
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), req.NetnsPath, "", unix.MS_BIND, "")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return a, err
	}
	f.up[req.ID] = req.NetnsPath
	if mode := req.Endpoints[0].Network; mode != "none" {
		a.Endpoints = map[string]network.Endpoint{mode: {Network: mode, IPv4: netip.MustParsePrefix("172.17.0.2/16"), Gateway: netip.MustParseAddr("172.17.0.1")}}
		for _, p := range req.Ports {
			if p.HostPort == 0 {
				p.HostPort = 49153
			}
			a.Ports = append(a.Ports, p)
		}
	}
	f.made[req.ID] = a
	return a, nil
}

func (f *fakeNetwork) Connect(_ context.Context, id oci.ContainerID, _ string, req network.EndpointRequest) (network.Attachment, error) {
	return f.change(id, func(eps map[string]network.Endpoint) { eps[req.Network] = network.Endpoint{Network: req.Network} })
}

func (f *fakeNetwork) Disconnect(_ context.Context, id oci.ContainerID, ref string) (network.Attachment, error) {
	return f.change(id, func(eps map[string]network.Endpoint) { delete(eps, ref) })
}

func (f *fakeNetwork) change(id oci.ContainerID, do func(map[string]network.Endpoint)) (network.Attachment, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.made[id]
	if !ok {
		return a, errs.New(errs.Internal, "container %s is not attached", id)
	}
	a.Endpoints = maps.Clone(a.Endpoints)
	do(a.Endpoints)
	f.made[id] = a
	return a, nil
}

func (f *fakeNetwork) Settle(context.Context, oci.ContainerID) (bool, error) { return false, nil }

func (f *fakeNetwork) HandOver(id oci.ContainerID, take func([]proxy.Port, []*os.File) error) error {
	return take(nil, nil)
}

func (f *fakeNetwork) Rename(oci.ContainerID, string, string) error { return nil }

func (f *fakeNetwork) Relink(_ context.Context, _ oci.ContainerID, _ string, linked []oci.ContainerID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.linked = linked
	return nil
}

func (f *fakeNetwork) Name(ref string) (string, error) {
	if ref == "missing" {
		return "", errs.New(errs.NotFound, "network %s not found", ref)
	}
	return ref, nil
}

func (f *fakeNetwork) Tables() string { return "" }

func (f *fakeNetwork) Attached(id oci.ContainerID) (network.Attachment, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.made[id]
	return a, ok
}

func (f *fakeNetwork) Detach(_ context.Context, id oci.ContainerID, path string) error {
	if f.detaching != nil {
		f.detaching()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.up, id)
	delete(f.made, id)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// health returns a check with a short interval.
func health(test ...string) *oci.Healthcheck {
	return &oci.Healthcheck{Test: test, Interval: 50 * time.Millisecond, Timeout: 20 * time.Second, Retries: 2}
}

func itoa(n int) string    { return strconv.Itoa(n) }
func utoa(n uint64) string { return strconv.FormatUint(n, 10) }
