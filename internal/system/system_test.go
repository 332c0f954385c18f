package system

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/durable"
	"ply/internal/image"
	"ply/internal/version"
)

type images int

func (n images) List(context.Context, image.ListOptions) ([]*image.Image, error) {
	return make([]*image.Image, n), nil
}

type containers []container.Status

func (c containers) List(_ context.Context, opts container.ListOptions) ([]*container.Container, error) {
	if !opts.All {
		return nil, errors.New("only running containers were listed")
	}
	var list []*container.Container
	for _, status := range c {
		list = append(list, &container.Container{State: container.State{Status: status}})
	}
	return list, nil
}

type broken struct{}

func (broken) List(context.Context, container.ListOptions) ([]*container.Container, error) {
	return nil, errors.New("broken")
}

type storage struct{}

func (storage) Name() string        { return "vfs" }
func (storage) Status() [][2]string { return [][2]string{{"Backing Filesystem", "extfs"}} }

func options() Options {
	cfg := config.Default()
	cfg.Runtimes = map[string]config.Runtime{"kata": {Path: "/usr/bin/kata"}}
	return Options{
		ID: "an-id", Config: config.NewLive(&cfg), Images: images(3), Storage: storage{}, StorageNotes: [][2]string{{"erofs not used", "why"}},
		Containers: containers{container.StatusRunning, container.StatusRestarting, container.StatusPaused, container.StatusExited, container.StatusCreated, container.StatusDead},
		ShimPath:   "/usr/libexec/ply-shim",
	}
}

func TestInfo(t *testing.T) {
	o := options()
	i, err := New(o).Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.ID != "an-id" || i.Config != o.Config.Current() || i.Images != 3 || (i.Containers != Counts{All: 6, Running: 2, Paused: 1, Stopped: 3}) {
		t.Errorf("%+v", i)
	}
	if i.Driver != "vfs" || !slices.Equal(i.DriverStatus, [][2]string{{"Backing Filesystem", "extfs"}, {"erofs not used", "why"}}) {
		t.Errorf("storage %s %v", i.Driver, i.DriverStatus)
	}
	if len(i.Runtimes) != 3 || i.Runtimes["ply"] != o.ShimPath || i.Runtimes["runc"] != o.ShimPath || i.Runtimes["kata"] != "/usr/bin/kata" || i.InitBinary != "ply-shim" {
		t.Errorf("runtimes %v, init %s", i.Runtimes, i.InitBinary)
	}
	if i.Host.Kernel == "" || i.Goroutines == 0 || i.OpenFiles == 0 || i.Time.IsZero() || !i.LiveRestore {
		t.Errorf("%+v", i)
	}
}

func TestInfoShowsTheConfigurationInForce(t *testing.T) {
	o := options()
	s := New(o)
	next := *o.Config.Current()
	next.Labels = []string{"a=b"}
	if _, _, err := o.Config.Reload(&next, func(*config.Config) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if i, err := s.Info(t.Context()); err != nil || !slices.Equal(i.Config.Labels, next.Labels) {
		t.Errorf("labels %v, %v", i.Config.Labels, err)
	}
}

func TestInfoFailsWhenAListDoes(t *testing.T) {
	o := options()
	o.Containers = broken{}
	if _, err := New(o).Info(t.Context()); err == nil {
		t.Error("counts were made up")
	}
}

func TestVersion(t *testing.T) {
	if v := New(options()).Version(); v.Version != version.Version || v.Go == "" || v.Kernel == "" {
		t.Errorf("%+v", v)
	}
}

func TestIdentityIsMadeOnce(t *testing.T) {
	root := t.TempDir()
	id, err := Identity(durable.OS, root)
	if err != nil || !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Fatalf("%q, %v", id, err)
	}
	if again, err := Identity(durable.OS, root); err != nil || again != id {
		t.Errorf("second call: %q, %v, want %q", again, err, id)
	}
	// A file that was cut short by hand is replaced.
	if err := os.WriteFile(filepath.Join(root, "engine-id"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := Identity(durable.OS, root); err != nil || len(again) != idLen || again == id {
		t.Errorf("after damage: %q, %v", again, err)
	}
}
