// Package source fetches what builds take from elsewhere: files of web servers and commits of git repositories. Each becomes a layer that the build
// cache remembers, so `builder du` shows it and `builder prune` removes it, and equal content is stored once.
//
// Invariants: servers and repositories are hostile. Every fetch is bounded in size and in time. No connection leads to a link-local address or to a
// metadata service, however the name resolves and wherever a redirect leads. No program, hook, filter or setting of a repository is ever used: of a
// commit only the names, modes and contents of its files count. Credentials of a client go to the host that they are for, and are in no argument of
// a process, no record, no layer and no message.
package source

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Layers stores layers; runner.Runner has it.
type Layers interface {
	Layer(ctx context.Context, l solver.Leaser, base oci.Chain, write func(io.Writer) error) (oci.Chain, error)
}

// Client is what a source asks of the client that started the build. An error of class errs.NotFound says that the client has no such thing.
type Client interface {
	Secret(ctx context.Context, id string) ([]byte, error)
	Agent(ctx context.Context, id string) (io.ReadWriteCloser, error)
}

// Uploads is a Client that sends files in place of a web server: with uploadHost in an address, such as that of a context that the client read from its standard input.
type Uploads interface {
	// Upload sends the file of a path, once.
	Upload(ctx context.Context, path string) (io.ReadCloser, error)
}

// Limits bound a fetch. A zero field has the default of New.
type Limits struct {
	Bytes   int64         // of one fetch: of a file, of the packs of a repository, of the files of a checkout
	Entries int           // of a checkout
	Depth   int           // of submodules in submodules
	Modules int           // submodules of one checkout, all levels
	Time    time.Duration // of the whole fetch
	Quiet   time.Duration // a fetch is given up when it has made no progress for that long
	MinRate int64         // bytes per second that a web server must send, on average over Quiet
}

var defaults = Limits{
	Bytes: 32 << 30, Entries: 2_000_000, Depth: 16, Modules: 1000, Time: 6 * time.Hour, Quiet: time.Minute, MinRate: 512,
}

// Options of New. Layers, Cache and Dir are required.
type Options struct {
	Layers Layers
	Cache  solver.Cache
	FS     durable.FS // nil = the operating system's
	Dir    string     // has repositories and files while they are fetched; its content is removed by New
	Run    string     // has sockets, so its path must be short; default Dir
	Git    string     // the git program; default git
	Limits Limits
	Log    *slog.Logger

	// For tests; nil = the system's.
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	Connect func(ctx context.Context, network, addr string) (net.Conn, error)
	Roots   *x509.CertPool
}

// Sources is shared by all builds. Safe for concurrent use.
type Sources struct {
	o   Options
	web *http.Client

	mu   sync.Mutex
	busy map[string]*turn
}

// turn makes those who fetch the same thing wait for each other, so that the later ones find it in the cache.
type turn struct {
	users int
	token chan struct{}
}

// New returns the sources of an engine.
func New(o Options) (*Sources, error) {
	if o.FS == nil {
		o.FS = durable.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Git == "" {
		o.Git = "git"
	}
	if o.Run == "" {
		o.Run = o.Dir
	}
	l := &o.Limits
	l.Bytes = or(l.Bytes, defaults.Bytes)
	l.Entries = or(l.Entries, defaults.Entries)
	l.Depth = or(l.Depth, defaults.Depth)
	l.Modules = or(l.Modules, defaults.Modules)
	l.Time = or(l.Time, defaults.Time)
	l.Quiet = or(l.Quiet, defaults.Quiet)
	l.MinRate = or(l.MinRate, defaults.MinRate)
	if err := errors.Join(o.FS.RemoveAll(o.Dir), o.FS.MkdirAll(o.Dir, 0o700)); err != nil {
		return nil, errs.New(errs.Internal, "sources of builds: %w", err)
	}
	s := &Sources{o: o, busy: map[string]*turn{}}
	s.web = s.webClient()
	return s, nil
}

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

// wait waits for the turn to fetch what name stands for. The caller calls done.
func (s *Sources) wait(ctx context.Context, name string) (done func(), err error) {
	s.mu.Lock()
	t := s.busy[name]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		s.busy[name] = t
	}
	t.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(s.busy, name)
		}
	}
	select {
	case t.token <- struct{}{}:
		return func() { <-t.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// Fetches are the sources of one build, in which a name means the same thing from beginning to end. Safe for concurrent use.
type Fetches struct {
	s      *Sources
	client Client
	lease  solver.Leaser

	mu      sync.Mutex
	commits map[string]commit
	times   map[string]time.Time // of commits
	files   map[oci.Digest]*webFile
}

// For returns the sources of a build.
func (s *Sources) For(c Client, l solver.Leaser) *Fetches {
	return &Fetches{s: s, client: c, lease: l, commits: map[string]commit{}, times: map[string]time.Time{}, files: map[oci.Digest]*webFile{}}
}

// Time returns when a source was made: the time of a commit, or the Last-Modified of a web server. The zero time when that is unknown.
func (f *Fetches) Time(ctx context.Context, op ops.Op) (time.Time, error) {
	switch op := op.(type) {
	case *ops.HTTP:
		r, err := f.file(ctx, op, nil)
		if err != nil {
			return time.Time{}, err
		}
		return r.modified, nil
	case *ops.Git:
		return f.commitTime(ctx, op)
	}
	return time.Time{}, nil
}

// find returns a record of the cache; nil when there is none.
func (f *Fetches) find(ctx context.Context, key oci.Digest) (*solver.Record, error) {
	rec, err := f.s.o.Cache.Find(ctx, f.lease, key)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return rec, err
}

// part returns a note of a record.
func part(r *solver.Record, what string) string {
	for _, p := range r.Parts {
		if p.What == what {
			return p.Sum
		}
	}
	return ""
}

// secret returns a secret; nil when the client has none of that name.
func (f *Fetches) secret(ctx context.Context, id string) ([]byte, error) {
	v, err := f.client.Secret(ctx, id)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, c := range v {
		if c == '\r' || c == '\n' || c == 0 {
			return nil, errs.New(errs.Invalid, "secret %s: it must be one line to be sent in a header", id)
		}
	}
	return v, nil
}

// scratch makes a directory that the caller removes.
func (s *Sources) scratch() (dir string, remove func() error, err error) {
	dir = durable.TempName(s.o.Dir)
	if err := s.o.FS.Mkdir(dir, 0o700); err != nil {
		return "", nil, errs.New(errs.Internal, "sources of builds: %w", err)
	}
	return dir, func() error { return s.o.FS.RemoveAll(dir) }, nil
}

// spool makes a file without a name.
func (s *Sources) spool() (*os.File, error) {
	name := durable.TempName(s.o.Dir)
	f, err := os.OpenFile(filepath.Clean(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(name); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
