// Package history remembers builds: what was built, its steps with their times and whether they came from the cache, and the whole log.
//
// A build is two files below <data root>/build/history: <id>.json, its record, and <id>.log, its log. The number, the bytes and the age of what is kept are bounded; the
// oldest builds go first.
//
// Invariants: a record is durable when Build.End returns; a log is whole as far as the engine did not crash, and a build that a crash ended is found with the log that
// it left; neither has arguments, secrets or the environment of a build, except in what its commands print.
package history

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
)

// Version is that of the record.
const Version = 1

// Record describes a build.
type Record struct {
	ID        string            `json:"id"`
	Name      string            `json:"name,omitempty"` // the first tag, or the target
	Tags      []string          `json:"tags,omitempty"`
	Target    string            `json:"target,omitempty"`
	File      string            `json:"file,omitempty"` // the Dockerfile's name
	Platforms []string          `json:"platforms,omitempty"`
	Options   map[string]string `json:"options,omitempty"` // arguments and labels, as build-arg:NAME and label:NAME
	Started   time.Time         `json:"started"`
	Ended     time.Time         `json:"ended,omitzero"` // zero while it runs
	Error     string            `json:"error,omitempty"`
	Canceled  bool              `json:"canceled,omitempty"`
	Images    []oci.ImageID     `json:"images,omitempty"`
	Answers   map[string]string `json:"answers,omitempty"` // of the outputs
	Steps     []Step            `json:"steps,omitempty"`
	Warnings  []string          `json:"warnings,omitempty"`
	LogSize   int64             `json:"logSize"`          // bytes on disk
	LogCut    bool              `json:"logCut,omitempty"` // the rest of the log did not fit
}

// Step is a vertex of the graph of a build, or other work of it.
type Step struct {
	Digest  oci.Digest    `json:"digest,omitempty"`
	Name    string        `json:"name"`
	Started time.Time     `json:"started"`
	Took    time.Duration `json:"took"`
	Cached  bool          `json:"cached,omitempty"`
	Miss    string        `json:"miss,omitempty"` // why the result of an earlier build could not be used
	Error   string        `json:"error,omitempty"`
	Done    bool          `json:"done,omitempty"`
}

// Status says in a word how a build is.
func (r *Record) Status() string {
	switch {
	case r.Ended.IsZero():
		return "running"
	case r.Canceled:
		return "canceled"
	case r.Error != "":
		return "failed"
	}
	return "completed"
}

// Counts returns how many steps ended, and how many of these came from the cache.
func (r *Record) Counts() (done, cached int) {
	for i := range r.Steps {
		if r.Steps[i].Done {
			done++
		}
		if r.Steps[i].Cached {
			cached++
		}
	}
	return done, cached
}

// Options of Open. Zero limits mean the defaults.
type Options struct {
	FS       durable.FS // nil = the real one
	Dir      string
	MaxCount int           // builds; 0 = 200
	MaxBytes int64         // of records and logs; 0 = 512 MiB
	MaxAge   time.Duration // 0 = 30 days
	Log      *slog.Logger  // nil = none
}

// Limits of one build.
const (
	maxRecord   = 16 << 20 // bytes of a record
	maxSteps    = 25_000
	maxWarnings = 1000
	maxText     = 4096 // bytes of an error, a name, or a reason
)

// History is the builds of an engine. Safe for concurrent use.
type History struct {
	o Options

	mu      sync.Mutex
	active  map[string]*Build
	watches map[int]func(*Record)
	next    int

	pruning sync.Mutex
}

// Open opens the history in a directory. Builds that an engine left without an end get one.
func Open(o Options) (*History, error) {
	if o.FS == nil {
		o.FS = durable.OS
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.MaxCount = cmp.Or(o.MaxCount, 200)
	o.MaxBytes = cmp.Or(o.MaxBytes, 512<<20)
	o.MaxAge = cmp.Or(o.MaxAge, 30*24*time.Hour)
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, errs.New(errs.Internal, "build history: %w", err)
	}
	h := &History{o: o, active: map[string]*Build{}, watches: map[int]func(*Record){}}
	return h, h.restore()
}

// restore removes temporaries and ends the builds that a crash left.
func (h *History) restore() error {
	if err := durable.RemoveTemps(h.o.FS, h.o.Dir); err != nil {
		return errs.New(errs.Internal, "build history: %w", err)
	}
	entries, err := os.ReadDir(h.o.Dir)
	if err != nil {
		return errs.New(errs.Internal, "build history: %w", err)
	}
	has := map[string]bool{}
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			has[id] = true
		}
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".log")
		if !ok || has[id] || !isID(id) {
			continue
		}
		r, err := h.lost(id)
		if err == nil {
			err = record.WriteFile(h.o.FS, h.path(id, ".json"), Version, r, 0o600)
		}
		if err != nil {
			h.o.Log.Warn("a build that was interrupted has no record", "build", id, "err", err)
		}
	}
	return h.Prune()
}

// lost makes the record of a build that a crash ended from what its log says.
func (h *History) lost(id string) (*Record, error) {
	info, err := os.Stat(h.path(id, ".log"))
	if err != nil {
		return nil, err
	}
	r := &Record{ID: id, Started: info.ModTime().UTC(), Ended: info.ModTime().UTC(), Error: "the engine ended before the build", LogSize: info.Size()}
	err = readLog(h.path(id, ".log"), func(f *frame) error {
		switch f.kind {
		case kindBegin:
			var begun Record
			if record.Unmarshal("build "+id, f.data, Version, &begun) == nil {
				begun.Ended, begun.Error, begun.LogSize = r.Ended, r.Error, r.LogSize
				begun.ID = id
				*r = begun
			}
		case kindStep:
			if len(r.Steps) < maxSteps {
				r.Steps = append(r.Steps, Step{Name: string(f.data), Started: r.Started.Add(f.at)})
			}
		}
		return nil
	})
	if errors.Is(err, errs.DataLoss) {
		err = nil // the last frame may be cut
	}
	return r, err
}

func isID(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// NewID returns an ID as BuildKit's clients make them.
func NewID() string { return strings.ToLower(rand.Text())[:25] }

// Spool returns an empty file without a name, for what is made of a log.
func (h *History) Spool() (*os.File, error) {
	f, err := durable.Nameless(h.o.Dir)
	if err != nil {
		return nil, errs.New(errs.Internal, "build history: %w", err)
	}
	return f, nil
}

func (h *History) path(id, ext string) string { return filepath.Join(h.o.Dir, id+ext) }

// Get returns the record of a build, by its ID or a prefix that only one build has. Errors: errs.NotFound, errs.Invalid when several builds match.
func (h *History) Get(id string) (*Record, error) {
	full, err := h.resolve(id)
	if err != nil {
		return nil, err
	}
	return h.read(full)
}

func (h *History) read(id string) (*Record, error) {
	h.mu.Lock()
	b := h.active[id]
	h.mu.Unlock()
	if b != nil {
		return b.Record(), nil
	}
	r := &Record{}
	err := record.ReadFile(h.o.FS, h.path(id, ".json"), maxRecord, Version, r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "no such build: %s", id)
	}
	r.ID = id
	return r, err
}

func (h *History) resolve(id string) (string, error) {
	if !isID(id) {
		return "", errs.New(errs.NotFound, "no such build: %.64s", id)
	}
	ids, err := h.ids()
	if err != nil {
		return "", err
	}
	found := ""
	for _, have := range ids {
		switch {
		case have == id:
			return id, nil
		case !strings.HasPrefix(have, id):
		case found != "":
			return "", errs.New(errs.Invalid, "several builds have IDs that begin with %s", id)
		default:
			found = have
		}
	}
	if found == "" {
		return "", errs.New(errs.NotFound, "no such build: %s", id)
	}
	return found, nil
}

// ids returns the IDs of all builds.
func (h *History) ids() ([]string, error) {
	entries, err := os.ReadDir(h.o.Dir)
	if err != nil {
		return nil, errs.New(errs.Internal, "build history: %w", err)
	}
	var list []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && isID(id) {
			list = append(list, id)
		}
	}
	h.mu.Lock()
	for id := range h.active {
		list = append(list, id)
	}
	h.mu.Unlock()
	slices.Sort(list)
	return slices.Compact(list), nil
}

// List returns the records of all builds, the latest first. A damaged one is left out.
func (h *History) List() ([]*Record, error) {
	ids, err := h.ids()
	if err != nil {
		return nil, err
	}
	var list []*Record
	for _, id := range ids {
		r, err := h.read(id)
		if err != nil {
			if !errors.Is(err, errs.NotFound) {
				h.o.Log.Warn("damaged record of a build", "build", id, "err", err)
			}
			continue
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *Record) int { return cmp.Or(b.Started.Compare(a.Started), cmp.Compare(a.ID, b.ID)) })
	return list, nil
}

// Remove removes a build that has ended. Errors: errs.Conflict while it runs.
func (h *History) Remove(id string) (string, error) {
	full, err := h.resolve(id)
	if err != nil {
		return "", err
	}
	h.mu.Lock()
	_, running := h.active[full]
	h.mu.Unlock()
	if running {
		return "", errs.New(errs.Conflict, "build %s is running", full)
	}
	return full, h.remove(full)
}

func (h *History) remove(id string) error {
	// The record goes last: a log without a record would come back as a build that was interrupted.
	for _, ext := range []string{".log", ".json"} {
		if err := h.o.FS.Remove(h.path(id, ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.Internal, "build %s: %w", id, err)
		}
	}
	return nil
}

// Prune removes what exceeds the limits.
func (h *History) Prune() error {
	h.pruning.Lock()
	defer h.pruning.Unlock()
	list, err := h.List()
	if err != nil {
		return err
	}
	var bytes int64
	var all error
	for i, r := range list {
		size := r.LogSize
		if info, err := os.Stat(h.path(r.ID, ".json")); err == nil {
			size += info.Size()
		}
		bytes += size
		if r.Ended.IsZero() || i == 0 {
			continue // the latest build stays, however long its log is
		}
		if i >= h.o.MaxCount || bytes > h.o.MaxBytes || time.Since(r.Started) > h.o.MaxAge {
			bytes -= size
			all = errors.Join(all, h.remove(r.ID))
		}
	}
	return all
}

// Watch calls f with the record of each build that begins or ends, until ctx ends. f does not block.
func (h *History) Watch(ctx context.Context, f func(*Record)) {
	h.mu.Lock()
	h.next++
	id := h.next
	h.watches[id] = f
	h.mu.Unlock()
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		delete(h.watches, id)
		h.mu.Unlock()
	})
}

func (h *History) tell(r *Record) {
	h.mu.Lock()
	list := make([]func(*Record), 0, len(h.watches))
	for _, f := range h.watches {
		list = append(list, f)
	}
	h.mu.Unlock()
	for _, f := range list {
		f(r)
	}
}
