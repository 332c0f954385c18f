package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/events"
	"ply/internal/filter"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/meta"
)

// dataDir is the directory of a volume's content inside the volume's own directory.
const dataDir = "_data"

// Options of New. Store, Root and MountRoot are required.
type Options struct {
	Store *store.Store
	Root  string // <data-root>/volumes
	// MountRoot is <exec-root>/volumes. Parts of volumes, and images, that containers mount are mounted in it first.
	MountRoot string
	// Pack writes a directory and everything below it as a tar stream. Containers may change it meanwhile. Export needs it.
	Pack func(ctx context.Context, dir *os.File, w io.Writer) error
	// Unpack unpacks a tar stream, compressed or not, into an empty directory. Nothing in the stream is trusted. Import needs it.
	Unpack func(ctx context.Context, dir *os.File, r io.Reader) error
	Log    *slog.Logger
	Events *events.Bus
}

// Service keeps the volumes of this host. Safe for concurrent use.
//
// No other lock is taken while mu is held. It is held during a database transaction or a rename, never while data is
// copied or removed.
type Service struct {
	opts Options
	log  *slog.Logger

	mu         sync.Mutex
	references map[string]map[string]struct{} // volume → containers that refer to it
	active     map[string]map[string]struct{} // volume with a device → running containers that need it mounted

	slowMu sync.Mutex
	slow   map[string]chan struct{} // volumes that are being filled, mounted or unmounted; see lockSlow
}

// New returns the service and makes the root directory. Only root can enter it: a container mounts its volumes,
// so its users need no way through this directory. New ends removals that were interrupted.
func New(o Options) (*Service, error) {
	if o.Store == nil || o.Root == "" || o.MountRoot == "" {
		return nil, errs.New(errs.Invalid, "volumes: options lack a store, a root or a root of mounts")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := durable.MkdirPrivate(o.Store.FS, o.Root); err != nil {
		return nil, errs.New(errs.Internal, "volumes: %w", err)
	}
	// It is made here because a removal must not need space on the disk.
	if err := durable.MkdirPrivate(o.Store.FS, filepath.Join(o.Root, removingDir)); err != nil {
		return nil, errs.New(errs.Internal, "volumes: %w", err)
	}
	if err := durable.MkdirPrivate(durable.OS, o.MountRoot); err != nil {
		return nil, errs.New(errs.Internal, "volumes: %w", err)
	}
	s := &Service{
		opts: o, log: o.Log,
		references: map[string]map[string]struct{}{},
		active:     map[string]map[string]struct{}{},
		slow:       map[string]chan struct{}{},
	}
	left := trash{o.Store.FS, o.Store.Meta, o.Root}
	if err := errors.Join(left.finish(), left.finishRenames(), left.temporaries()); err != nil {
		o.Log.Warn("volumes: leftovers stay", "err", err)
	}
	if err := s.unpinAll(); err != nil {
		o.Log.Warn("volumes: leftover mounts stay", "err", err)
	}
	return s, nil
}

// labelAnonymous marks anonymous volumes for clients, which filter by it.
const labelAnonymous = "com.docker.volume.anonymous"

// NewID returns a random name for an anonymous volume: 64 hex digits.
func NewID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

var nameRE = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// maxName is the longest name of a directory.
const maxName = 255

func checkName(name string) error {
	switch {
	case len(name) == 1:
		return errs.New(errs.Invalid, "create %s: volume name is too short, names should be at least two alphanumeric characters", name)
	case len(name) > maxName:
		return errs.New(errs.Invalid, "create %.40s…: volume name is longer than %d characters", name, maxName)
	case !nameRE.MatchString(name):
		return errs.New(errs.Invalid, "create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed", name, name).
			WithHint("If you intended to pass a host directory, use absolute path")
	}
	return nil
}

// Create makes a volume, or returns the one of that name. With an empty name it makes an anonymous volume. The driver is
// "local" or empty. The error's class is errs.Invalid for a name or an option, and errs.NotFound for a driver.
func (s *Service) Create(ctx context.Context, name, driver string, labels, options map[string]string) (*Volume, error) {
	return s.create(ctx, name, driver, labels, options, "")
}

// create makes the volume and adds the container's reference to it in one step, so that no removal comes between. The
// container may be "".
func (s *Service) create(ctx context.Context, name, driver string, labels, options map[string]string, container string) (*Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	anonymous := name == ""
	if anonymous {
		name = NewID()
	}
	if driver == "" {
		driver = "local"
	}
	if driver != "local" {
		return nil, errs.New(errs.NotFound, "create %s: error looking up volume plugin %s: plugin %q not found", name, driver, driver).
			WithHint("Only the driver local is built in.")
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkDriverOptions(name, options); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var rec meta.Volume
	err := s.opts.Store.Meta.View(func(tx *meta.Tx) (err error) {
		rec, err = tx.Volumes.Get(name)
		return err
	})
	switch {
	case err == nil:
		if err := s.ensureData(name); err != nil {
			return nil, err
		}
		s.addReference(name, container)
		return s.volume(name, rec), nil
	case errors.Is(err, errs.DataLoss):
		return nil, damaged(err)
	case !errors.Is(err, errs.NotFound):
		return nil, err
	}
	rec = meta.Volume{Driver: driver, Labels: maps.Clone(labels), Options: maps.Clone(options), Created: time.Now().UTC(), Anonymous: anonymous}
	if anonymous {
		if rec.Labels == nil {
			rec.Labels = map[string]string{}
		}
		rec.Labels[labelAnonymous] = ""
	}
	if err := s.makeData(name); err != nil {
		return nil, err
	}
	if err := s.opts.Store.Meta.Update(func(tx *meta.Tx) error { return tx.Volumes.Put(name, rec) }); err != nil {
		return nil, errs.New(errs.Internal, "create %s: record: %w", name, err)
	}
	s.addReference(name, container)
	s.publish("create", name, nil)
	return s.volume(name, rec), nil
}

// ensureData makes the directories of a volume that has a record unless they are there.
func (s *Service) ensureData(name string) error {
	if fi, err := s.opts.Store.FS.Lstat(s.path(name)); err == nil && fi.IsDir() {
		return nil
	}
	return s.makeData(name)
}

// makeData makes a volume's directories, durable when it returns. Directories that are there are kept.
func (s *Service) makeData(name string) error {
	fsys := s.opts.Store.FS
	dir := filepath.Join(s.opts.Root, name)
	data := filepath.Join(dir, dataDir)
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return errs.New(errs.Internal, "create %s: %w", name, err)
	}
	if err := fsys.Mkdir(data, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return errs.New(errs.Internal, "create %s: %w", name, err)
	}
	return errors.Join(fsys.SyncDir(dir), fsys.SyncDir(s.opts.Root))
}

func (s *Service) volume(name string, rec meta.Volume) *Volume {
	return &Volume{
		Name: name, Driver: rec.Driver, Mountpoint: s.path(name), Created: rec.Created,
		Labels: rec.Labels, Options: rec.Options, Anonymous: rec.Anonymous, Size: -1,
		RefCount: len(s.users(name)),
	}
}

func (s *Service) path(name string) string { return filepath.Join(s.opts.Root, name, dataDir) }

// addReference records that a container, unless it is "", refers to a volume. The caller holds mu.
func (s *Service) addReference(name, container string) {
	if container == "" {
		return
	}
	if s.references[name] == nil {
		s.references[name] = map[string]struct{}{}
	}
	s.references[name][container] = struct{}{}
}

// AnyVolume is what AddReferences takes for a container whose record is damaged: it may refer to any volume, so none can be
// removed until DropReferences is called for the container. It is no name of a volume.
const AnyVolume = "*"

// AddReferences records that a container refers to volumes, as container.Service does for each record that it loads.
func (s *Service) AddReferences(container oci.ContainerID, names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		s.addReference(n, string(container))
	}
}

// DropReferences ends every reference of a container.
func (s *Service) DropReferences(container oci.ContainerID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, refs := range s.references {
		delete(refs, string(container))
		if len(refs) == 0 {
			delete(s.references, n)
		}
	}
}

// users returns the containers that refer to a volume, sorted. The caller holds mu.
func (s *Service) users(name string) []string { return slices.Sorted(maps.Keys(s.references[name])) }

// Get returns a volume. The error's class is errs.NotFound when there is none.
func (s *Service) Get(ctx context.Context, name string) (*Volume, error) {
	rec, err := s.record(name)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.volume(name, rec), nil
}

func (s *Service) record(name string) (rec meta.Volume, err error) {
	err = s.opts.Store.Meta.View(func(tx *meta.Tx) (err error) {
		rec, err = tx.Volumes.Get(name)
		return err
	})
	if errors.Is(err, errs.NotFound) {
		return rec, errs.New(errs.NotFound, "get %s: no such volume", name)
	}
	if errors.Is(err, errs.DataLoss) {
		return rec, damaged(err)
	}
	return rec, err
}

// damaged returns the error for a volume whose record is damaged.
func damaged(err error) error {
	return errs.New(errs.DataLoss, "%w", err).
		WithHint("Run ply system check --repair, or remove the volume and its data by force (volume rm -f).")
}

// List returns the volumes that match, sorted by name; ListFilters lists the filters. A volume whose record is damaged is listed
// with its name, and Damaged says why.
func (s *Service) List(ctx context.Context, filters filter.Args) ([]*Volume, error) {
	match, err := ListFilters.Compile(filters)
	if err != nil {
		return nil, err
	}
	recs := map[string]meta.Result[meta.Volume]{}
	err = s.opts.Store.Meta.View(func(tx *meta.Tx) error {
		for n, r := range tx.Volumes.All() {
			recs[n] = r
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*Volume
	for n, r := range recs {
		v := s.volume(n, r.Value)
		if r.Err != nil {
			v.Driver, v.Damaged = "local", damaged(r.Err)
			s.log.Warn("damaged volume", "volume", n, "err", r.Err)
		}
		if match(v) {
			out = append(out, v)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

// Size returns the sum of the lengths of a volume's files, in bytes. A file with several names counts once.
func (s *Service) Size(ctx context.Context, name string) (int64, error) {
	if _, err := s.record(name); err != nil {
		return 0, err
	}
	return treeSize(ctx, s.path(name))
}

// publish publishes an event of a volume.
func (s *Service) publish(action, name string, attrs map[string]string) {
	if s.opts.Events == nil {
		return
	}
	a := map[string]string{"driver": "local"}
	maps.Copy(a, attrs)
	s.opts.Events.Publish(events.Event{Type: "volume", Action: action, ID: name, Attributes: a})
}

func (s *Service) publishPrune(reclaimed int64) {
	if s.opts.Events == nil {
		return
	}
	s.opts.Events.Publish(events.Event{Type: "volume", Action: "prune", Attributes: map[string]string{"reclaimed": strconv.FormatInt(reclaimed, 10)}})
}
