package importer_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode"

	"ply/internal/container"
	"ply/internal/container/rootfs"
	"ply/internal/container/spec"
	"ply/internal/dockerroot/dockerroottest"
	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/importer"
	"ply/internal/network"
	"ply/internal/network/proxy"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/layer/drivers"
	"ply/internal/transfer/archive"
	"ply/internal/volume"
	"ply/internal/wire"
)

const (
	one = "1111111111111111111111111111111111111111111111111111111111111111"
	two = "2222222222222222222222222222222222222222222222222222222222222222"
)

// networks are those of an engine, by name. They satisfy what the importer and the containers need.
type networks struct {
	mu     sync.Mutex
	byName map[string]network.CreateOptions
}

func (n *networks) Get(_ context.Context, ref string) (*network.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o, ok := n.byName[ref]; ok {
		return &network.Network{Name: ref, ID: o.ID}, nil
	}
	return nil, errs.New(errs.NotFound, "network %s not found", ref)
}

func (n *networks) Create(_ context.Context, o network.CreateOptions) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o.Driver != "bridge" {
		return "", errs.New(errs.NotFound, "could not find plugin %s", o.Driver)
	}
	n.byName[o.Name] = o
	return o.ID, nil
}

func (n *networks) Name(ref string) (string, error) {
	if ref == "bridge" {
		return ref, nil
	}
	net, err := n.Get(context.Background(), ref)
	if err != nil {
		return "", err
	}
	return net.Name, nil
}

func (*networks) Attach(context.Context, network.AttachRequest) (network.Attachment, error) {
	return network.Attachment{}, errs.New(errs.Unavailable, "nothing is started here")
}
func (*networks) Detach(context.Context, oci.ContainerID, string) error { return nil }
func (*networks) Attached(oci.ContainerID) (network.Attachment, bool) {
	return network.Attachment{}, false
}
func (*networks) Connect(context.Context, oci.ContainerID, string, network.EndpointRequest) (network.Attachment, error) {
	return network.Attachment{}, nil
}
func (*networks) Disconnect(context.Context, oci.ContainerID, string) (network.Attachment, error) {
	return network.Attachment{}, nil
}
func (*networks) Settle(context.Context, oci.ContainerID) (bool, error) { return false, nil }

func (*networks) HandOver(oci.ContainerID, func([]proxy.Port, []*os.File) error) error { return nil }
func (*networks) Rename(oci.ContainerID, string, string) error                         { return nil }
func (*networks) Relink(context.Context, oci.ContainerID, string, []oci.ContainerID) error {
	return nil
}
func (*networks) Tables() string { return "" }

// world is an engine without a network.
type world struct {
	t          testing.TB
	dir        string
	store      *store.Store
	images     *image.Service
	volumes    *volume.Service
	networks   *networks
	containers *container.Service
	importer   *importer.Service
	during     func(importer.Progress) // is called by run; nil = nothing
}

// open opens the data root in dir, as plyd does at its start.
func open(t testing.TB, dir, driver string, fsys durable.FS, nets *networks) *world {
	t.Helper()
	w := &world{t: t, dir: dir, networks: nets}
	fatal := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	data, run := filepath.Join(dir, "data"), filepath.Join(dir, "run")
	var err error
	w.store, err = store.OpenWith(data, func(fsys durable.FS, root string) (layer.Driver, error) {
		d, _, err := drivers.Open(fsys, root, driver)
		return d, err
	}, store.Options{FS: fsys})
	fatal(err)
	w.images = image.New(w.store, image.Options{})
	w.volumes, err = volume.New(volume.Options{Store: w.store, Root: filepath.Join(data, "volumes"), MountRoot: filepath.Join(run, "volumes"), Pack: rootfs.Pack, Unpack: rootfs.Unpack})
	fatal(err)
	w.containers, err = container.New(container.Options{
		Store: w.store, Images: w.images, Volumes: w.volumes, Network: nets, ShimPath: "/nowhere/ply-shim", DataRoot: data, ExecRoot: run,
	})
	fatal(err)
	fatal(w.containers.Restore(t.Context()))
	w.importer = importer.New(importer.Services{
		Store: w.store, Images: w.images, Archive: archive.New(w.store, w.images, archive.Options{}), Volumes: volume.Contents{Service: w.volumes}, Networks: nets,
		Containers: w.containers, Adopter: container.NewAdopter(w.containers),
	})
	return w
}

func (w *world) close() {
	w.t.Helper()
	if err := errors.Join(w.containers.Close(), w.store.Close()); err != nil {
		w.t.Error(err)
	}
}

// translate is a small translation of options; that of the API has its own tests.
func translate(b *wire.CreateBody) (spec.Spec, error) {
	if b.HostConfig.VolumeDriver != "" {
		return spec.Spec{}, errs.New(errs.Invalid, "HostConfig.VolumeDriver is not supported")
	}
	sp := spec.Spec{Image: b.Image, Cmd: b.Cmd, NetworkMode: b.HostConfig.NetworkMode, Binds: b.HostConfig.Binds, LogDriver: b.HostConfig.LogConfig.Type,
		StorageOpt: b.HostConfig.StorageOpt}
	if sp.LogDriver == "" {
		sp.LogDriver = "json-file"
	}
	for name := range b.NetworkingConfig.EndpointsConfig {
		if name != "bridge" {
			sp.Endpoints = map[string]network.EndpointSpec{name: {}}
		}
	}
	return sp, nil
}

// run imports a root and returns one line per object, and the summary.
func (w *world) run(o importer.Options) (lines []string, sum importer.Summary, err error) {
	w.t.Helper()
	o.Spec = translate
	sum, err = w.importer.Import(w.t.Context(), o, importer.Listener{
		Progress: func(p importer.Progress) {
			if w.during != nil {
				w.during(p)
			}
		},
		Object: func(o importer.Object) {
			line := fmt.Sprintf("%s %s %s", o.Kind, o.Name, o.State)
			if o.As != "" {
				line += " as " + o.As
			}
			if o.Note != "" {
				line += ": " + o.Note
			}
			lines = append(lines, line)
		},
	})
	return lines, sum, err
}

// everything returns what came over, in words, as far as a user sees it.
func (w *world) everything() string {
	w.t.Helper()
	var b strings.Builder
	ctx := w.t.Context()
	images, err := w.images.List(ctx, image.ListOptions{All: true})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range images {
		if err := w.store.Health.Check(ctx, i.Chain); err != nil {
			w.t.Errorf("image %s: %v", i.ID, err)
		}
		fmt.Fprintln(&b, "image", i.ID, i.Names, i.Digests, i.Parent)
	}
	volumes, err := w.volumes.List(ctx, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range volumes {
		data, err := os.ReadFile(filepath.Join(v.Mountpoint, "file"))
		fmt.Fprintln(&b, "volume", v.Name, v.Labels, v.Options, v.Created.UnixNano(), v.RefCount, string(data), err)
	}
	containers, err := w.containers.List(ctx, container.ListOptions{All: true})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range containers {
		changes, err := w.containers.Changes(ctx, string(c.ID))
		if err != nil {
			w.t.Errorf("container %s: %v", c.Name, err)
		}
		log, _ := os.ReadFile(c.LogPath)
		fmt.Fprintln(&b, "container", c.ID, c.Name, c.Image, c.State.Status, c.State.ExitCode, c.Mounts, c.Spec.NetworkMode, changes, string(log))
	}
	lines := strings.Split(b.String(), "\n")
	slices.Sort(lines)
	return strings.ReplaceAll(strings.Join(lines, "\n"), w.dir, "")
}

// source returns a root with two of everything, one container on top of the other.
func source(t testing.TB) *dockerroottest.Fixture {
	f := dockerroottest.New(t)
	base, _ := f.Layer(nil, "a", "one", "gone", "x")
	f.Image(base)
	chain, _ := f.Layer(base, "b", "two", "c", strings.Repeat("three ", 50_000))
	id := f.Image(chain, "x:1", "x@sha256:"+one)
	networking := map[string]any{"Networks": map[string]any{"net": map[string]any{"Aliases": []string{"al"}}}}
	f.Container(one, id, map[string]any{"NetworkSettings": networking, "MountPoints": map[string]any{
		"/d": map[string]any{"Type": "volume", "Name": "data", "Destination": "/d", "RW": true, "Driver": "local"},
		"/h": map[string]any{"Type": "bind", "Source": "/nowhere/at/all", "Destination": "/h", "Propagation": "rprivate"},
	}}, map[string]any{"NetworkMode": "net", "Binds": []string{"data:/d", "/nowhere/at/all:/h:ro"}, "LogConfig": map[string]any{"Type": "json-file"}})
	f.Container(two, id, map[string]any{"State": map[string]any{"Running": true, "Pid": 1, "StartedAt": "2026-01-02T03:04:05Z"}}, map[string]any{"NetworkMode": "container:c11"})
	f.Write("containers/"+one+"/"+one+"-json.log", `{"log":"hello\n","stream":"stdout","time":"2026-01-02T03:04:05.1Z"}`+"\n")
	f.Network(one, "net", nil)
	f.Volume("data", `{"Name":"data","Driver":"local","Labels":{"l":"1"}}`)
	f.Volume("plain", "")
	upper := "overlay2/upper-11/diff/"
	if err := errors.Join(syscall.Mknod(f.Path(upper+"gone"), syscall.S_IFCHR, 0), os.Link(f.Path(upper+"changed"), f.Path(upper+"twin"))); err != nil {
		t.Fatal(err)
	}
	return f
}

func newNetworks() *networks { return &networks{byName: map[string]network.CreateOptions{}} }

// Everything comes over with every storage driver, once.
func TestImport(t *testing.T) {
	f := source(t)
	var first string
	for _, driver := range drivers.Names() {
		t.Run(driver, func(t *testing.T) {
			w := open(t, t.TempDir(), driver, durable.OS, newNetworks())
			defer w.close()
			dry, sum, err := w.run(importer.Options{Dir: f.Dir, DryRun: true})
			if err != nil || sum[importer.Planned] != 7 || !sum.Complete() {
				t.Fatalf("%v %v %v", sum, err, dry)
			}
			if got := w.everything(); got != "" {
				t.Errorf("a dry run left\n%s", got)
			}
			lines, sum, err := w.run(importer.Options{Dir: f.Dir})
			if err != nil || sum[importer.Imported] != 7 || !sum.Complete() {
				t.Fatalf("%v %v %v", sum, err, lines)
			}
			if !slices.Contains(lines, "container c22 imported: it ran when docker ended: its exit code is 255") {
				t.Errorf("%q", lines)
			}
			got := w.everything()
			for _, want := range []string{
				"image " + "sha256:", "[docker.io/library/x:1] [docker.io/library/x@sha256:" + one + "]", "volume data map[l:1]", "container " + one + " c11", "exited 3", "{/changed 1} {/gone 2} {/twin 1}",
				"container " + two + " c22", "exited 255", "hello", "1 data <nil>", "container:" + one,
			} {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in\n%s", want, got)
				}
			}
			if net := w.networks.byName["net"]; net.ID != one || net.Pools[0].Gateway != netip.MustParseAddr("10.9.0.1") {
				t.Errorf("network %+v", net)
			}
			if again, sum, err := w.run(importer.Options{Dir: f.Dir}); err != nil || sum[importer.Present] != 7 || len(sum) != 1 {
				t.Errorf("again: %v %v %v", sum, err, again)
			}
			if after := w.everything(); after != got {
				t.Errorf("the second import changed\n%s\nto\n%s", got, after)
			}
			if first == "" {
				first = got
			} else if got != first {
				t.Errorf("with another driver:\n%s\nwant\n%s", got, first)
			}
		})
	}
}

// What is damaged is named, with what needs it; the rest comes over, and what was damaged when it is whole.
func TestDamagedObjects(t *testing.T) {
	f := source(t)
	chain, _ := f.Layer(nil, "z", "other")
	f.Image(chain)
	name := f.Path("overlay2/cache-" + chain.Top().Short() + "/diff/z")
	if err := os.WriteFile(name, []byte("OTHER"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.Container(two, oci.ImageID("sha256:"+two), nil, nil)
	f.Volume("foreign", `{"Name":"foreign","Driver":"nfs"}`)
	f.Network(two, "overlay", map[string]any{"networkType": "overlay"})
	w := open(t, t.TempDir(), drivers.Names()[0], durable.OS, newNetworks())
	defer w.close()
	lines, sum, err := w.run(importer.Options{Dir: f.Dir})
	if err != nil || sum.Complete() {
		t.Fatalf("%v %v", sum, err)
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"failed: layer", "checksum", "volume foreign left: its data is with the volume driver nfs", "network overlay failed: could not find plugin", "container c22 failed: its image", "container c11 imported"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if err := os.WriteFile(name, []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, sum, _ := w.run(importer.Options{Dir: f.Dir}); sum[importer.Imported] != 1 {
		t.Errorf("when the layer is whole: %v", sum)
	}
}

// A name that something else has is a conflict. With a prefix the object gets another name, and what refers to it follows.
func TestConflicts(t *testing.T) {
	f := source(t)
	w := open(t, t.TempDir(), drivers.Names()[0], durable.OS, newNetworks())
	defer w.close()
	w.networks.byName["net"] = network.CreateOptions{ID: two}
	if _, err := w.volumes.Create(t.Context(), "data", "", nil, nil); err != nil {
		t.Fatal(err)
	}
	lines, sum, err := w.run(importer.Options{Dir: f.Dir})
	if err != nil || sum[importer.Conflict] != 2 || sum[importer.Failed] != 2 {
		t.Fatalf("%v %v %q", sum, err, lines)
	}
	if _, _, err := w.run(importer.Options{Dir: f.Dir, Prefix: "-x"}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a prefix with which no name begins: %v", err)
	}
	lines, sum, err = w.run(importer.Options{Dir: f.Dir, Prefix: "old-"})
	if err != nil || !sum.Complete() || !slices.Contains(lines, "volume data imported as old-data") || !slices.Contains(lines, "network net imported as old-net") {
		t.Fatalf("%v %v %q", sum, err, lines)
	}
	c, err := w.containers.Get(t.Context(), one, false)
	if err != nil {
		t.Fatal(err)
	}
	if c.Spec.NetworkMode != "old-net" || c.Spec.Binds[0] != "old-data:/d" || !slices.ContainsFunc(c.Mounts, func(m volume.Mount) bool { return m.Name == "old-data" && m.Target == "/d" && m.RW }) {
		t.Errorf("%+v", c)
	}
	if _, sum, err := w.run(importer.Options{Dir: f.Dir, Prefix: "old-"}); err != nil || len(sum) != 1 || sum[importer.Present] != 7 {
		t.Errorf("again: %v %v", sum, err)
	}
}

// A container whose name is the ID of another one takes nothing from that one.
func TestNameThatIsAnID(t *testing.T) {
	f := source(t)
	id := f.Image(nil)
	const three = "3333333333333333333333333333333333333333333333333333333333333333"
	f.Container(two, id, map[string]any{"Name": "/00"}, nil)
	f.Container(three, id, map[string]any{"Name": "/" + two}, nil)
	f.Container(one, id, nil, map[string]any{"NetworkMode": "container:" + two})
	w := open(t, t.TempDir(), drivers.Names()[0], durable.OS, newNetworks())
	defer w.close()
	lines, _, err := w.run(importer.Options{Dir: f.Dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"c11", "00", two} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "container "+name+" ") }) {
			t.Errorf("nothing is said about container %s: %q", name, lines)
		}
	}
	if c, err := w.containers.Get(t.Context(), "c11", false); err != nil || c.Spec.NetworkMode != "container:"+two {
		t.Errorf("%+v %v", c, err)
	}
}

// A container whose writable layer is limited comes over with the limit, or not at all.
func TestLimitedContainer(t *testing.T) {
	f := source(t)
	id := f.Image(nil)
	f.Container(two, id, nil, map[string]any{"NetworkMode": "default", "StorageOpt": map[string]string{"size": "100m"}})
	w := open(t, t.TempDir(), drivers.Names()[0], durable.OS, newNetworks())
	defer w.close()
	lines, _, err := w.run(importer.Options{Dir: f.Dir})
	if err != nil {
		t.Fatal(err)
	}
	want := "container c22 imported"
	if err := w.store.Layers.(layer.WritableLimiter).CanLimit(w.dir); err != nil {
		want = "container c22 failed: "
	}
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, want) }) {
		t.Errorf("no %q in %q", want, lines)
	}
}

// What names say reaches no terminal.
func TestControlCharacters(t *testing.T) {
	f := source(t)
	f.Volume("a\x1b]0;title\a", "")
	f.Container(two, oci.ImageID("sha256:"+two), map[string]any{"Name": "/\u009b31m", "Config": map[string]any{"Image": "\x1b[2J"}}, nil)
	w := open(t, t.TempDir(), drivers.Names()[0], durable.OS, newNetworks())
	defer w.close()
	lines, sum, err := w.run(importer.Options{Dir: f.Dir, DryRun: true})
	if err != nil || sum.Complete() {
		t.Fatal(sum, err)
	}
	if text := strings.Join(lines, ""); strings.ContainsFunc(text, unicode.IsControl) {
		t.Errorf("%q", text)
	}
}

// A name that is given to another image while the layers come over stays with that one.
func TestNameIsTakenMeanwhile(t *testing.T) {
	for _, containerd := range []bool{false, true} {
		f, other := source(t), dockerroottest.New(t)
		if containerd {
			f = dockerroottest.New(t)
			f.Containerd("containerd/daemon", "docker.io/library/x:1", one)
		}
		chain, _ := other.Layer(nil, "z", "other")
		id := other.Image(chain, "y:1")
		w := open(t, t.TempDir(), drivers.Names()[0], durable.OS, newNetworks())
		if _, sum, err := w.run(importer.Options{Dir: other.Dir}); err != nil || !sum.Complete() {
			t.Fatal(sum, err)
		}
		ref, err := oci.ParseReference("x:1")
		if err != nil {
			t.Fatal(err)
		}
		w.during = func(p importer.Progress) {
			if p.Kind == "image" && p.Done > 0 {
				if err := w.images.Tag(t.Context(), string(id), ref); err != nil {
					t.Error(err)
				}
				w.during = nil
			}
		}
		lines, sum, err := w.run(importer.Options{Dir: f.Dir})
		if err != nil || w.during != nil || sum[importer.Conflict] != 1 {
			t.Errorf("%v %v %q", sum, err, lines)
		}
		if have, _, err := w.images.Find("x:1"); err != nil || have != id {
			t.Errorf("x:1 is %s, %v, want %s", have, err, id)
		}
		w.close()
	}
}

// In each round another disk operation of an import fails, or all from then on, as if the engine had been killed there. After a restart the same
// command brings the rest, and the result is that of an import without faults.
func TestImportFaults(t *testing.T) {
	f := source(t)
	driver := drivers.Names()[0]
	whole := open(t, t.TempDir(), driver, durable.OS, newNetworks())
	if _, sum, err := whole.run(importer.Options{Dir: f.Dir}); err != nil || !sum.Complete() {
		t.Fatal(sum, err)
	}
	want := whole.everything()
	whole.close()
	step := 7
	if os.Getenv("PLY_NIGHTLY") != "" {
		step = 1
	}
	operations := 0
	for n := 1; ; n += step {
		dir, nets := t.TempDir(), newNetworks()
		faulty := &faultfs.FS{Under: durable.OS, Forever: n%2 == 0, Err: syscall.EIO, Short: n%3 == 0}
		w := open(t, dir, driver, faulty, nets)
		faulty.FailAt = faulty.Count() + n
		_, sum, err := w.run(importer.Options{Dir: f.Dir})
		hit := faulty.Hit()
		if hit && err == nil && sum.Complete() && faulty.Forever {
			t.Errorf("operation %d failed for ever, and everything came over: %v", n, sum)
		}
		_ = errors.Join(w.containers.Close(), w.store.Close()) // the mark of the database may fail too
		w = open(t, dir, driver, durable.OS, nets)
		lines, sum, err := w.run(importer.Options{Dir: f.Dir})
		if err != nil || !sum.Complete() {
			t.Errorf("operation %d: again: %v %v %q", n, sum, err, lines)
		}
		if got := w.everything(); got != want {
			t.Errorf("operation %d:\n%s\nwant\n%s", n, got, want)
		}
		w.close()
		if !hit {
			break
		}
		operations = n
	}
	if operations < 50 {
		t.Errorf("only %d operations", operations)
	}
	t.Logf("%d operations", operations)
}

// A log that was emptied while its engine wrote on begins with a hole. It comes over as a hole, however large it is.
func TestLogWithAHole(t *testing.T) {
	f := source(t)
	name := f.Path("containers/" + one + "/" + one + "-json.log")
	const hole = 200 << 20
	line := `{"log":"after\n","stream":"stdout","time":"2026-01-02T03:04:05.1Z"}` + "\n"
	log, err := os.OpenFile(name, os.O_RDWR|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = log.WriteAt([]byte(line), hole)
	if err := errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	w := open(t, t.TempDir(), drivers.Names()[0], durable.OS, newNetworks())
	defer w.close()
	if lines, sum, err := w.run(importer.Options{Dir: f.Dir}); err != nil || sum[importer.Imported] != 7 {
		t.Fatalf("%v %v %v", sum, err, lines)
	}
	c, err := w.containers.Get(t.Context(), one, false)
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(c.LogPath, &st); err != nil || st.Size != hole+int64(len(line)) || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	copied, err := os.Open(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	got := make([]byte, len(line))
	if _, err := copied.ReadAt(got, hole); err != nil || string(got) != line {
		t.Errorf("%q, %v", got, err)
	}
}
