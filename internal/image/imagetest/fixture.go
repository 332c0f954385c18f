package imagetest

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ply/internal/events"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/meta/metatest"
)

// Fixture is a store with images in it.
type Fixture struct {
	Store  *store.Store
	Driver *Driver
	Images *image.Service
	Events *events.Bus

	// InUse has the IDs of the containers of an image, Running whether a container is running.
	InUse   map[oci.ImageID][]string
	Running map[string]bool

	t    testing.TB
	opts store.Options
}

// New opens an empty store below a temporary directory.
func New(t testing.TB) *Fixture {
	t.Helper()
	return NewWith(t, store.Options{})
}

// NewWith is New with options of the store.
func NewWith(t testing.TB, opts store.Options) *Fixture {
	t.Helper()
	root := t.TempDir()
	layers := filepath.Join(root, "layers")
	if err := os.Mkdir(layers, 0o700); err != nil {
		t.Fatal(err)
	}
	d := NewDriver(layers)
	f := on(t, root, d, opts)
	f.Driver = d
	return f
}

// On opens an empty store in root with a storage driver. Fixture.Driver is nil.
func On(t testing.TB, root string, driver layer.Driver) *Fixture {
	t.Helper()
	return on(t, root, driver, store.Options{})
}

func on(t testing.TB, root string, driver layer.Driver, opts store.Options) *Fixture {
	t.Helper()
	f := &Fixture{t: t, opts: opts, Events: &events.Bus{}, InUse: map[oci.ImageID][]string{}, Running: map[string]bool{}}
	f.open(root, driver)
	t.Cleanup(func() {
		if err := f.Store.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *Fixture) open(root string, driver layer.Driver) {
	f.t.Helper()
	var err error
	if f.Store, err = store.Open(root, driver, f.opts); err != nil {
		f.t.Fatal(err)
	}
	f.Images = image.New(f.Store, image.Options{
		Events:  f.Events,
		InUse:   func(id oci.ImageID) []string { return f.InUse[id] },
		Running: func(c string) bool { return f.Running[c] },
	})
}

// Damage makes the record of an image unreadable and opens the store again. The fixture was made by New.
func (f *Fixture) Damage(id oci.ImageID) {
	f.t.Helper()
	f.Edit(func(path string) { metatest.Damage(f.t, path, "images", string(id)) })
}

// Edit closes the store, calls edit with the path of the database, and opens the store again.
func (f *Fixture) Edit(edit func(path string)) {
	f.t.Helper()
	root := f.Store.Root
	if err := f.Store.Close(); err != nil {
		f.t.Fatal(err)
	}
	edit(filepath.Join(root, "meta.db"))
	f.open(root, f.Driver)
}

// Tar returns the tar of a layer. files are pairs of a path and its content. A path that ends in "/" is a directory.
func Tar(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i+1 < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), ModTime: time.Unix(1_400_000_000, 0), Typeflag: tar.TypeReg}
		if h.Name[len(h.Name)-1] == '/' {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Layer stores a tar as a layer on a chain, the layers below it, and returns its diffID.
func (f *Fixture) Layer(tarred []byte, below ...oci.DiffID) oci.DiffID {
	f.t.Helper()
	ctx := f.t.Context()
	w, err := f.Store.Layers.Create(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := w.Write(tarred); err != nil {
		f.t.Fatal(err)
	}
	info, err := w.Commit(ctx, below, "")
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.Store.RecordLayer(info, nil); err != nil {
		f.t.Fatal(err)
	}
	return info.DiffID
}

// Spec describes an image for Fixture.Image. The zero value is an image without a name and without layers.
type Spec struct {
	Name   string
	Parent oci.ImageID
	Layers [][]byte // tars of the layers above those of the parent; each has one history entry
	Empty  []string // further history entries, without a layer
	Labels map[string]string
	Hours  int // hours from Day to the creation time
	Format oci.Format
}

// Day is the creation time of an image with Spec.Hours 0.
var Day = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// Image records an image and returns its ID.
func (f *Fixture) Image(s Spec) oci.ImageID {
	f.t.Helper()
	ctx := f.t.Context()
	made := Day.Add(time.Duration(s.Hours) * time.Hour)
	cfg := oci.Config{Created: &made, Architecture: "amd64", OS: "linux", Config: oci.RunConfig{Labels: s.Labels, Cmd: []string{"/bin/true"}}}
	if s.Parent != "" {
		p, err := f.Images.Get(ctx, string(s.Parent))
		if err != nil {
			f.t.Fatal(err)
		}
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, p.Chain...)
		cfg.History = append(cfg.History, p.Config.History...)
	}
	for i, l := range s.Layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, f.Layer(l, cfg.RootFS.DiffIDs...))
		cfg.History = append(cfg.History, oci.History{Created: &made, CreatedBy: "layer " + string(rune('a'+i)) + " of " + s.Name})
	}
	for _, e := range s.Empty {
		cfg.History = append(cfg.History, oci.History{Created: &made, CreatedBy: e, EmptyLayer: true})
	}
	opts := image.CreateOptions{Parent: s.Parent, Config: cfg, Format: s.Format}
	if s.Name != "" {
		opts.Name = Ref(f.t, s.Name)
	}
	id, err := f.Images.Create(ctx, nil, opts)
	if err != nil {
		f.t.Fatal(err)
	}
	return id
}

// Ref parses a reference.
func Ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
