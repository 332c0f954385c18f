package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/build/export"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/build/tree"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer/drivers"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
	"ply/internal/transfer/pull"
	"ply/internal/transfer/push"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// world is a builder without containers: its Dockerfiles copy files.
type world struct {
	t       testing.TB
	store   *store.Store
	images  *image.Service
	builder *build.Service
	pusher  *push.Pusher
	archive *archive.Archive
}

func newWorld(t testing.TB) *world { return newWorldOn(t, "overlay2") }

// newWorldOn returns an engine with a storage driver.
func newWorldOn(t testing.TB, driver string) *world {
	t.Helper()
	return newWorldOf(t, driver, nil)
}

// newWorldWith returns an engine whose builder has other options.
func newWorldWith(t testing.TB, edit func(*build.Options)) *world {
	t.Helper()
	return newWorldOf(t, "overlay2", edit)
}

func newWorldOf(t testing.TB, driver string, edit func(*build.Options)) *world {
	t.Helper()
	root, exec := t.TempDir(), t.TempDir()
	d, _, err := drivers.Open(durable.OS, root, driver)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	if w.store, err = store.Open(root, d, store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	w.images = image.New(w.store, image.Options{})
	client := remote.New(remote.Options{})
	t.Cleanup(client.Close)
	puller := pull.New(w.store, w.images, client, pull.Options{})
	t.Cleanup(puller.Close)
	w.pusher = push.New(w.store, w.images, client, push.Options{})
	w.archive = archive.New(w.store, w.images, archive.Options{})
	o := build.Options{Store: w.store, Images: w.images, Puller: puller, Pusher: w.pusher, Loader: w.archive, Format: oci.FormatOCI, DataRoot: root, ExecRoot: exec}
	if edit != nil {
		edit(&o)
	}
	w.builder, err = build.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.builder.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// client has a directory and takes outputs in memory.
type client struct {
	t       testing.TB
	dir     *build.Directory
	secrets map[string]string

	mu    sync.Mutex
	tars  map[int]*stream
	files map[string]string // of the last directory: what each file is
	meta  map[string]string
	open  func() *stream // nil = a stream that takes everything
}

// stream is an output that arrives.
type stream struct {
	bytes.Buffer
	ctx    context.Context //nolint:containedctx // the life of the stream
	after  int             // bytes, after which fail decides; 0 = never
	fail   func(ctx context.Context) error
	closed bool
	whole  bool // it was closed while its context lived
}

func (s *stream) Write(p []byte) (int, error) {
	if s.fail != nil && s.Len() >= s.after {
		if err := s.fail(s.ctx); err != nil {
			return 0, err
		}
	}
	return s.Buffer.Write(p)
}

func (s *stream) Close() error {
	s.closed, s.whole = true, s.ctx.Err() == nil
	return nil
}

func (c *client) Local(_ context.Context, l *ops.Local) (*tree.Tree, error) { return c.dir.Local(l) }

func (c *client) Secret(_ context.Context, id string) ([]byte, error) {
	if v, ok := c.secrets[id]; ok {
		return []byte(v), nil
	}
	return nil, errs.New(errs.NotFound, "secret %s", id)
}

func (c *client) Agent(context.Context, string) (io.ReadWriteCloser, error) {
	return nil, errs.New(errs.NotFound, "no agent")
}

func (c *client) Credentials(context.Context, string) (transfer.Credentials, error) {
	return transfer.Credentials{}, nil
}

func (c *client) OutputTar(ctx context.Context, i int, meta map[string]string) (io.WriteCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &stream{}
	if c.open != nil {
		s = c.open()
	}
	s.ctx, c.meta = ctx, meta
	c.tars[i] = s
	return s, nil
}

func (c *client) OutputDir(ctx context.Context, _ int, files export.Files) error {
	last := ""
	return files.Walk(ctx, func(name string, info tree.Info) error {
		if strings.ReplaceAll(name, "/", "\x00") <= strings.ReplaceAll(last, "/", "\x00") && last != "" {
			c.t.Errorf("%q comes after %q", name, last)
		}
		last = name
		what := fmt.Sprintf("%o %d:%d %d", info.Mode, info.UID, info.GID, info.Time.Unix())
		switch {
		case info.IsLink():
			what += " -> " + info.Link
		case info.IsRegular():
			f, err := files.Open(name)
			if err != nil {
				return err
			}
			data, err := io.ReadAll(f)
			if err := errors.Join(err, f.Close()); err != nil {
				return err
			}
			what += " " + string(data)
		}
		c.files[name] = what
		return nil
	})
}

// listener ignores what it is told.
type listener struct{}

func (listener) Start(*ops.Vertex)                 {}
func (listener) Log(*ops.Vertex, bool, []byte)     {}
func (listener) Status(*ops.Vertex, solver.Status) {}
func (listener) Done(*ops.Vertex, solver.Outcome)  {}
func (listener) Warn(dockerfile.Warning)           {}
func (listener) Step(build.StepInfo)               {}
func (listener) StepDone(build.StepInfo)           {}

// input is a build: the text of a Dockerfile, files beside it, options of the front end, outputs.
type input struct {
	file    string
	context map[string]string
	options map[string]string
	tags    []string
	exports []build.Export
	change  func(*build.Request)
	open    func() *stream
}

func (w *world) build(in input) (*build.Result, *client, error) {
	w.t.Helper()
	return w.buildWith(w.t.Context(), in)
}

func (w *world) buildWith(ctx context.Context, in input) (*build.Result, *client, error) {
	w.t.Helper()
	dir := w.t.TempDir()
	write := func(name, data string) {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(data), 0o644), os.Chtimes(p, time.Unix(1600000000, 0), time.Unix(1600000000, 0))); err != nil {
			w.t.Fatal(err)
		}
	}
	write("Dockerfile", in.file)
	for name, data := range in.context {
		write(name, data)
	}
	f, err := os.Open(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	c := &client{t: w.t, dir: w.builder.Open(f), tars: map[int]*stream{}, files: map[string]string{}, open: in.open}
	defer c.dir.Close()
	req := build.Request{Front: dockerfile.Request{Options: map[string]string{"dockerfilekey": "context"}}, Client: c, Exports: in.exports}
	maps.Copy(req.Front.Options, in.options)
	if p := in.options["platform"]; strings.Contains(p, "arm64") {
		req.Front.Platforms = []oci.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}
	}
	for _, tag := range in.tags {
		r, err := oci.ParseReference(tag)
		if err != nil {
			w.t.Fatal(err)
		}
		req.Tags = append(req.Tags, r.WithDefaultTag())
	}
	if in.change != nil {
		in.change(&req)
	}
	res, err := w.builder.Build(ctx, req, listener{})
	return res, c, err
}

func (w *world) must(in input) (*build.Result, *client) {
	w.t.Helper()
	res, c, err := w.build(in)
	if err != nil {
		w.t.Fatal(err)
	}
	return res, c
}

func exports(typ string, attrs ...string) []build.Export {
	e := build.Export{Type: typ, Attrs: map[string]string{}}
	for _, a := range attrs {
		k, v, _ := strings.Cut(a, "=")
		e.Attrs[k] = v
	}
	return []build.Export{e}
}

const sample = "FROM scratch\nCOPY --chown=5:6 a /dir/a\nCOPY b /\nLABEL k=v\n"

var sampleFiles = map[string]string{"a": "A", "b": "B"}

// skopeo runs skopeo and returns its output.
func skopeo(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "skopeo", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("skopeo %v: %v\n%s", args, err, stderr.String())
	}
	return string(out)
}

// unpackTar unpacks the files of a tar into a new directory.
func unpackTar(t testing.TB, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(p, 0o755)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestOutputLocal(t *testing.T) {
	w := newWorld(t)
	_, c := w.must(input{file: sample, context: sampleFiles, exports: exports("local", "source-date-epoch=1700000000")})
	want := map[string]string{"b": "100644 0:0 1700000000 B", "dir": "40755 5:6 1700000000", "dir/a": "100644 5:6 1700000000 A"}
	if !maps.Equal(c.files, want) {
		t.Errorf("got %v, want %v", c.files, want)
	}
	if list, err := w.images.List(t.Context(), image.ListOptions{}); err != nil || len(list) != 0 {
		t.Errorf("an output that is files left images: %v, %v", list, err)
	}
	_, c = w.must(input{file: sample, context: sampleFiles, options: map[string]string{"platform": "linux/amd64,linux/arm64"}, exports: exports("local")})
	if c.files["linux_arm64/dir/a"] == "" || c.files["linux_amd64/b"] == "" || c.files["b"] != "" {
		t.Errorf("platforms: %v", c.files)
	}
	_, _, err := w.build(input{file: sample, context: sampleFiles, options: map[string]string{"platform": "linux/amd64,linux/arm64"}, exports: exports("local", "platform-split=false")})
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "cannot overwrite b") {
		t.Errorf("platforms in one directory: %v", err)
	}
	file := "FROM scratch\nARG TARGETARCH\nCOPY a /only-$TARGETARCH\nCOPY a /bin/$TARGETARCH\n"
	_, c = w.must(input{file: file, context: sampleFiles, options: map[string]string{"platform": "linux/amd64,linux/arm64"}, exports: exports("local", "platform-split=false")})
	if got := slices.Sorted(maps.Keys(c.files)); !slices.Equal(got, []string{"bin", "bin/amd64", "bin/arm64", "only-amd64", "only-arm64"}) {
		t.Errorf("platforms in one directory: %v", got)
	}
}

// Names in an image may be anything that a file system allows. They reach the tar unchanged, and none of them leads out of the directory.
func TestOutputTarNames(t *testing.T) {
	w := newWorld(t)
	hostile := map[string]string{
		"d/back\\slash": "1", "d/new\nline": "2", "d/\xff\xfe": "3", "d/..dots": "4", "d/ ": "5", "d/" + strings.Repeat("n", 255): "6", "d/-rf": "7", "d/\x1b[31m": "8",
	}
	_, c := w.must(input{file: "FROM scratch\nCOPY d /d\n", context: hostile, exports: exports("tar")})
	got := map[string]string{}
	for r := tar.NewReader(&c.tars[0].Buffer); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			got[h.Name] = string(b)
		}
	}
	if !maps.Equal(got, hostile) {
		t.Errorf("got %q", got)
	}
	if !c.tars[0].whole {
		t.Error("the stream was not closed well")
	}
}

// skopeo reads the layouts, and our own load does.
func TestOutputArchives(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ typ, attrs, transport string }{
		{"oci", "", "oci"},
		{"oci", "compression=zstd", "oci"},
		{"oci", "compression=uncompressed", "oci"},
		{"docker", "", "docker-archive"},
		{"docker", "oci-mediatypes=false compression-level=9", "docker-archive"},
	} {
		t.Run(tt.typ+" "+tt.attrs, func(t *testing.T) {
			attrs := append(strings.Fields(tt.attrs), "name=example.com/app:1", "source-date-epoch=1700000000")
			res, c := w.must(input{file: sample, context: sampleFiles, exports: exports(tt.typ, attrs...)})
			data := c.tars[0].Bytes()
			file := filepath.Join(t.TempDir(), "x.tar")
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			from := "docker-archive:" + file + ":example.com/app:1"
			if tt.transport == "oci" {
				from = "oci:" + unpackTar(t, data) + ":1"
			}
			var got struct {
				Config struct{ Labels map[string]string } `json:"config"`
				RootFS struct{ DiffIDs []string }         `json:"rootfs"`
			}
			if err := json.Unmarshal([]byte(skopeo(t, "inspect", "--config", from)), &got); err != nil || got.Config.Labels["k"] != "v" {
				t.Errorf("config: %+v, %v", got, err)
			}
			copied := t.TempDir()
			skopeo(t, "copy", from, "dir:"+copied) // reads and checks every layer
			if c.meta["containerimage.digest"] == "" || res.Answers["image.name"] != "example.com/app:1" || res.Answers["containerimage.config.digest"] == "" {
				t.Errorf("answers: %v %v", res.Answers, c.meta)
			}
			_, again := w.must(input{file: sample, context: sampleFiles, exports: exports(tt.typ, attrs...)})
			if !bytes.Equal(data, again.tars[0].Bytes()) {
				t.Error("a second export has other bytes")
			}
			other := newWorld(t)
			if err := other.archive.Load(t.Context(), bytes.NewReader(data), transfer.LoadOptions{}, transfer.Discard); err != nil {
				t.Fatalf("load: %v", err)
			}
			img, err := other.images.Get(t.Context(), "example.com/app:1")
			if err != nil || string(img.ID) != res.Answers["containerimage.config.digest"] {
				t.Errorf("loaded %v, %v", img, err)
			}
		})
	}
}

// A registry gets an image without that the store has it, and a pull brings the same image back.
func TestOutputRegistry(t *testing.T) {
	w := newWorld(t)
	reg := remotetest.Start(t, remotetest.Options{})
	name := reg.Addr + "/app:1"
	res, _ := w.must(input{file: sample, context: sampleFiles, exports: exports("registry", "name="+name, "annotation.a=1")})
	if len(res.Images) != 0 {
		t.Errorf("images in the store: %v", res.Images)
	}
	if _, err := w.images.Get(t.Context(), name); !errors.Is(err, errs.NotFound) {
		t.Errorf("the name is here: %v", err)
	}
	raw := skopeo(t, "inspect", "--tls-verify=false", "--raw", "docker://"+name)
	if got := string(oci.DigestOf([]byte(raw))); got != res.Answers["containerimage.digest"] || !strings.Contains(raw, `"a": "1"`) {
		t.Errorf("digest %s, answers %v, manifest %s", got, res.Answers, raw)
	}
	skopeo(t, "copy", "--src-tls-verify=false", "docker://"+name, "dir:"+t.TempDir())

	repo := reg.Addr + "/digest"
	res, _ = w.must(input{file: sample, context: sampleFiles, exports: exports("image", "name="+repo, "push=true", "push-by-digest=true", "store=false")})
	skopeo(t, "inspect", "--no-tags", "--tls-verify=false", "docker://"+repo+"@"+res.Answers["containerimage.digest"])

	_, _, err := w.build(input{file: sample, context: sampleFiles, exports: exports("registry", "name=127.0.0.1:1/app:1")})
	if err == nil {
		t.Error("push to nobody succeeded")
	}
}

// The images of several platforms are one name: hidden until asked for, pushed and saved together, removed together.
func TestOutputPlatforms(t *testing.T) {
	w := newWorld(t)
	reg := remotetest.Start(t, remotetest.Options{})
	name := reg.Addr + "/multi:1"
	file := "FROM scratch\nARG TARGETARCH\nCOPY a /a\nLABEL arch=$TARGETARCH\n"
	in := input{file: file, context: sampleFiles, options: map[string]string{"platform": "linux/amd64,linux/arm64"}, tags: []string{name}, exports: exports("image")}
	res, _ := w.must(in)
	if len(res.Images) != 2 || res.Answers["containerimage.digest"] == "" {
		t.Fatalf("result: %+v", res)
	}
	list, err := w.images.List(t.Context(), image.ListOptions{})
	if err != nil || len(list) != 1 || list[0].Config.Architecture != oci.HostPlatform().Architecture {
		t.Errorf("list: %d images, %v", len(list), err)
	}
	x, err := w.images.Index(name)
	if err != nil || x == nil || string(x.Digest) != res.Answers["containerimage.digest"] || len(x.Images) != 2 {
		t.Fatalf("index: %+v, %v", x, err)
	}
	if pruned, _, err := w.images.Prune(t.Context(), image.PruneOptions{}); err != nil || len(pruned) != 0 {
		t.Errorf("pruned %v, %v", pruned, err)
	}
	if _, err := w.store.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	to := &transfertest.Lines{}
	pushed, err := oci.ParseReference(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.pusher.Push(t.Context(), pushed, transfer.PushOptions{}, to.Sink); err != nil {
		t.Fatal(err)
	}
	raw := skopeo(t, "inspect", "--tls-verify=false", "--raw", "docker://"+name)
	if raw != string(x.Raw) {
		t.Errorf("the registry has %s", raw)
	}
	skopeo(t, "copy", "--all", "--src-tls-verify=false", "docker://"+name, "dir:"+t.TempDir()) // every image of it
	// Rebuilding gives the same index, another name too.
	second, err := oci.ParseReference("other:2")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.images.Tag(t.Context(), name, second); err != nil {
		t.Fatal(err)
	}
	if _, err := w.images.Remove(t.Context(), name, image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if x, err := w.images.Index("other:2"); err != nil || x == nil {
		t.Fatalf("index of the second name: %v, %v", x, err)
	}
	removed, err := w.images.Remove(t.Context(), "other:2", image.RemoveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range res.Images {
		if !slices.ContainsFunc(removed, func(r image.Removed) bool { return r.Deleted == id }) {
			t.Errorf("image %s was not removed: %v", id.Short(), removed)
		}
	}
	if _, err := w.store.Blobs.Stat(x.Digest); !errors.Is(err, errs.NotFound) {
		t.Errorf("the bytes of the index: %v", err)
	}
}

// A client that stops reading holds up its own build only until it goes; one that goes leaves nothing, and no output looks whole.
func TestOutputVanishes(t *testing.T) {
	w := newWorld(t)
	for _, typ := range []string{"tar", "oci", "docker"} {
		gone := errors.New("the client has gone")
		in := input{file: sample, context: sampleFiles, exports: exports(typ)}
		in.open = func() *stream {
			return &stream{after: 1, fail: func(context.Context) error { return gone }}
		}
		_, c, err := w.build(in)
		if !errors.Is(err, gone) || !c.tars[0].closed || c.tars[0].whole {
			t.Errorf("%s: %v, stream %+v", typ, err, c.tars[0])
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		in.open = func() *stream {
			return &stream{after: 1, fail: func(ctx context.Context) error {
				cancel(gone) // the connection ends while the client does not read
				<-ctx.Done()
				return context.Cause(ctx)
			}}
		}
		_, c, err = w.buildWith(ctx, in)
		if !errors.Is(err, gone) || !c.tars[0].closed || c.tars[0].whole {
			t.Errorf("%s stalled: %v, stream %+v", typ, err, c.tars[0])
		}
	}
	if list, err := w.images.List(t.Context(), image.ListOptions{}); err != nil || len(list) != 0 {
		t.Errorf("left images: %v, %v", list, err)
	}
}

// A second output that fails does not undo the first, and a name is given only after a push has succeeded.
func TestOutputFails(t *testing.T) {
	w := newWorld(t)
	_, _, err := w.build(input{file: sample, context: sampleFiles, exports: exports("image", "name=127.0.0.1:1/app:1", "push=true")})
	if err == nil {
		t.Fatal("no error")
	}
	if _, err := w.images.Get(t.Context(), "127.0.0.1:1/app:1"); !errors.Is(err, errs.NotFound) {
		t.Errorf("the name was given: %v", err)
	}
	_, _, err = w.build(input{file: "FROM scratch\nCOPY missing /\n", exports: exports("local", "nmae=x")})
	if err == nil || !strings.Contains(err.Error(), `"nmae"`) {
		t.Errorf("an attribute is examined before the build: %v", err)
	}
}
