// Package build makes images from Dockerfiles: it joins the front end (package dockerfile), the solver, and the services of the engine, gives every step an
// image that can be run, and keeps the cache in its bounds.
//
// Invariants: a build changes nothing but the cache until it succeeds, and a name is given to an image that is complete; a step that failed leaves
// an image of its file system; all that a client may not do itself, its build may not do.
package build

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ply/internal/build/cache"
	"ply/internal/build/dockerfile"
	"ply/internal/build/export"
	"ply/internal/build/history"
	"ply/internal/build/ops"
	"ply/internal/build/runner"
	"ply/internal/build/solver"
	"ply/internal/build/source"
	"ply/internal/build/tree"
	"ply/internal/events"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/pull"
	"ply/internal/transfer/push"
)

// Images is what builds need of the images; image.Service has it.
type Images interface {
	Get(ctx context.Context, ref string) (*image.Image, error)
	Index(ref string) (*image.Index, error)
	Put(ctx context.Context, lease *store.Lease, o image.PutOptions) (oci.ImageID, error)
	PutIndex(ctx context.Context, lease *store.Lease, o image.PutIndexOptions) ([]oci.ImageID, error)
	Publish(action string, id oci.ImageID, name string)
	RemoveSteps(ctx context.Context, gone func(step string, used time.Time) bool) ([]image.Removed, int64, error)
}

// Puller fetches base images and caches; pull.Puller has it.
type Puller interface {
	Pull(ctx context.Context, ref oci.Reference, opts transfer.PullOptions, progress transfer.Sink) error
	Source(ref oci.Reference, creds transfer.Credentials, progress transfer.Sink) *pull.Source
}

// Pusher sends content to registries; push.Pusher has it.
type Pusher interface {
	Target(ref oci.Reference, creds transfer.Credentials, progress transfer.Sink) *push.Target
}

// Options of New. All fields but Log, Policy, Parallel and what is refused are required.
type Options struct {
	Store      *store.Store
	Images     Images
	Puller     Puller
	Loader     Loader
	Pusher     Pusher
	Containers runner.Containers
	Sessions   runner.Sessions
	Networks   Networks
	Format     oci.Format // of images that are not built on another one
	DataRoot   string
	ExecRoot   string
	Policy     []PruneOptions // what is pruned after builds, in this order; nil = all beyond 20 GB, empty = nothing
	Parallel   int            // steps that are executed at a time; 0 = as the solver chooses
	Events     *events.Bus    // nil = none
	Log        *slog.Logger

	NoHostNetwork bool // refuse the entitlement network.host
	NoInsecure    bool // refuse the entitlement security.insecure
}

// Networks finds networks; network.Service has it.
type Networks interface {
	// Name returns the name of a network, which may be given by name or ID. The error's class is errs.NotFound when there is none.
	Name(ref string) (string, error)
}

// Service builds images. Safe for concurrent use.
type Service struct {
	o       Options
	policy  *policy
	log     *slog.Logger
	cache   *cache.Cache
	runner  *runner.Runner
	solver  *solver.Solver
	history *history.History
	sources *source.Sources
	digests *tree.Digests

	receivedMu sync.Mutex
	received   []*received // directories of clients, the last used first

	work sync.WaitGroup
	stop context.Context
	end  context.CancelFunc
}

// New returns the service.
func New(o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	policy, err := newPolicy(o.Policy)
	if err != nil {
		return nil, err
	}
	r, err := runner.New(runner.Options{
		Store: o.Store, Images: o.Images, Containers: o.Containers, Sessions: o.Sessions, ExecRoot: o.ExecRoot, DataRoot: o.DataRoot, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	s := &Service{o: o, policy: policy, log: o.Log, cache: cache.New(o.Store, o.Log), runner: r, digests: tree.NewDigests()}
	if s.history, err = history.Open(history.Options{FS: o.Store.FS, Dir: filepath.Join(o.DataRoot, "build", "history"), Log: o.Log}); err != nil {
		return nil, err
	}
	s.solver = solver.New(r, s.cache, o.Parallel)
	s.sources, err = source.New(source.Options{
		Layers: r, Cache: s.cache, FS: o.Store.FS, Dir: filepath.Join(o.DataRoot, "build", "sources"), Run: filepath.Join(o.ExecRoot, "build"), Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	s.stop, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Restore removes what builds of an engine that was killed left.
func (s *Service) Restore(ctx context.Context) error {
	return errors.Join(s.runner.Restore(ctx), s.o.Store.FS.RemoveAll(s.contexts()))
}

// Close ends the builds and waits for them.
func (s *Service) Close() error {
	s.end()
	s.work.Wait()
	return s.cache.Flush()
}

// Client is what a build asks of the client that started it.
type Client interface {
	// Local opens a directory of the client. Patterns of l that the client has not applied are applied by the caller.
	Local(ctx context.Context, l *ops.Local) (*tree.Tree, error)
	Secret(ctx context.Context, id string) ([]byte, error)
	Agent(ctx context.Context, id string) (io.ReadWriteCloser, error)
	// Credentials returns those for a registry.
	Credentials(ctx context.Context, host string) (transfer.Credentials, error)
	// OutputTar opens the stream in which the client takes the index-th of Request.Exports. meta are the Answers that are known so far. The client has
	// everything when Close returns nil. When ctx ends before Close, the client learns that the output failed.
	OutputTar(ctx context.Context, index int, meta map[string]string) (io.WriteCloser, error)
	// OutputDir sends files into the directory into which the client takes the index-th of Request.Exports. The client has everything when it returns nil.
	OutputDir(ctx context.Context, index int, files export.Files) error
}

// Policy says what a build may be made of.
type Policy interface {
	// Allow returns an error when a source is not allowed. Address and attributes are those of ops.Vertex.Source. It is asked before the source is read, and more
	// than once for the same source.
	Allow(ctx context.Context, address string, attrs map[string]string, p oci.Platform) error
}

// Request is a build.
type Request struct {
	ID    string // of the build in the history, if no other build has it; "" = one is made
	Front dockerfile.Request
	// Definition is a graph to be executed in place of what a front end makes; nil = run the front end.
	Definition []byte
	Client     Client
	Policy     Policy // nil = every source may be used
	Tags       []oci.Reference
	Exports    []Export // nil = an image in the store, with Tags
	Network    string   // of the steps that ask for no other one: the name or the ID of one that a user created; "" = the default one
	NoCache    bool
	Pull       bool // ask the registries for newer base images

	CacheFrom []CacheRef // caches that results are taken from, besides the engine's own
	CacheTo   []CacheRef // caches that the results are written to after the build

	// What the client may ask for, besides what every build may.
	HostNetwork bool
	Insecure    bool
}

// Export is an output of a build. Type and attributes have BuildKit's names: image, registry, local, tar, oci, docker, cacheonly.
type Export struct {
	Type  string
	Attrs map[string]string
}

// CacheRef names a cache in one of BuildKit's formats: Type is registry, local or inline, and Attrs are those of --cache-from and --cache-to.
type CacheRef struct {
	Type  string
	Attrs map[string]string
}

// Result of Build.
type Result struct {
	ID       string            // of the build in the history; "" = it is not there
	Images   []oci.ImageID     // one per platform; none when no output is an image in the store
	Metadata map[string][]byte // answers of the front end to a question
	Answers  map[string]string // what the outputs say about themselves, by BuildKit's names: containerimage.digest, image.name, …
}

// Listener is told how a build goes on. Its methods are called concurrently, except where they say otherwise.
type Listener interface {
	solver.Progress
	Warn(w dockerfile.Warning)
	// Step reports an instruction that is about to run. The steps of a build come in order, and so do StepDone's.
	Step(st StepInfo)
	// StepDone reports the image after an instruction; Cached says that nothing had to be executed.
	StepDone(st StepInfo)
}

// Planner is a Listener that is told the instructions of an image before the first one is its turn.
type Planner interface{ Plan(steps []StepInfo) }

// StepInfo is an instruction of the Dockerfile.
type StepInfo struct {
	dockerfile.Step
	Index, Total int
	Image        oci.ImageID // after it; "" before it ended, and for an empty image
	Cached       bool
	Executed     bool // it has an operation, so it is not only a change of the config
	Vertex       *ops.Vertex
}

// StepError is the failure of an instruction.
type StepError struct {
	Err   error       // with the lines of the Dockerfile
	Image oci.ImageID // the file system as the command left it; "" when there is none
	Code  int         // of the command; 0 when it did not run
}

func (e *StepError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *StepError) Unwrap() error { return e.Err }

// Build executes a request. Errors: a *StepError when a step failed; a *dockerfile.Error when the Dockerfile is wrong; those of the client and of registries.
func (s *Service) Build(ctx context.Context, req Request, l Listener) (res *Result, err error) {
	p, err := s.Plan(ctx, req, l)
	if err != nil {
		return nil, err
	}
	defer func() { err = p.failure(errors.Join(err, p.Close())) }()
	return p.Finish()
}

// flush writes what the cache remembers in memory and the record of a build, and prunes the cache if it has grown, in the background.
func (s *Service) flush(b *running) {
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		if b.record != nil {
			var images []oci.ImageID
			var answers map[string]string
			if b.res != nil {
				images, answers = b.res.Images, b.res.Answers
			}
			if err := b.record.End(images, answers, b.failed); err != nil {
				s.log.Warn("build not in the history", "build", b.record.ID(), "err", err)
			}
		}
		if err := errors.Join(s.cache.Flush(), s.runner.Flush()); err != nil {
			s.log.Warn("last uses of build steps not recorded", "err", err)
		}
		if err := s.runner.RemoveImages(s.stop); err != nil && s.stop.Err() == nil {
			s.log.Warn("images of containers of build steps not removed", "err", err)
		}
		if err := s.policy.apply(s.stop, s); err != nil && s.stop.Err() == nil {
			s.log.Warn("build cache not pruned", "err", err)
		}
	}()
}

// Cache lists the entries of the cache, and the directories of cache mounts among them. The one that was used last is at the end.
func (s *Service) Cache(ctx context.Context) ([]cache.Entry, error) {
	list, err := s.cache.List()
	if err != nil {
		return nil, err
	}
	mounts, err := s.runner.CacheMounts(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		list = append(list, cache.Entry{ID: m.ID, Name: m.Description, Size: m.Size, Created: m.Created, Used: m.Used, Uses: m.Uses, InUse: m.InUse, Type: cache.CacheMount})
	}
	slices.SortStableFunc(list, func(a, b cache.Entry) int { return a.Used.Compare(b.Used) })
	return list, nil
}

// History returns the builds that ended and those that run.
func (s *Service) History() *history.History { return s.history }
