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
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tarscan"
	"ply/internal/store/layer/writable"
)

// Options of Open. The zero value is right for a machine of its own.
type Options struct {
	// Buffered reads layers through the page cache of their files instead of past it. Sequential reads of cold layers
	// get faster and their content is cached twice.
	Buffered bool
	// Reserve is how many bytes of the file system layers must leave free; 0 is 5 %, at most 1 GiB.
	Reserve int64
	Limits  tarscan.Limits
	// IdleMounts is how many layers that nothing uses stay mounted; 0 is 64, negative none.
	IdleMounts int
}

// Driver implements layer.Driver. Safe for concurrent use.
type Driver struct {
	fs     durable.FS
	opts   Options
	root   string
	layers string // layers/sha256
	roots  string // layers/roots, empty directories that views have on top
	inits  *writable.Inits
	quar   string // layers/quarantine
	places string // layers/mounts, for kernels that want layers to have a place
	kind   string // of the backing file system
	placed bool   // layers must be attached somewhere to be stacked

	background sync.WaitGroup // what Close waits for
	placeCount atomic.Uint64
	installing keyed

	mu      sync.Mutex // guards what follows; never held over I/O, except to close idle mounts
	records map[oci.DiffID]*record
	damaged map[oci.DiffID]string
	mounts  map[mountKey]*layerMount
	idle    []*layerMount // oldest first
	targets map[string][]*layerMount
}

var _ layer.Driver = (*Driver)(nil)

// Open opens or makes the driver's part of root, a directory on a file system for which Probe is content. Layers
// found damaged are set aside, so that they do not stop the others; temporaries of a crash are removed. One
// process may have a root open. errs.Precondition says why EROFS layers do not work here.
func Open(fsys durable.FS, root string, opts Options) (*Driver, error) {
	d := &Driver{
		fs: fsys, opts: opts, root: root,
		records: map[oci.DiffID]*record{}, damaged: map[oci.DiffID]string{},
		mounts: map[mountKey]*layerMount{}, targets: map[string][]*layerMount{},
	}
	if d.opts.IdleMounts == 0 {
		d.opts.IdleMounts = 64
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	d.root = abs
	base := filepath.Join(abs, "layers")
	d.layers, d.roots = filepath.Join(base, "sha256"), filepath.Join(base, "roots")
	d.quar, d.places = filepath.Join(base, "quarantine"), filepath.Join(base, "mounts")
	for _, dir := range []string{base, d.layers, d.roots, d.quar, d.places} {
		if err := d.makeDir(dir); err != nil {
			return nil, err
		}
	}
	if err := d.sweepTemps(); err != nil {
		return nil, err
	}
	if d.inits, err = writable.OpenInits(fsys, filepath.Join(base, "inits")); err != nil {
		return nil, err
	}
	p, err := probe(base, opts.Buffered)
	if err != nil {
		return nil, errs.New(errs.Precondition, "erofs: %w", err)
	}
	d.kind, d.placed, d.opts.Buffered = p.fsType, p.placed, p.buffered
	if err := d.dropPlaces(); err != nil {
		return nil, err
	}
	return d, d.load()
}

func (d *Driver) makeDir(dir string) error {
	if err := d.fs.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	err := d.fs.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.fs.SyncDir(filepath.Dir(dir))
}

// sweepTemps removes what a crash left. What cannot be removed, as after damage to the file system, is no reason
// not to start; the next start tries again.
func (d *Driver) sweepTemps() error {
	dirs := []string{filepath.Dir(d.layers), d.layers, d.roots, d.quar}
	entries, err := d.fs.ReadDir(d.layers)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && !durable.IsTemp(e.Name()) {
			dirs = append(dirs, filepath.Join(d.layers, e.Name()))
		}
	}
	for _, dir := range dirs {
		_ = durable.RemoveTemps(d.fs, dir)
	}
	return nil
}

// load reads every record and sets aside what is damaged.
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
			continue // not ours
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
			_ = d.quarantine(id, err.Error()) // where even that fails it is still known as damaged
		}
	}
	return nil
}

// isDamage tells errors that lie in what is stored from those of the moment, such as too many open files.
func isDamage(err error) bool {
	for _, class := range []error{errs.DataLoss, errs.NotFound, unix.EIO, unix.EUCLEAN, unix.ENOTDIR} {
		if errors.Is(err, class) {
			return true
		}
	}
	return false
}

func diffIDOf(hex string) oci.DiffID { return oci.DiffID("sha256:" + hex) }

// quarantine moves a layer aside, so that a commit of it starts afresh.
func (d *Driver) quarantine(id oci.DiffID, reason string) error {
	d.mu.Lock()
	delete(d.records, id)
	d.damaged[id] = reason
	d.forget(id)
	d.mu.Unlock()
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
		return err // without room for the reason it stays "damaged"
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

// record gives what is known about a layer. A damaged layer is errs.DataLoss, an unknown one errs.NotFound.
func (d *Driver) record(id oci.DiffID) (*record, error) {
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

// dropPlaces takes away the places that an earlier process gave to layers.
func (d *Driver) dropPlaces() error {
	entries, err := d.fs.ReadDir(d.places)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(d.places, e.Name())
		if err := mount.Unmount(p, true); err != nil {
			return err
		}
		if err := d.fs.Remove(p); err != nil {
			return err
		}
	}
	return nil
}

// keyed is a lock a layer.
type keyed struct {
	mu   sync.Mutex
	held map[oci.DiffID]chan struct{}
}

// lock waits for the layer's lock; the result gives it back.
func (k *keyed) lock(ctx context.Context, id oci.DiffID) (unlock func(), err error) {
	for {
		k.mu.Lock()
		wait, busy := k.held[id]
		if !busy {
			if k.held == nil {
				k.held = map[oci.DiffID]chan struct{}{}
			}
			mine := make(chan struct{})
			k.held[id] = mine
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, id)
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
