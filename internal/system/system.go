// Package system describes the engine: who it is, what it holds, how it is configured and on which machine it runs.
//
// The description is made of our own types. The API translates it into the answers of `info` and `version`.
package system

import (
	"cmp"
	"context"
	"path/filepath"
	"runtime"
	"time"

	"ply/internal/config"
	"ply/internal/container"
	"ply/internal/container/cdi"
	"ply/internal/host"
	"ply/internal/image"
	"ply/internal/version"
)

// Images lists the images; image.Service implements it.
type Images interface {
	List(ctx context.Context, opts image.ListOptions) ([]*image.Image, error)
}

// Containers lists the containers; container.Service implements it.
type Containers interface {
	List(ctx context.Context, opts container.ListOptions) ([]*container.Container, error)
}

// Options are the parts of the engine that a Service describes. All are required, except StorageNotes and Warnings.
type Options struct {
	ID           string // see Identity
	Config       *config.Live
	Images       Images
	Containers   Containers
	Storage      Storage
	StorageNotes [][2]string     // why better storage drivers were not taken
	Warnings     func() []string // what is wrong with the data; nil = nothing
	ShimPath     string
}

// Storage is the storage driver; layer.Driver implements it.
type Storage interface {
	Name() string
	Status() [][2]string
}

// Service describes one engine. Safe for concurrent use.
type Service struct{ opts Options }

// New returns a Service over the parts of an engine.
func New(opts Options) *Service { return &Service{opts} }

// Version describes the program and the kernel below it.
type Version struct {
	version.Info
	Kernel string // release of the kernel
}

// Version describes the running program.
func (s *Service) Version() Version {
	return Version{Info: version.Get(), Kernel: host.Kernel()}
}

// Counts are numbers of containers by state; restarting containers count as running.
type Counts struct{ All, Running, Paused, Stopped int }

// Info describes an engine at one moment.
type Info struct {
	ID           string
	Config       *config.Config // in force now; not to be changed
	Host         host.Facts
	Driver       string      // storage driver
	DriverStatus [][2]string // pairs of a name and a value
	Warnings     []string    // what is wrong with the data
	Images       int
	Containers   Counts
	Runtimes     map[string]string // path of each OCI runtime, by name
	InitBinary   string            // what --init runs
	LiveRestore  bool              // containers outlive the engine
	Devices      *cdi.Devices
	Goroutines   int
	OpenFiles    int
	Time         time.Time
}

// Info describes the engine now. It counts by listing, so it fails when a list does.
func (s *Service) Info(ctx context.Context) (Info, error) {
	cfg := s.opts.Config.Current()
	i := Info{
		ID: s.opts.ID, Config: cfg, Host: host.Read(),
		Driver: s.opts.Storage.Name(), DriverStatus: append(s.opts.Storage.Status(), s.opts.StorageNotes...),
		Runtimes:   map[string]string{"ply": s.opts.ShimPath, "runc": s.opts.ShimPath}, // clients ask for runc, which is the built-in one too
		InitBinary: cmp.Or(cfg.InitPath, filepath.Base(s.opts.ShimPath)), LiveRestore: cfg.LiveRestore,
		Goroutines: runtime.NumGoroutine(), OpenFiles: host.OpenFiles(), Time: time.Now(), Devices: cdi.Read(cfg.CDIDirs()),
	}
	if s.opts.Warnings != nil {
		i.Warnings = s.opts.Warnings()
	}
	for name, r := range cfg.Runtimes {
		i.Runtimes[name] = r.Path
	}
	images, err := s.opts.Images.List(ctx, image.ListOptions{All: true})
	if err != nil {
		return Info{}, err
	}
	i.Images = len(images)
	i.Containers, err = s.count(ctx)
	return i, err
}

func (s *Service) count(ctx context.Context) (n Counts, err error) {
	list, err := s.opts.Containers.List(ctx, container.ListOptions{All: true})
	if err != nil {
		return Counts{}, err
	}
	n.All = len(list)
	for _, c := range list {
		switch c.State.Status {
		case container.StatusRunning, container.StatusRestarting:
			n.Running++
		case container.StatusPaused:
			n.Paused++
		default:
			n.Stopped++
		}
	}
	return n, nil
}
