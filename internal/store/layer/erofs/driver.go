package erofs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/memory"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tarscan"
	"ply/internal/store/layer/writable"
)

// Options of Open. The zero value is right for a machine of its own.
type Options struct {
	// Buffered mounts read layers through the page cache of the layers' files, so that content is cached twice. Without
	// it they read the files directly. Sequential reads of layers that are not cached yet are faster with it. It is
	// also used where direct access does not work.
	Buffered bool
	// Attached mounts every layer at a directory below layers/mounts. Without it the mounts are detached: they are not
	// visible in any directory. It is also used where the kernel cannot stack detached mounts (before Linux 6.15).
	Attached bool
	// Reserve is the free space of the file system that layers must leave, in bytes; 0 means 5 %, at most 1 GiB.
	Reserve int64
	// Limits bounds what a tar may contain.
	Limits tarscan.Limits
	// Memory is what layers may take until they are committed; nil means memory.Process.
	Memory *memory.Pool
	// IdleMounts is how many unused layers stay mounted, besides those of the chain that was used last; 0 means 64, a negative number none at all.
	IdleMounts int
}

// Driver implements layer.Driver. Safe for concurrent use.
type Driver struct {
	writable.Limiter
	files
	opts   Options
	roots  string // layers/roots: empty directories that are the top layer of views
	inits  *writable.Inits
	quar   string // layers/quarantine
	points string // layers/mounts: mount points of attached layers
	kind   string // of the backing file system

	background sync.WaitGroup // Close waits for it
	pointCount atomic.Uint64  // makes the names of mount points unique
	installing keyed          // held while a layer directory is created, changed or removed

	mu      sync.Mutex // guards the fields below; not held during I/O, except to close idle mounts
	records map[oci.DiffID]*layerRecord
	damaged map[oci.DiffID]string // the reason
	mounts  map[mountKey]*layerMount
	idle    []*layerMount            // mounts without users, oldest first
	targets map[string][]*layerMount // the mounts below each target; nil while the target is being mounted
}

var _ layer.Driver = (*Driver)(nil)

// Open opens or creates the driver's part of root, a directory for which Probe succeeds. It moves damaged layers to the
// quarantine, so that they do not affect the others, and removes the temporaries of a crash. One process at a time may
// have a root open. The error's class is errs.Precondition when EROFS layers do not work here, or when a newer release
// wrote one of the layers; in that case nothing is changed.
func Open(fsys durable.FS, root string, opts Options) (*Driver, error) {
	d := &Driver{
		files: files{fs: fsys}, opts: opts,
		records: map[oci.DiffID]*layerRecord{}, damaged: map[oci.DiffID]string{},
		mounts: map[mountKey]*layerMount{}, targets: map[string][]*layerMount{},
	}
	if d.opts.Memory == nil {
		d.opts.Memory = memory.Process()
	}
	if d.opts.IdleMounts == 0 {
		d.opts.IdleMounts = 64
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	base := filepath.Join(abs, "layers")
	d.layers, d.roots = filepath.Join(base, "sha256"), filepath.Join(base, "roots")
	d.quar, d.points = filepath.Join(base, "quarantine"), filepath.Join(base, "mounts")
	if err := d.checkAllVersions(); err != nil {
		return nil, err
	}
	for _, dir := range []string{base, d.layers, d.roots, d.quar, d.points} {
		if err := d.makeDir(dir); err != nil {
			return nil, err
		}
	}
	if err := durable.MkdirPrivate(fsys, base); err != nil {
		return nil, err
	}
	if err := d.sweepTemps(d.roots, d.quar); err != nil {
		return nil, err
	}
	if d.inits, err = writable.OpenInits(fsys, filepath.Join(base, "inits")); err != nil {
		return nil, err
	}
	p, err := probe(base, opts.Buffered)
	if err != nil {
		return nil, errs.New(errs.Precondition, "erofs: %w", err)
	}
	d.kind = p.fsType
	d.opts.Buffered = opts.Buffered || p.buffered
	d.opts.Attached = opts.Attached || p.attached
	if err := d.clearMountPoints(d.points); err != nil {
		return nil, err
	}
	return d, d.load()
}

// sweepTemps removes the temporaries of a crash, in the directories of the layers and in the given ones. One that cannot be removed, as after damage to the file system, does not
// stop the driver: the next start tries again.
func (f *files) sweepTemps(dirs ...string) error {
	dirs = append(dirs, filepath.Dir(f.layers), f.layers)
	entries, err := f.fs.ReadDir(f.layers)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && !durable.IsTemp(e.Name()) {
			dirs = append(dirs, filepath.Join(f.layers, e.Name()))
		}
	}
	for _, dir := range dirs {
		_ = durable.RemoveTemps(f.fs, dir)
	}
	return nil
}

// load reads every layer record and moves damaged layers to the quarantine.
func (d *Driver) load() error {
	entries, err := d.fs.ReadDir(d.quar)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !oci.IsHex64(e.Name()) {
			continue
		}
		reason, err := durable.ReadFile(d.fs, filepath.Join(d.quar, e.Name(), reasonName), 4096)
		if err != nil || len(reason) == 0 {
			reason = []byte("damaged")
		}
		d.damaged[diffIDOf(e.Name())] = string(reason)
	}
	entries, err = d.fs.ReadDir(d.layers)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !oci.IsHex64(e.Name()) {
			continue // not a layer
		}
		id := diffIDOf(e.Name())
		r, err := d.readRecord(id, d.layerDir(id))
		if err == nil {
			d.records[id] = r
			delete(d.damaged, id)
			continue
		}
		d.damaged[id] = err.Error()
		if isDamage(err) {
			_ = d.quarantine(id, err.Error()) // when this fails, d.damaged still knows the layer
		}
	}
	return nil
}

// isDamage reports whether an error comes from the stored data, and not from the moment, such as too many open files or a disk
// that could not be read: the next start may succeed in reading it.
func isDamage(err error) bool {
	for _, class := range []error{errs.DataLoss, errs.NotFound, unix.EUCLEAN, unix.ENOTDIR} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

func diffIDOf(hex string) oci.DiffID { return oci.DiffID("sha256:" + hex) }

// distrust marks a layer as damaged until a new copy is committed or the driver is opened again.
func distrust(d *Driver, id oci.DiffID, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.records, id)
	d.damaged[id] = reason
	d.forget(id)
}

// quarantine moves a layer directory to the quarantine, so that the layer can be committed again.
func (d *Driver) quarantine(id oci.DiffID, reason string) error {
	distrust(d, id, reason)
	aside := filepath.Join(d.quar, id.Hex())
	if err := d.fs.RemoveAll(aside); err != nil {
		return err
	}
	if err := d.fs.Rename(d.layerDir(id), aside); err != nil && !os.IsNotExist(err) {
		return err
	}
	if st, err := d.fs.Lstat(aside); err == nil && !st.IsDir() {
		if err := d.fs.Remove(aside); err != nil {
			return err
		}
	}
	if err := d.makeDir(aside); err != nil {
		return err
	}
	if err := durable.WriteFile(d.fs, filepath.Join(aside, reasonName), []byte(reason), 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
		return err // on a full disk the reason is lost, and reads "damaged" after a restart
	}
	return errors.Join(d.fs.SyncDir(d.quar), d.fs.SyncDir(d.layers))
}

// Name implements layer.Driver.
func (d *Driver) Name() string { return "erofs" }

// Status implements layer.Driver.
func (d *Driver) Status() [][2]string {
	access := "direct"
	if d.opts.Buffered {
		access = "buffered"
	}
	status := [][2]string{{"Backing Filesystem", d.kind}, {"Layer Access", access}}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.damaged); n > 0 {
		status = append(status, [2]string{"Damaged Layers", itoa(n)})
	}
	return status
}

// lookup returns the record of a layer. The error's class is errs.DataLoss for a damaged layer and errs.NotFound for an
// unknown one.
func (d *Driver) lookup(id oci.DiffID) (*layerRecord, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.records[id]; r != nil {
		return r, nil
	}
	if reason, ok := d.damaged[id]; ok {
		return nil, damage(id, errors.New(reason))
	}
	return nil, errs.New(errs.NotFound, "layer %s: not in the store", id)
}

func damage(id oci.DiffID, reason error) error {
	return errs.New(errs.DataLoss, "layer %s: damaged: %w", id.Short(), reason).
		WithHint("Pull or load an image that has it again.")
}

// Close implements layer.Driver.
func (d *Driver) Close() error {
	d.background.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	var all error
	for k, m := range d.mounts {
		all = errors.Join(all, m.close(d))
		delete(d.mounts, k)
	}
	d.idle, d.targets = nil, map[string][]*layerMount{}
	return all
}

// clearMountPoints unmounts what an earlier process mounted below points, which is layers/mounts, and removes the mount points.
func (f *files) clearMountPoints(points string) error {
	entries, err := f.fs.ReadDir(points)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(points, e.Name())
		if err := mount.Unmount(p, true); err != nil {
			return err
		}
		if err := f.fs.Remove(p); err != nil {
			return err
		}
	}
	return nil
}

// keyed is a set of locks, one per layer. The zero value works.
type keyed struct {
	mu    sync.Mutex
	locks map[oci.DiffID]chan struct{} // closed when the lock is released
}

// lock takes the lock of a layer, and waits for it if necessary; unlock releases it.
func (k *keyed) lock(ctx context.Context, id oci.DiffID) (unlock func(), err error) {
	for {
		k.mu.Lock()
		wait, busy := k.locks[id]
		if !busy {
			if k.locks == nil {
				k.locks = map[oci.DiffID]chan struct{}{}
			}
			mine := make(chan struct{})
			k.locks[id] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.locks, id)
				k.mu.Unlock()
				close(mine)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
