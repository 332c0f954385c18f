package engine

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/store/layer/drivers"
)

// newOptions returns options for an engine with roots of its own.
func newOptions(t *testing.T, driver string) Options {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("an engine needs root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "ply-engine.") // /tmp may be a tmpfs, on which not every driver works
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.DataRoot, cfg.ExecRoot, cfg.StorageDriver, cfg.Bridge = filepath.Join(dir, "data"), filepath.Join(dir, "run"), driver, "plyengine0"
	t.Cleanup(func() {
		if mounted, err := mount.IsMounted(cfg.ExecRoot); err != nil || mounted {
			t.Errorf("the exec root is still mounted: %v, %v", mounted, err)
			_ = mount.Unmount(cfg.ExecRoot, true)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return Options{Config: &cfg, ShimPath: filepath.Join(dir, "ply-shim"), CertsDirs: []string{}}
}

func mustOpen(t *testing.T, opts Options) *Engine {
	t.Helper()
	e, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestOpenWiresEveryService(t *testing.T) {
	for _, driver := range drivers.Names() {
		t.Run(driver, func(t *testing.T) {
			opts := newOptions(t, driver)
			e := mustOpen(t, opts)
			v := reflect.ValueOf(e).Elem()
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() && v.Field(i).IsNil() {
					t.Errorf("%s is missing", f.Name)
				}
			}
			if got := e.Store.Layers.Name(); got != driver {
				t.Errorf("driver %s", got)
			}
			info, err := e.System.Info(t.Context())
			if err != nil || info.ID == "" || info.Driver != driver || info.Config.DataRoot != opts.Config.DataRoot || info.Containers.All != 0 {
				t.Errorf("info %+v, %v", info, err)
			}
			if list, err := e.Containers.List(t.Context(), container.ListOptions{All: true}); err != nil || len(list) != 0 {
				t.Errorf("containers %v, %v", list, err)
			}
			if list, err := e.Networks.List(t.Context(), nil); err != nil || len(list) != 3 {
				t.Errorf("networks %v, %v", list, err)
			}
			if list, err := e.Volumes.List(t.Context(), nil); err != nil || len(list) != 0 {
				t.Errorf("volumes %v, %v", list, err)
			}
			if mounted, err := mount.IsMounted(opts.Config.ExecRoot); err != nil || !mounted {
				t.Errorf("the exec root is not a mount of its own: %v", err)
			}
		})
	}
}

func TestCloseEndsThePartsInTheOppositeOrder(t *testing.T) {
	e := mustOpen(t, newOptions(t, "vfs"))
	var opened, closed []string
	for i, c := range e.closers {
		opened = append(opened, c.name)
		e.closers[i].end = func() error {
			closed = append(closed, c.name)
			return c.end()
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{"builder", "pulls", "connections to registries", "containers", "networks", "exec root", "lock of the exec root", "store"}
	if !slices.Equal(closed, want) {
		t.Errorf("closed %v, want %v", closed, want)
	}
	slices.Reverse(opened)
	if !slices.Equal(opened, closed) {
		t.Errorf("opened %v", opened)
	}
	if err := e.Close(); err != nil || len(closed) != len(want) {
		t.Errorf("a second Close: %v, closed %v", err, closed)
	}
}

func TestCloseEndsAllPartsAndReportsAllErrors(t *testing.T) {
	e := &Engine{}
	first, second := errors.New("first"), errors.New("second")
	ended := 0
	for _, err := range []error{first, nil, second} {
		e.onClose("part", func() error { ended++; return err })
	}
	if err := e.Close(); ended != 3 || !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("%d parts ended, %v", ended, err)
	}
}

func TestASecondEngineOnTheSameRootIsRefused(t *testing.T) {
	opts := newOptions(t, "vfs")
	mustOpen(t, opts)
	// The second engine must not remove temporary files of the first one.
	work := filepath.Join(opts.Config.DataRoot, durable.TempPrefix+"work")
	if err := os.WriteFile(work, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err := Open(t.Context(), opts); !errors.Is(err, errs.Unavailable) {
		t.Fatalf("second Open = %v, %v, want class Unavailable", e, err)
	}
	if _, err := os.Stat(work); err != nil {
		t.Errorf("the refused engine touched the data root: %v", err)
	}
	if mounted, err := mount.IsMounted(opts.Config.ExecRoot); err != nil || !mounted {
		t.Errorf("the refused engine unmounted the exec root of the first one: %v", err)
	}
}

// Two engines with different data roots cannot share an exec root. The second one is told who has it, and leaves it alone.
func TestASecondEngineOnTheSameExecRootIsRefused(t *testing.T) {
	opts, other := newOptions(t, "vfs"), newOptions(t, "vfs")
	mustOpen(t, opts)
	other.Config.ExecRoot = opts.Config.ExecRoot
	e, err := Open(t.Context(), other)
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "is in use by") {
		t.Fatalf("second Open = %v, %v, want class Unavailable and the holder", e, err)
	}
	if mounted, err := mount.IsMounted(opts.Config.ExecRoot); err != nil || !mounted {
		t.Errorf("the refused engine unmounted the exec root of the first one: %v", err)
	}
}

func TestAnEngineOpensAgainAfterClose(t *testing.T) {
	opts := newOptions(t, "vfs")
	e, err := Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	before, err := e.System.Info(t.Context())
	if err := errors.Join(err, e.Close()); err != nil {
		t.Fatal(err)
	}
	opts.Config.StorageDriver = "" // recorded in the data root
	again := mustOpen(t, opts)
	if after, err := again.System.Info(t.Context()); err != nil || after.ID != before.ID || after.Driver != "vfs" {
		t.Errorf("ID %s driver %s, before %s %s, %v", after.ID, after.Driver, before.ID, before.Driver, err)
	}
}

// When a part fails to open, the parts before it are closed: the exec root is unmounted, and the data root can be opened again.
func TestAFailedOpenClosesWhatWasOpened(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *Options){
		"store":     func(_ *testing.T, o *Options) { o.Config.StorageDriver = "nosuch" },
		"exec root": func(t *testing.T, o *Options) { o.Config.ExecRoot = file(t, o) + "/below" },
		"volumes": func(t *testing.T, o *Options) {
			if err := os.MkdirAll(o.Config.DataRoot, 0o711); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(o.Config.DataRoot, "volumes"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"networks": func(t *testing.T, o *Options) {
			if err := os.MkdirAll(o.Config.ExecRoot, 0o711); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(o.Config.ExecRoot, "network"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			good := newOptions(t, "vfs")
			cfg := *good.Config
			bad := good
			bad.Config = &cfg
			spoil(t, &bad)
			if e, err := Open(t.Context(), bad); err == nil {
				t.Fatal("it opened", e.Close())
			}
			if err := os.RemoveAll(good.Config.DataRoot); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(good.Config.ExecRoot); err != nil {
				t.Fatal(err)
			}
			mustOpen(t, good)
		})
	}
}

func file(t *testing.T, o *Options) string {
	t.Helper()
	name := filepath.Dir(o.Config.DataRoot) + "/file"
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestInfoSaysWhyABetterDriverWasNotTaken(t *testing.T) {
	opts := newOptions(t, "")
	e := mustOpen(t, opts)
	e.driverNotes = append(e.driverNotes, [2]string{"better not used", "why"})
	if err := e.openSystem(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := e.System.Info(t.Context())
	if err != nil || !slices.Contains(info.DriverStatus, [2]string{"better not used", "why"}) {
		t.Errorf("status %v, %v", info.DriverStatus, err)
	}
	// There is one note per driver that comes before the chosen one.
	chosen := slices.Index(drivers.Names(), info.Driver)
	if len(e.driverNotes)-1 != chosen {
		t.Errorf("driver %s with the notes %v", info.Driver, e.driverNotes)
	}
}

func TestReload(t *testing.T) {
	e := mustOpen(t, newOptions(t, "vfs"))
	_, next := e.Events.Listen(t.Context())
	cfg := *e.config.Current()
	cfg.Labels, cfg.DataRoot = []string{"a=b"}, "/elsewhere"
	if err := e.Reload(&cfg); err != nil {
		t.Fatal(err)
	}
	if cur := e.config.Current(); !slices.Equal(cur.Labels, cfg.Labels) || cur.DataRoot == "/elsewhere" {
		t.Errorf("labels %v, data root %s", cur.Labels, cur.DataRoot)
	}
	if ev := <-next; ev.Type != "daemon" || ev.Action != "reload" {
		t.Errorf("event %+v", ev)
	}
	bad := cfg
	bad.RegistryMirrors = []string{"::"}
	if err := e.Reload(&bad); err == nil || !slices.Equal(e.config.Current().Labels, cfg.Labels) {
		t.Errorf("a bad mirror: %v", err)
	}
}

func TestTheEngineWritesThroughItsFileSystem(t *testing.T) {
	opts := newOptions(t, "vfs")
	var mu sync.Mutex
	var trace []string
	opts.FS = &faultfs.FS{Under: durable.OS, Trace: func(op string) {
		mu.Lock()
		defer mu.Unlock()
		trace = append(trace, op)
	}}
	mustOpen(t, opts)
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(strings.Join(trace, "\n"), filepath.Join(opts.Config.DataRoot, "engine-id")) {
		t.Error("the engine's ID was written past the file system of the options")
	}
}
