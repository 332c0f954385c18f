package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/build"
	"ply/internal/build/cache"
	"ply/internal/build/dockerfile"
	"ply/internal/build/history"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/container/rootfs"
	"ply/internal/container/session"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/host"
	"ply/internal/image"
	"ply/internal/importer"
	"ply/internal/network"
	"ply/internal/oci"
	"ply/internal/store/check"
	"ply/internal/store/layer"
	"ply/internal/system"
	"ply/internal/transfer"
	"ply/internal/version"
	"ply/internal/volume"
)

// moment is the time of all that the fakes report.
var moment = time.Date(2026, 3, 4, 5, 6, 7, 890, time.UTC)

var (
	idBusybox = oci.ImageID(oci.DigestOf([]byte("busybox")))
	idBare    = oci.ImageID(oci.DigestOf([]byte("bare")))
	diffA     = oci.DiffID(oci.DigestOf([]byte("layer a")))
	diffB     = oci.DiffID(oci.DigestOf([]byte("layer b")))
	ctrWeb    = oci.ContainerID(strings.Repeat("a1", 32))
	ctrOld    = oci.ContainerID(strings.Repeat("b2", 32))
	netID     = strings.Repeat("c3", 32)
)

func ref(s string) oci.Reference {
	r, err := oci.ParseReference(s)
	if err != nil {
		panic(err)
	}
	return r
}

// fakeImages has two images.
type fakeImages struct {
	mu     sync.Mutex
	tagged []string
}

func (f *fakeImages) busybox() *image.Image {
	created := moment
	return &image.Image{ID: idBusybox, Names: []oci.Reference{ref("busybox:latest"), ref("registry.example:5000/a/b:1")},
		Digests: []oci.Reference{ref("busybox@" + string(oci.DigestOf([]byte("manifest"))))}, Size: 4_000_000, Shared: 1_000_000, Tagged: moment,
		Config: oci.Config{Created: &created, Author: "mhk", Architecture: "amd64", OS: "linux",
			Config:  oci.RunConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}, Labels: map[string]string{"l": "<&>"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}},
			RootFS:  oci.RootFS{Type: "layers", DiffIDs: oci.Chain{diffA, diffB}},
			History: []oci.History{{CreatedBy: "ADD x", Created: &created}, {CreatedBy: "RUN y", Comment: "add vim", Created: &created}}}}
}

func (f *fakeImages) Get(_ context.Context, name string) (*image.Image, error) {
	switch {
	case name == "busybox" || name == "busybox:latest" || name == "registry.example:5000/a/b:1" || len(name) >= 4 && strings.HasPrefix(idBusybox.Hex(), strings.TrimPrefix(name, "sha256:")):
		return f.busybox(), nil
	case name == idBare.String():
		return &image.Image{ID: idBare, Parent: idBusybox, Size: 1, Config: oci.Config{OS: "linux", Architecture: "amd64"}}, nil
	case name == "panic":
		panic("a bug")
	case name == "damaged":
		return nil, errs.New(errs.DataLoss, "image damaged: config does not match its digest").WithHint("Pull it again.")
	}
	return nil, errs.New(errs.NotFound, "No such image: %s", name)
}

func (f *fakeImages) GetFor(ctx context.Context, name, platform string) (*image.Image, error) {
	img, err := f.Get(ctx, name)
	if err == nil && platform != "" && platform != "linux/amd64" {
		return nil, errs.New(errs.NotFound, "image with reference %s was found but does not match the specified platform: wanted %s, actual: linux/amd64", name, platform)
	}
	return img, err
}

func (*fakeImages) Index(string) (*image.Index, error) { return nil, nil }

func (f *fakeImages) Platforms(ctx context.Context, name string) ([]image.Platform, error) {
	img, err := f.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	m := oci.Descriptor{MediaType: oci.MediaTypeOCIManifest, Digest: oci.DigestOf([]byte("manifest")), Size: 8}
	a := oci.Descriptor{MediaType: oci.MediaTypeOCIManifest, Digest: oci.DigestOf([]byte("attestation")), Size: 11}
	return []image.Platform{{Descriptor: m, Image: img, Content: 2_000_000}, {Descriptor: a, For: m.Digest, Content: 100}}, nil
}

func (f *fakeImages) List(_ context.Context, o image.ListOptions) ([]*image.Image, error) {
	if _, err := image.ListFilters.Compile(o.Filters); err != nil {
		return nil, err
	}
	bare := &image.Image{ID: idBare, Parent: idBusybox, Size: 1, Config: oci.Config{OS: "linux", Architecture: "amd64"}}
	if r := o.Filters["reference"]; len(r) > 0 && r[0] == "busybox" {
		return []*image.Image{f.busybox()}, nil
	}
	return []*image.Image{f.busybox(), bare}, nil
}

func (f *fakeImages) History(context.Context, string) ([]image.HistoryEntry, error) {
	return []image.HistoryEntry{{ID: idBusybox, Created: moment, CreatedBy: "RUN y", Size: 3, Comment: "add vim", Tags: []oci.Reference{ref("busybox:latest")}},
		{Created: moment, CreatedBy: "ADD x", Size: 1}}, nil
}

func (f *fakeImages) views() (a, b *image.LayerView) {
	chain := oci.Chain{diffA, diffB}
	a = &image.LayerView{DiffID: diffA, Chain: chain[:1].ID(), Size: 1_000_000, Virtual: 1_000_000, CreatedBy: "ADD x"}
	b = &image.LayerView{DiffID: diffB, Chain: chain.ID(), Size: 3_000_000, Virtual: 4_000_000, Tags: []oci.Reference{ref("busybox:latest")}, Images: []oci.ImageID{idBusybox}}
	return a, b
}

func (f *fakeImages) Layers(_ context.Context, name string) ([]*image.LayerView, error) {
	if _, err := f.Get(context.Background(), name); err != nil {
		return nil, err
	}
	a, b := f.views()
	return []*image.LayerView{a, b}, nil
}

func (f *fakeImages) LayersSize(context.Context) (int64, error) { return 4_000_000, nil }

func (f *fakeImages) Tree(context.Context, image.TreeOptions) ([]*image.LayerView, error) {
	a, b := f.views()
	a.Children = []*image.LayerView{b}
	return []*image.LayerView{a}, nil
}

func (f *fakeImages) Tag(_ context.Context, from string, name oci.Reference) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tagged = append(f.tagged, from+" "+name.String())
	return nil
}

func (f *fakeImages) Remove(_ context.Context, name string, o image.RemoveOptions) ([]image.Removed, error) {
	if name == "used" && !o.Force {
		return nil, errs.New(errs.Conflict, "conflict: unable to remove repository reference \"used\" (must force) - container a1a1 is using its referenced image")
	}
	return []image.Removed{{Untagged: "busybox:latest"}, {Deleted: idBusybox}}, nil
}

func (f *fakeImages) Prune(_ context.Context, o image.PruneOptions) ([]image.Removed, int64, error) {
	if _, err := image.PruneFilters.Compile(o.Filters); err != nil {
		return nil, 0, err
	}
	return []image.Removed{{Deleted: idBare}}, 1, nil
}

// fakeMover reports progress as recorded with a registry.
type fakeMover struct {
	mu       sync.Mutex
	creds    []transfer.Credentials
	pulls    []string
	loaded   []byte
	imports  []transfer.ImportOptions
	pushOpts transfer.PushOptions
}

func (f *fakeMover) Pull(_ context.Context, r oci.Reference, o transfer.PullOptions, p transfer.Sink) error {
	f.mu.Lock()
	f.creds = append(f.creds, o.Credentials)
	f.pulls = append(f.pulls, fmt.Sprintf("%s all=%v platform=%s", r, o.AllTags, o.Platform))
	f.mu.Unlock()
	if r.Path() == "library/absent" {
		return errs.New(errs.NotFound, "pull access denied for absent, repository does not exist or may require 'docker login'")
	}
	p(transfer.Progress{State: transfer.PullStarted, Ref: ref("busybox:latest")})
	p(transfer.Progress{State: transfer.LayerQueued, Layer: "0123456789ab"})
	p(transfer.Progress{State: transfer.LayerDownloading, Layer: "0123456789ab", Current: 512 << 10, Total: 1 << 20})
	if r.Path() == "library/broken" {
		return errs.New(errs.Unavailable, "layer 0123456789ab: the registry closed the connection")
	}
	p(transfer.Progress{State: transfer.LayerPulled, Layer: "0123456789ab"})
	p(transfer.Progress{State: transfer.Resolved, Digest: oci.DigestOf(nil)})
	p(transfer.Progress{State: transfer.Downloaded, Ref: ref("busybox:latest")})
	return nil
}

func (f *fakeMover) Push(_ context.Context, r oci.Reference, o transfer.PushOptions, p transfer.Sink) error {
	f.mu.Lock()
	f.pushOpts = o
	f.mu.Unlock()
	p(transfer.Progress{State: transfer.PushStarted, Ref: r})
	p(transfer.Progress{State: transfer.LayerPushed, Layer: "0123456789ab"})
	p(transfer.Progress{State: transfer.ManifestPushed, Ref: r, Digest: oci.DigestOf(nil), Total: 741})
	return nil
}

func (f *fakeMover) Save(_ context.Context, refs []string, _ transfer.SaveOptions, w io.Writer) error {
	if slices.Contains(refs, "absent") {
		return errs.New(errs.NotFound, "reference does not exist")
	}
	if _, err := io.WriteString(w, "tar of "+strings.Join(refs, " ")); err != nil {
		return err
	}
	if slices.Contains(refs, "torn") {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil { // more than any buffer on the way
			return err
		}
		return errors.New("layer torn: read: input/output error")
	}
	return nil
}

func (f *fakeMover) Load(_ context.Context, r io.Reader, o transfer.LoadOptions, p transfer.Sink) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return errs.New(errs.Invalid, "archive: it is empty")
	}
	if string(head) == "junk" { // refused with the first bytes, after a message
		p(transfer.Progress{State: transfer.LayerLoading, Layer: "0123456789ab", Current: 4, Total: 8})
		return errs.New(errs.Invalid, "archive: it is junk")
	}
	if !o.Quiet {
		p(transfer.Progress{State: transfer.LayerLoading, Layer: "0123456789ab", Current: 4, Total: 8})
	}
	time.Sleep(20 * time.Millisecond) // the first message is out: the rest of the body must still come
	rest, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.loaded = append(head, rest...)
	f.mu.Unlock()
	p(transfer.Progress{State: transfer.Loaded, Ref: ref("busybox:latest")})
	return nil
}

func (f *fakeMover) Import(_ context.Context, o transfer.ImportOptions, _ transfer.Sink) (oci.ImageID, error) {
	b, err := io.ReadAll(o.Source)
	if err != nil {
		return "", err
	}
	o.Source = strings.NewReader(string(b))
	f.mu.Lock()
	f.imports = append(f.imports, o)
	f.mu.Unlock()
	return idBare, nil
}

func (f *fakeMover) Login(_ context.Context, c transfer.Credentials) (string, error) {
	if c.Password != "right" {
		return "", errs.New(errs.Unauthorized, "login attempt to https://%s/v2/ failed with status: 401 Unauthorized", c.ServerAddress)
	}
	return "", nil
}

func (f *fakeMover) Inspect(_ context.Context, name oci.Reference, _ transfer.Credentials) (transfer.Remote, error) {
	switch name.Familiar() {
	case "busybox":
		return transfer.Remote{Descriptor: oci.Descriptor{MediaType: oci.MediaTypeOCIIndex, Digest: oci.DigestOf(nil), Size: 5},
			Platforms: []oci.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm", Variant: "v7"}}}, nil
	case "away.example/x":
		return transfer.Remote{}, errs.New(errs.Unavailable, `Get "https://away.example/v2/": dial tcp 192.0.2.1:443: connect: connection refused`)
	}
	return transfer.Remote{}, errs.New(errs.NotFound, "no such manifest: %s", name.Familiar())
}

func (f *fakeMover) Search(_ context.Context, term string, limit int, _ filter.Args, _ transfer.Credentials) ([]transfer.SearchResult, error) {
	return []transfer.SearchResult{{Name: term, Description: "one", Stars: limit, Official: true}}, nil
}

// fakeContainers has two containers. It runs nothing; an attached container repeats its input.
type fakeContainers struct {
	mu       sync.Mutex
	specs    []spec.Spec
	resizes  []string
	commit   container.CommitOptions
	limits   spec.Resources
	ports    *container.Ports
	exec     spec.ExecSpec
	attached chan struct{} // one message an attach that ended
	cut      bool          // attach ends before all output was sent
	release  chan struct{} // when set, a wait for the next exit ends with it
	tty      bool
}

func (f *fakeContainers) web() *container.Container {
	return &container.Container{ID: ctrWeb, Name: "web", Created: moment, Image: idBusybox, ImageName: "busybox", Path: "/entrypoint.sh", Args: []string{"/etc/docker/registry/config.yml", "a b"},
		Spec: spec.Spec{Image: "busybox", Hostname: "a1a1a1a1a1a1", Tty: f.tty, OpenStdin: true, Env: []string{"PATH=/bin"}, Cmd: []string{"/etc/docker/registry/config.yml", "a b"}, Entrypoint: []string{"/entrypoint.sh"},
			ExposedPorts: []string{"80/tcp", "5000/tcp"}, Ports: []network.PortBinding{{Proto: "tcp", ContainerPort: 5000, HostPort: 5000}},
			Binds: []string{"/etc/myHostData:/etc/myDockerData"}, Privileged: true, Labels: map[string]string{"tier": "web"}, NetworkMode: "default"},
		State:  container.State{Status: container.StatusRunning, PID: 4711, Started: moment, Health: &container.Health{Status: "healthy"}},
		Mounts: []volume.Mount{{Type: "bind", Source: "/etc/myHostData", Target: "/etc/myDockerData", RW: true, Propagation: "rprivate"}},
		Networks: map[string]network.Endpoint{"bridge": {Network: "bridge", NetworkID: netID, ID: strings.Repeat("d4", 32), IPv4: netip.MustParsePrefix("172.17.0.6/16"),
			Gateway: netip.MustParseAddr("172.17.0.1"), MAC: "02:42:ac:11:00:06"}},
		Ports: []network.PortBinding{{Proto: "tcp", ContainerPort: 5000, HostPort: 5000}}, LogPath: "/x.log", Driver: "erofs", SizeRw: 10, SizeRootFs: 4_000_010}
}

func (f *fakeContainers) old() *container.Container {
	return &container.Container{ID: ctrOld, Name: "old_one", Created: moment.Add(-time.Hour), Image: idBare, ImageName: "busybox", Path: "true",
		State: container.State{Status: container.StatusExited, Started: moment.Add(-time.Hour), Finished: moment.Add(-time.Hour)}, Driver: "erofs", SizeRw: 1, SizeRootFs: 2,
		Spec: spec.Spec{Image: "busybox", NetworkMode: "none"}}
}

func (f *fakeContainers) find(name string) (*container.Container, error) {
	switch {
	case name == "web" || len(name) > 1 && strings.HasPrefix(string(ctrWeb), name):
		return f.web(), nil
	case name == "old_one" || len(name) > 1 && strings.HasPrefix(string(ctrOld), name):
		return f.old(), nil
	}
	return nil, errs.New(errs.NotFound, "No such container: %s", name)
}

func (f *fakeContainers) Create(_ context.Context, spec spec.Spec) (oci.ContainerID, []string, error) {
	if strings.HasPrefix(spec.Image, "absent") {
		return "", nil, errs.New(errs.NotFound, "No such image: absent:latest")
	}
	if spec.Name == "web" {
		return "", nil, errs.New(errs.Conflict, "Conflict. The container name \"/web\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", string(ctrWeb))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.specs = append(f.specs, spec)
	return ctrWeb, nil, nil
}

func (f *fakeContainers) Start(_ context.Context, name string) error {
	c, err := f.find(name)
	if err == nil && c.Name == "web" && !f.startable() {
		return fmt.Errorf("container web: %w", container.ErrNotModified)
	}
	return err
}

// startable is set by a create: the next start succeeds.
func (f *fakeContainers) startable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.specs) > 0
}
func (f *fakeContainers) Stop(_ context.Context, name, _ string, _ *int) error {
	_, err := f.find(name)
	return err
}
func (f *fakeContainers) Restart(_ context.Context, name, _ string, _ *int) error {
	_, err := f.find(name)
	return err
}
func (f *fakeContainers) Kill(_ context.Context, name, _ string) error {
	c, err := f.find(name)
	if err == nil && c.Name == "old_one" {
		return errs.New(errs.Conflict, "cannot kill container: old_one: container %s is not running", c.ID)
	}
	return err
}
func (f *fakeContainers) Pause(_ context.Context, name string) error {
	_, err := f.find(name)
	return err
}

// fakeCheckpoints are the checkpoints of the container web: there is one, "saved".
type fakeCheckpoints struct{ *fakeContainers }

func (f fakeCheckpoints) Create(_ context.Context, name string, p container.Checkpoint, _ bool) error {
	if _, err := f.find(name); err != nil {
		return err
	}
	if p.Name == "saved" {
		return errs.New(errs.Exists, "checkpoint with name %s already exists for container %s", p.Name, name)
	}
	return nil
}

func (f fakeCheckpoints) List(_ context.Context, name, dir string) ([]string, error) {
	_, err := f.find(name)
	if dir != "" {
		return nil, err
	}
	return []string{"saved"}, err
}

func (f fakeCheckpoints) Remove(_ context.Context, name string, p container.Checkpoint) error {
	if _, err := f.find(name); err != nil {
		return err
	}
	if p.Name != "saved" {
		return errs.New(errs.NotFound, "checkpoint %s does not exist for container %s", p.Name, name)
	}
	return nil
}

func (f fakeCheckpoints) Start(ctx context.Context, name string, p container.Checkpoint) error {
	return f.Remove(ctx, name, p)
}

func (f *fakeContainers) Unpause(_ context.Context, name string) error {
	_, err := f.find(name)
	return err
}
func (f *fakeContainers) Remove(_ context.Context, name string, force, _, _ bool) error {
	c, err := f.find(name)
	if err == nil && c.Name == "web" && !force {
		return errs.New(errs.Conflict, "cannot remove container \"web\": container is running: stop the container before removing or force remove")
	}
	return err
}
func (f *fakeContainers) Rename(_ context.Context, name, _ string) error {
	_, err := f.find(name)
	return err
}
func (f *fakeContainers) Update(_ context.Context, name string, change container.Settings) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limits, f.ports = change.Resources, change.Ports
	_, err := f.find(name)
	return nil, err
}
func (f *fakeContainers) Get(_ context.Context, name string, _ bool) (*container.Container, error) {
	return f.find(name)
}
func (f *fakeContainers) List(_ context.Context, o container.ListOptions) ([]*container.Container, error) {
	if _, err := container.ListFilters.Compile(o.Filters); err != nil {
		return nil, err
	}
	if !o.All {
		return []*container.Container{f.web()}, nil
	}
	return []*container.Container{f.web(), f.old()}, nil
}
func (f *fakeContainers) Logs(ctx context.Context, name string, o session.LogOptions, stdout, stderr io.Writer) error {
	if _, err := f.find(name); err != nil {
		return err
	}
	if o.Stdout {
		if _, err := io.WriteString(stdout, "to stdout\n"); err != nil {
			return err
		}
	}
	if o.Stderr {
		if _, err := io.WriteString(stderr, "to stderr\n"); err != nil {
			return err
		}
	}
	if o.Follow {
		if err := o.Idle(); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// Attach copies the input to stdout. At the end of the input it writes a line to stderr.
func (f *fakeContainers) Attach(ctx context.Context, name string, o session.AttachOptions) error {
	if name == "refused" {
		return errs.New(errs.Conflict, "You cannot attach to a stopped container, start it first")
	}
	if err := o.Ready(); err != nil {
		return err
	}
	defer func() {
		if f.attached != nil {
			f.attached <- struct{}{}
		}
	}()
	if f.cut {
		_, err := io.WriteString(o.Stdout, "partial")
		return errors.Join(err, fmt.Errorf("%w: connection cut", session.ErrIncomplete))
	}
	return echo(ctx, o)
}

func echo(ctx context.Context, o session.AttachOptions) error {
	if o.Stdin != nil && o.Stdout != nil {
		if _, err := io.Copy(o.Stdout, o.Stdin); err != nil {
			return err
		}
	}
	if o.Stdin == nil && o.Stdout != nil {
		if _, err := io.WriteString(o.Stdout, "hello\n"); err != nil {
			return err
		}
	}
	if o.Stderr != nil {
		_, err := io.WriteString(o.Stderr, "bye\n")
		return err
	}
	<-ctx.Done() // only outputs that never come
	return ctx.Err()
}

func (f *fakeContainers) Resize(_ context.Context, name string, h, w uint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resizes = append(f.resizes, fmt.Sprintf("%s %dx%d", name, h, w))
	return nil
}
func (f *fakeContainers) Wait(ctx context.Context, name string, cond container.WaitCondition) (<-chan container.Exit, error) {
	if _, err := f.find(name); err != nil {
		return nil, err
	}
	ch := make(chan container.Exit, 1)
	if cond != container.WaitNotRunning && f.release != nil {
		go func() { <-f.release; ch <- container.Exit{Code: 3, At: moment} }()
	} else {
		ch <- container.Exit{Code: 3, At: moment}
	}
	return ch, nil
}
func (f *fakeContainers) Top(_ context.Context, name string, args []string) ([]string, []container.Process, error) {
	_, err := f.find(name)
	return []string{"PID", "CMD " + strings.Join(args, " ")}, []container.Process{{"1", "sh"}}, err
}
func (f *fakeContainers) Changes(_ context.Context, name string) ([]Change, error) {
	_, err := f.find(name)
	if name == "old_one" {
		return nil, err
	}
	return []Change{{Path: "/a", Kind: layer.Added}, {Path: "/b", Kind: layer.Deleted}, {Path: "/c", Kind: layer.Modified}}, err
}
func (f *fakeContainers) Export(_ context.Context, name string, w io.Writer) error {
	if _, err := f.find(name); err != nil {
		return err
	}
	_, err := io.WriteString(w, "tar")
	return err
}
func (f *fakeContainers) Commit(_ context.Context, name string, o container.CommitOptions) (container.CommitResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit = o
	_, err := f.find(name)
	return container.CommitResult{ID: idBare, LeftOut: []string{"/etc/myDockerData"}}, err
}
func (f *fakeContainers) Stats(ctx context.Context, name string, follow bool, send func(container.Stats) error) error {
	if _, err := f.find(name); err != nil {
		return err
	}
	st := container.Stats{ID: string(ctrWeb), Name: "web", Read: moment, SystemCPU: 100, OnlineCPUs: 2, Cgroup: shim.StatsReply{CPUTotal: 10, MemoryUsage: 5, MemoryLimit: 50, PidsCurrent: 1},
		Networks: map[string]network.Counters{"eth0": {RxBytes: 1, TxBytes: 2}}}
	for {
		if err := send(st); err != nil || !follow {
			return err
		}
		st.Read, st.Cgroup.CPUTotal, st.SystemCPU = st.Read.Add(time.Second), st.Cgroup.CPUTotal+5, st.SystemCPU+50
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
func (f *fakeContainers) Prune(_ context.Context, filters filter.Args) ([]oci.ContainerID, int64, error) {
	if _, err := container.PruneFilters.Compile(filters); err != nil {
		return nil, 0, err
	}
	return []oci.ContainerID{ctrOld}, 1, nil
}
func (f *fakeContainers) PathStat(_ context.Context, name, path string) (rootfs.Info, error) {
	if _, err := f.find(name); err != nil {
		return rootfs.Info{}, err
	}
	if path != "/etc/hosts" {
		return rootfs.Info{}, errs.New(errs.NotFound, "Could not find the file %s in container %s", path, name)
	}
	return rootfs.Info{Name: "hosts", Size: 3, Mode: 0o644, ModTime: moment}, nil
}
func (f *fakeContainers) CopyFrom(ctx context.Context, name, path string, found func(rootfs.Info) error, w io.Writer) error {
	st, err := f.PathStat(ctx, name, path)
	if err != nil {
		return err
	}
	if err := found(st); err != nil {
		return err
	}
	_, err = io.WriteString(w, "tar")
	return err
}
func (f *fakeContainers) CopyTo(_ context.Context, name, _ string, tar io.Reader, _, _ bool) error {
	if _, err := f.find(name); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, tar)
	return err
}

const (
	execGood = "e100000000000000000000000000000000000000000000000000000000000000"
	execBad  = "e200000000000000000000000000000000000000000000000000000000000000"
)

func (f *fakeContainers) ExecCreate(_ context.Context, name string, spec spec.ExecSpec) (string, error) {
	_, err := f.find(name)
	if spec.Cmd[0] == "nosuch" {
		return execBad, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exec = spec
	return execGood, err
}
func (f *fakeContainers) ExecStart(ctx context.Context, id string, o session.AttachOptions, detach bool, _ [2]uint) error {
	if id == execBad {
		return errs.New(errs.Invalid, "exec failed: unable to start container process: exec: \"nosuch\": executable file not found in $PATH")
	}
	if detach {
		return nil
	}
	if err := o.Ready(); err != nil {
		return err
	}
	return echo(ctx, o)
}
func (f *fakeContainers) ExecResize(_ context.Context, id string, h, w uint) error { return nil }
func (f *fakeContainers) ExecGet(_ context.Context, id string) (*session.ExecInfo, error) {
	e := &session.ExecInfo{ID: id, Container: ctrWeb, Spec: spec.ExecSpec{Cmd: []string{"sh", "-c", "x"}, AttachStdin: true, AttachStdout: true, AttachStderr: true, User: "root"}, ExitCode: new(int)}
	switch id {
	case execGood:
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.exec.Cmd) > 0 {
			e.Spec = f.exec
		}
		return e, nil
	case execBad:
		*e.ExitCode = 127
		return e, nil
	}
	return nil, errs.New(errs.NotFound, "No such exec instance: %s", id)
}

type fakeVolumes struct{}

func (fakeVolumes) vol() *volume.Volume {
	return &volume.Volume{Name: "data", Driver: "local", Mountpoint: "/v/data/_data", Created: moment, Labels: map[string]string{"a": "b"}, Size: -1, RefCount: 1}
}
func (f fakeVolumes) Create(_ context.Context, name, driver string, labels, options map[string]string) (*volume.Volume, error) {
	if driver != "" && driver != "local" {
		return nil, errs.New(errs.NotFound, "volume driver %q: not found", driver)
	}
	v := f.vol()
	v.Name, v.Labels, v.Options = name, labels, options
	return v, nil
}
func (f fakeVolumes) Get(_ context.Context, name string) (*volume.Volume, error) {
	if name != "data" {
		return nil, errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	return f.vol(), nil
}
func (f fakeVolumes) List(_ context.Context, filters filter.Args) ([]*volume.Volume, error) {
	if _, err := volume.ListFilters.Compile(filters); err != nil {
		return nil, err
	}
	return []*volume.Volume{f.vol()}, nil
}
func (f fakeVolumes) Remove(_ context.Context, name string, _ bool) error {
	_, err := f.Get(context.Background(), name)
	return err
}
func (f fakeVolumes) Size(_ context.Context, name string) (int64, error) {
	if name != "data" {
		return 0, errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	return 77, nil
}
func (f fakeVolumes) Prune(_ context.Context, filters filter.Args) ([]string, int64, error) {
	if _, err := volume.PruneFilters.Compile(filters); err != nil {
		return nil, 0, err
	}
	return []string{"data"}, 77, nil
}
func (f fakeVolumes) Rename(ctx context.Context, from, to string) error {
	_, err := f.Get(ctx, from)
	if to == "taken" {
		err = errs.New(errs.Conflict, "rename %s: a volume named taken already exists", from)
	}
	return err
}
func (f fakeVolumes) Copy(ctx context.Context, from, to string) (*volume.Volume, error) {
	v, err := f.Get(ctx, from)
	if err == nil {
		v.Name = to
	}
	return v, err
}
func (f fakeVolumes) Export(ctx context.Context, name string, w io.Writer) error {
	if _, err := f.Get(ctx, name); err != nil {
		return err
	}
	_, err := io.WriteString(w, "tar bytes")
	return err
}
func (f fakeVolumes) Import(ctx context.Context, name string, r io.Reader) (*volume.Volume, error) {
	v, err := f.Get(ctx, name)
	if b, readErr := io.ReadAll(r); string(b) != "tar bytes" {
		err = errs.New(errs.Invalid, "tar: %q, %v", b, readErr)
	}
	return v, err
}

type fakeNetworks struct{}

func (fakeNetworks) Get(_ context.Context, name string) (*network.Network, error) {
	if name != "bridge" {
		return nil, errs.New(errs.NotFound, "network %s not found", name)
	}
	return &network.Network{ID: netID, Name: "bridge", Driver: "bridge", Created: moment, BuiltIn: true, IPv4: true,
		Pools:     []network.Pool{{Subnet: netip.MustParsePrefix("172.17.0.0/16"), Gateway: netip.MustParseAddr("172.17.0.1")}},
		Endpoints: map[string]network.Endpoint{string(ctrWeb): {ID: strings.Repeat("d4", 32), IPv4: netip.MustParsePrefix("172.17.0.6/16"), MAC: "02:42:ac:11:00:06"}}}, nil
}
func (f fakeNetworks) List(ctx context.Context, filters filter.Args) ([]*network.Network, error) {
	if _, err := network.ListFilters.Compile(filters); err != nil {
		return nil, err
	}
	n, err := f.Get(ctx, "bridge")
	return []*network.Network{n}, err
}

func (fakeNetworks) Create(_ context.Context, o network.CreateOptions) (string, error) {
	if o.Name == "taken" {
		return "", errs.New(errs.Conflict, "network with name %s already exists", o.Name)
	}
	return netID, nil
}

func (fakeNetworks) Remove(_ context.Context, name string) error {
	return errs.New(errs.Forbidden, "%s is a pre-defined network and cannot be removed", name)
}

func (fakeNetworks) Prune(_ context.Context, filters filter.Args) ([]string, error) {
	_, err := network.PruneFilters.Compile(filters)
	return []string{"old"}, err
}

type fakeConnector struct{}

func (fakeConnector) Connect(_ context.Context, ref, name string, _ network.EndpointSpec) error {
	if name == "bridge" {
		return errs.New(errs.Forbidden, "endpoint with name %s already exists in network %s", ref, name)
	}
	return nil
}

func (fakeConnector) Disconnect(_ context.Context, _, name string, _ bool) error {
	return fakeConnector{}.Connect(nil, "", name, network.EndpointSpec{})
}

type fakeSystem struct{}

func (fakeSystem) Info(context.Context) (system.Info, error) {
	cfg := config.Default()
	cfg.RegistryMirrors, cfg.InsecureRegistries = []string{"https://mirror.example/"}, []string{"127.0.0.0/8", "10.0.0.1:5000"}
	cfg.Proxies.HTTP = "http://u:p4ss@proxy.example:1/"
	cfg.DefaultAddressPools = []config.Pool{{Base: "10.0.0.0/8", Size: 24}}
	return system.Info{
		ID: "an-id", Config: &cfg, Images: 2, Containers: system.Counts{All: 2, Running: 1, Stopped: 1}, Driver: "erofs", DriverStatus: [][2]string{{"Backing Filesystem", "extfs"}},
		Host: host.Facts{Name: "host", Kernel: "6.18.0", OperatingSystem: "Debian", Architecture: "x86_64", CPUs: 2, Memory: 1 << 30, CgroupVersion: "1",
			Limits: host.Limits{Memory: true, Pids: true}},
		Runtimes: map[string]string{"ply": "built in"}, Time: moment,
	}, nil
}

func (fakeSystem) Version() system.Version {
	return system.Version{
		Info:   version.Info{Version: "0.1.0", Commit: "abc", Go: "go1", Time: "2026-03-04T05:06:07Z", OS: "linux", Arch: "ARCH"},
		Kernel: "KERNEL",
	}
}

type fakeChecker struct{}

// Check finds a damaged layer, which a repair heals.
func (fakeChecker) Check(_ context.Context, o check.Options, l check.Listener) (check.Summary, error) {
	r := check.New(o, l)
	r.Part("layers", 2, o.Full).Add(2)
	r.Checked("layer", 2)
	r.Mend(check.Finding{Kind: "layer", Object: "sha256:" + strings.Repeat("ab", 32), Problem: "layer.tar has 3 bytes, want 9", Heal: "ply pull web"},
		func() (string, error) { return "written again from its tar", nil })
	return r.Summary(), nil
}

type fakeImporter struct{}

// Import brings an image over and meets a volume whose name is taken. There is no root at /none, and that at /slow takes as long as the request.
func (fakeImporter) Import(ctx context.Context, o importer.Options, l importer.Listener) (importer.Summary, error) {
	if o.Dir == "/slow" {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	if o.Dir == "/none" {
		return nil, errs.New(errs.NotFound, "/none is no data root of docker")
	}
	l.Progress(importer.Progress{Kind: "image", Name: "web:1", Total: 9})
	l.Progress(importer.Progress{Kind: "image", Name: "web:1", Done: 9, Total: 9})
	state := importer.Imported
	if o.DryRun {
		state = importer.Planned
	}
	l.Object(importer.Object{Kind: "image", Name: "web:1", ID: "sha256:" + strings.Repeat("ab", 32), State: state, As: o.Prefix})
	l.Object(importer.Object{Kind: "volume", Name: "data", State: importer.Conflict, Note: "another volume here has the name data"})
	l.Object(importer.Object{Kind: "other", Name: "swarm", State: importer.Left, Note: "there is no swarm", Minor: true})
	return importer.Summary{state: 1, importer.Conflict: 1}, nil
}

// fakeBuilder executes two steps and ends as it is told.
type fakeBuilder struct {
	req     build.Request
	err     error
	pruned  build.PruneOptions
	history *history.History
}

func (f *fakeBuilder) Open(*os.File) *build.Directory { return nil }
func (f *fakeBuilder) History() *history.History      { return f.history }

func (f *fakeBuilder) Unpack(context.Context, io.Reader) (*build.Directory, error) {
	return (&build.Service{}).Open(nil), nil
}

func (f *fakeBuilder) Plan(context.Context, build.Request, build.Listener) (*build.Plan, error) {
	return nil, errs.New(errs.Unimplemented, "the fake plans nothing")
}

func (f *fakeBuilder) Receive(string, func(*os.File, time.Time) (int64, error)) (*build.Directory, error) {
	return nil, errs.New(errs.Unimplemented, "the fake receives no directory")
}

func (f *fakeBuilder) Build(_ context.Context, req build.Request, l build.Listener) (*build.Result, error) {
	f.req = req
	run := &ops.Vertex{Digest: "sha256:1", Name: "[2/2] RUN make", Op: &ops.Exec{}}
	id := func(pair string) oci.ImageID { return oci.ImageID("sha256:" + strings.Repeat(pair, 32)) }
	l.Warn(dockerfile.Warning{Rule: "StageNameCasing", Message: "odd", Ranges: []dockerfile.Range{{Start: 1, End: 1}}})
	l.Status(run, solver.Status{Container: oci.ContainerID(strings.Repeat("ab", 32))})
	l.Log(run, false, []byte("out\n")) // before its step is shown
	from := build.StepInfo{Step: dockerfile.Step{Name: "FROM", Text: "FROM busybox"}, Index: 1, Total: 2, Cached: true}
	l.Step(from)
	from.Image = id("f0")
	l.StepDone(from)
	st := build.StepInfo{Step: dockerfile.Step{Name: "RUN", Text: "RUN make"}, Index: 2, Total: 2, Executed: true, Vertex: run}
	l.Step(st)
	l.Log(run, true, []byte("late\n"))
	if f.err != nil {
		return nil, f.err
	}
	st.Image = id("a1")
	l.StepDone(st)
	return &build.Result{Images: []oci.ImageID{id("b2")}}, nil
}

func (f *fakeBuilder) Prune(_ context.Context, o build.PruneOptions) (*build.Pruned, error) {
	f.pruned = o
	return &build.Pruned{Entries: []oci.Digest{oci.DigestOf([]byte("step"))}, Freed: 7}, nil
}

func (f *fakeBuilder) Cache(context.Context) ([]cache.Entry, error) {
	return []cache.Entry{{ID: oci.DigestOf([]byte("step")), Name: "[2/2] RUN make", Size: 7, Created: moment, Used: moment, Uses: 2, Type: cache.Regular}}, nil
}

// world is the handler of the API with fake services.
type world struct {
	images     *fakeImages
	mover      *fakeMover
	containers *fakeContainers
	bus        *events.Bus
	api        *server
	builder    fakeBuilder
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{images: &fakeImages{}, mover: &fakeMover{}, containers: &fakeContainers{}, bus: &events.Bus{}}
	builds, err := history.Open(history.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	w.builder.history = builds
	h := New(Options{Images: w.images, Puller: w.mover, Pusher: w.mover, Archive: w.mover, Registry: w.mover, Containers: w.containers, Checkpoints: fakeCheckpoints{w.containers}, Files: w.containers, Sessions: w.containers, Volumes: fakeVolumes{}, Networks: fakeNetworks{}, Connector: fakeConnector{}, Events: w.bus, System: fakeSystem{}, Checker: fakeChecker{}, Importer: fakeImporter{}, Builder: &w.builder, Driver: "erofs",
		Hosts: []string{"engine.example"}})
	w.api = h.(*server)
	w.api.now = func() time.Time { return moment.Add(36 * time.Second) }
	return w
}

// do runs one request without a network connection.
func (w *world) do(method, target string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, body)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(&fullDuplex{rec}, r)
	return rec
}

// fullDuplex is a recorder that supports the full-duplex mode of a connection.
type fullDuplex struct{ *httptest.ResponseRecorder }

func (f *fullDuplex) EnableFullDuplex() error { return nil }

var _ http.Flusher = (*fullDuplex)(nil)
