package solver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/build/buildkitkey"
	"ply/internal/build/cachetransfer"
	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/tree"
	"ply/internal/errs"
	"ply/internal/oci"
)

// The fixture is a cache that BuildKit wrote: -buildctl "buildctl --addr unix:///…" -layout DIR writes it anew, with a running buildkitd and an OCI layout of busybox.
var (
	buildctl = flag.String("buildctl", "", "command that reaches a buildkitd, to write testdata/buildkit anew")
	layout   = flag.String("layout", "", "OCI layout of the base image")
)

const fixture = "testdata/buildkit"

// fixtureContext is the build context of the fixture.
var fixtureContext = []struct {
	name string
	mode os.FileMode
	text string // of a link: its target
}{
	{"src", os.ModeDir | 0o755, ""},
	{"src/a.txt", 0o644, "a\n"},
	{"src/b.c", 0o755, "b\n"},
	{"src/empty", 0o600, ""},
	{"src/sub", os.ModeDir | 0o750, ""},
	{"src/sub/c.txt", 0o644, "c\n"},
	{"src/sub.txt", 0o644, "sorted after what is in sub\n"},
	{"src/suid", os.ModeSetuid | 0o755, "s\n"},
	{"src/l", os.ModeSymlink, "a.txt"},
	{"lsrc", os.ModeSymlink, "src"},
	{"d2", os.ModeDir | 0o700, ""},
	{"d2/1", 0o644, "1\n"},
	{"d2/2", 0o644, "2\n"},
	{"top.txt", 0o644, "top\n"},
	{".dockerignore", 0o644, "d2/2\n"},
}

func makeContext(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range fixtureContext {
		p := filepath.Join(dir, f.name)
		var err error
		switch {
		case f.mode.IsDir():
			err = os.Mkdir(p, 0o700)
		case f.mode&os.ModeSymlink != 0:
			err = os.Symlink(f.text, p)
		default:
			err = os.WriteFile(p, []byte(f.text), 0o600)
		}
		if err == nil && f.mode&os.ModeSymlink == 0 {
			err = os.Chmod(p, f.mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// graphOf runs the front end on the fixture's Dockerfile.
func graphOf(t *testing.T, dir string, config []byte) *ops.Graph {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(fixture, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	f := &frontEnd{files: map[string][]byte{"Dockerfile": text}, config: config}
	if f.files[".dockerignore"], err = os.ReadFile(filepath.Join(dir, ".dockerignore")); err != nil {
		t.Fatal(err)
	}
	out, err := dockerfile.Build(t.Context(), dockerfile.Request{Options: map[string]string{}, Platforms: []oci.Platform{{OS: "linux", Architecture: "amd64"}}}, f)
	if err != nil {
		t.Fatal(err)
	}
	return out.Images[0].Graph
}

// frontEnd answers the front end.
type frontEnd struct {
	files  map[string][]byte
	config []byte
}

func (f *frontEnd) Solve(context.Context, *ops.Graph) (dockerfile.Result, error) { return f, nil }
func (f *frontEnd) ImageConfig(_ context.Context, ref string, _ dockerfile.ImageOptions) (string, oci.Digest, []byte, error) {
	return ref, "", f.config, nil
}
func (f *frontEnd) SourceTime(context.Context, ops.Op) (time.Time, error) { return time.Time{}, nil }
func (f *frontEnd) Warn(context.Context, dockerfile.Warning)              {}
func (f *frontEnd) Evaluate(context.Context) error                        { return nil }
func (f *frontEnd) ReadFile(_ context.Context, name string, off, n int64) ([]byte, error) {
	data, ok := f.files[strings.TrimPrefix(name, "/")]
	if !ok {
		return nil, errs.New(errs.NotFound, "%s: not found", name)
	}
	return data[min(off, int64(len(data))):min(off+n, int64(len(data)))], nil
}

func (f *frontEnd) Stat(_ context.Context, name string) (dockerfile.FileInfo, error) {
	if _, ok := f.files[strings.TrimPrefix(name, "/")]; !ok {
		return dockerfile.FileInfo{}, errs.New(errs.NotFound, "%s: not found", name)
	}
	return dockerfile.FileInfo{Name: name, Mode: 0o644}, nil
}

func (f *frontEnd) ReadDir(context.Context, string, string) ([]dockerfile.FileInfo, error) {
	return nil, nil
}

// importClient opens directories with the patterns of the graph, and knows the base image by its digest.
type importClient struct {
	fakeClient
	dir  string
	base oci.Digest
	t    *testing.T
}

func (c *importClient) Source(_ context.Context, _ Leaser, v *ops.Vertex, _ func(Status)) (*Result, error) {
	if l, ok := v.Op.(*ops.Local); ok {
		root, err := os.Open(c.dir)
		if err != nil {
			return nil, err
		}
		c.t.Cleanup(func() { root.Close() })
		tr, err := tree.New(root, tree.Options{Include: l.Include, Exclude: l.Exclude, RootOwned: true})
		return &Result{Dir: tr}, err
	}
	return &Result{Chain: oci.Chain{"sha256:base"}, Key: SourceKey("base"), Sources: []oci.Digest{buildkitkey.Image(c.base, v.Platform, 0)}}, nil
}

// imports is what a job asked of an import.
type imports struct {
	mu      sync.Mutex
	fetched []oci.Chain
	fail    func(*cachetransfer.Result) error
}

func (f *imports) of(c *cachetransfer.Cache) *Import {
	return &Import{Name: "test", Cache: c, Fetch: func(_ context.Context, _ Leaser, r *cachetransfer.Result, _ func(Status)) (oci.Chain, error) {
		if f.fail != nil {
			if err := f.fail(r); err != nil {
				return nil, err
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.fetched = append(f.fetched, r.Chain())
		return r.Chain(), nil
	}}
}

func readFixture(t *testing.T) (c *cachetransfer.Cache, base oci.Digest, config []byte) {
	t.Helper()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(fixture, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var m struct{ Layers []oci.Descriptor }
	if err := json.Unmarshal(read("manifest.json"), &m); err != nil {
		t.Fatal(err)
	}
	c, err := cachetransfer.Decode(read("cache.json"), m.Layers)
	if err != nil {
		t.Fatal(err)
	}
	return c, oci.Digest(strings.TrimSpace(string(read("base")))), bytes.TrimSpace(read("config.json"))
}

// updateFixture builds the fixture with BuildKit.
func updateFixture(t *testing.T) {
	t.Helper()
	dir, out := makeContext(t), t.TempDir()
	blob := func(root string, d oci.Digest) []byte {
		data, err := os.ReadFile(filepath.Join(root, "blobs", "sha256", d.Hex()))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	top := func(root string) oci.Digest {
		data, err := os.ReadFile(filepath.Join(root, "index.json"))
		var x oci.Index
		if err == nil {
			err = json.Unmarshal(data, &x)
		}
		if err != nil {
			t.Fatal(err)
		}
		return x.Manifests[0].Digest
	}
	base := top(*layout)
	args := append(strings.Fields(*buildctl), "build", "--no-cache", "--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+fixture,
		"--oci-layout", "bb="+*layout, "--opt", "context:bb=oci-layout://bb@"+string(base), "--export-cache", "type=local,mode=max,dest="+out)
	if text, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil { //nolint:gosec // the command is the developer's
		t.Fatalf("%v: %s", err, text)
	}
	var m, b oci.Manifest
	manifest := blob(out, top(out))
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(blob(*layout, base), &b); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"manifest.json": manifest, "cache.json": blob(out, m.Config.Digest), "base": []byte(base), "config.json": blob(*layout, b.Config.Digest)} {
		if err := os.WriteFile(filepath.Join(fixture, name), append(data, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// jobOf solves the fixture with an import.
func jobOf(t *testing.T, w *world, f *imports, c *cachetransfer.Cache, base oci.Digest, config []byte) (*Job, *ops.Graph, *Result, *outcomes) {
	t.Helper()
	dir := makeContext(t)
	w.worker.dir = makeContext(t) // every chain looks like the context with what the steps copy from stages
	for name, text := range map[string]string{"w/out": "built", "EOT": "hello\n", "etc/passwd": "nobody:x:7:7::/:/bin/sh\n"} {
		p := filepath.Join(w.worker.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	g := graphOf(t, dir, config)
	out := &outcomes{done: map[string]Outcome{}, logs: map[string]string{}}
	o := Options{Client: &importClient{dir: dir, base: base, t: t}, Progress: out, Lease: noLease{}}
	if c != nil {
		o.Imports = func() []*Import { return []*Import{f.of(c)} }
	}
	j := w.solver.Job(t.Context(), o)
	t.Cleanup(func() { j.Close() })
	r, err := j.Solve(t.Context(), g.Root)
	if err != nil {
		t.Fatal(err)
	}
	return j, g, r, out
}

// A cache that BuildKit wrote has every step of the build, also those that it knows by the content of what they copy.
func TestCacheOfBuildKitIsRead(t *testing.T) {
	if *buildctl != "" {
		updateFixture(t)
	}
	c, base, config := readFixture(t)
	f := &imports{}
	w := newWorld(t)
	j, g, r, out := jobOf(t, w, f, c, base, config)
	if n := w.worker.runs.Load(); n > 1 {
		t.Errorf("%d steps were executed, want at most the text in the Dockerfile, of which BuildKit keeps no result", n)
	}
	for _, v := range g.Vertices {
		if _, ok := v.Op.(*ops.Exec); !ok {
			continue
		}
		if o, ok := out.done[v.Name]; ok && !o.Cached {
			t.Errorf("%s was executed", v.Name)
		}
	}
	// What only an intermediate stage needs stays where it is.
	for _, chain := range f.fetched {
		for _, d := range chain {
			if !slices.Contains(r.Chain, d) {
				t.Errorf("the layers %v were fetched, which the result %v does not have", chain, r.Chain)
			}
		}
	}
	for _, v := range g.Vertices {
		if len(v.Inputs) > 0 && j.imported(v, false) == nil {
			t.Errorf("no record for %s", v.Name)
		}
	}
}

// What a job exports has a record for every step, under the digests that BuildKit uses, and leads to a second job without work.
func TestExportHasTheKeysOfBuildKit(t *testing.T) {
	_, base, config := readFixture(t)
	w := newWorld(t)
	j, g, r, _ := jobOf(t, w, nil, nil, base, config)
	if w.worker.runs.Load() == 0 {
		t.Fatal("nothing was executed")
	}
	writer, elsewhere, err := j.Export(t.Context(), []ops.Edge{g.Root}, true)
	if err != nil || len(elsewhere) != 0 {
		t.Fatal(err, elsewhere)
	}
	for _, res := range writer.Results() {
		for i := range res.Layers {
			res.Layers[i].Digest = oci.DigestOf([]byte(res.Layers[i].Annotations[cachetransfer.DiffID]))
		}
	}
	data, layers, err := writer.Encode()
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := digests(t, nil), digests(t, data)
	for d := range theirs {
		if !ours[d] {
			t.Errorf("record %s of BuildKit is not in the export", d)
		}
	}
	again, err := cachetransfer.Decode(data, fixDiffIDs(layers))
	if err != nil {
		t.Fatal(err)
	}
	w2, f := newWorld(t), &imports{}
	_, _, r2, _ := jobOf(t, w2, f, again, base, config)
	if n := w2.worker.runs.Load(); n > 1 {
		t.Errorf("%d steps were executed with the exported cache, want none but the text in the Dockerfile", n)
	}
	if len(r2.Chain) != len(r.Chain) {
		t.Errorf("the result has %d layers, want %d", len(r2.Chain), len(r.Chain))
	}
}

// fixDiffIDs replaces diffIDs of fakes, which are not digests.
func fixDiffIDs(layers []oci.Descriptor) []oci.Descriptor {
	for i := range layers {
		layers[i].Annotations = maps.Clone(layers[i].Annotations)
		layers[i].Annotations[cachetransfer.DiffID] = string(layers[i].Digest)
	}
	return layers
}

// digests returns the digests of the records in a config that nothing else stands for; nil = of the fixture. The content of a stage differs here, because all chains
// look the same, but the records of such stages are linked as well.
func digests(t *testing.T, data []byte) map[string]bool {
	t.Helper()
	if data == nil {
		var err error
		if data, err = os.ReadFile(filepath.Join(fixture, "cache.json")); err != nil {
			t.Fatal(err)
		}
	}
	var c struct {
		Records []struct {
			Digest string
			Inputs [][]struct{ Link int }
		}
	}
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, r := range c.Records {
		out[r.Digest] = out[r.Digest] || len(r.Inputs) > 0
		for _, in := range r.Inputs {
			if len(in) == 1 {
				out[c.Records[in[0].Link].Digest] = true
			}
		}
	}
	maps.DeleteFunc(out, func(_ string, alone bool) bool { return !alone })
	return out
}

// A result that cannot be fetched is made, and only that one.
func TestBadImportIsNotUsed(t *testing.T) {
	c, base, config := readFixture(t)
	w := newWorld(t)
	f := &imports{fail: func(*cachetransfer.Result) error { return errs.New(errs.Invalid, "content has another digest") }}
	_, _, r, out := jobOf(t, w, f, c, base, config)
	if w.worker.runs.Load() == 0 || len(r.Chain) == 0 {
		t.Error("nothing was executed although the cache has no layers")
	}
	found := false
	for _, text := range out.logs {
		found = found || strings.Contains(text, "content has another digest")
	}
	if !found {
		t.Error("no log says why the cache is not used")
	}
}
