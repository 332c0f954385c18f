// Package overlay2 keeps layers as plain directories, keyed by diffID, and stacks them with overlayfs. It works on most
// file systems, and needs a kernel with the new mount API.
//
//	<root>/layers/sha256/<diffID>/            a layer directory of package tree
//	<root>/layers/sha256/<diffID>@<chainID>/  its variant on top of the chain: only fs/ and variant.json
//	<root>/roots/                             empty directories with root attributes, for views
//	<root>/inits/                             init layers of removed containers, for the next ones
//	<root>/layers/sha256/.tmp-*               objects that are being made or removed
//
// A layer is unpacked without access to the layers below, so the layers of an image can be unpacked in parallel. What
// depends on the layers below (directories without an entry, hard links to lower files; see package tree) is resolved at
// Commit into the variant: a small directory directly above the layer in every mount. Most layers depend on nothing and
// have no variant.
package overlay2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tarscan"
	"ply/internal/store/layer/tree"
	"ply/internal/store/layer/writable"
)

// Name is the driver's name.
const Name = "overlay2"

// Options of Open. The zero value works.
type Options struct {
	Limits tarscan.Limits
}

// Driver implements layer.Driver.
type Driver struct {
	writable.Limiter
	fsys   durable.FS
	root   string
	layers string
	inits  *writable.Inits
	opts   Options
	locks  tree.Locks // of objects; a goroutine takes only one at a time

	mu      sync.Mutex // no other lock is taken while it is held
	metas   metas
	targets map[string][]string // mount point → object directories below it
}

var _ layer.Driver = (*Driver)(nil)

// Probe reports whether overlayfs works on the file system of root, and if not why.
func Probe(root string) (bool, string) {
	dir, err := os.MkdirTemp(root, durable.TempPrefix+"probe-")
	if err != nil {
		return false, err.Error()
	}
	defer os.RemoveAll(dir)
	if err := probe(dir); err != nil {
		return false, "overlayfs on " + fsName(root) + ": " + err.Error()
	}
	return true, ""
}

func probe(dir string) error {
	for _, d := range []string{"a", "b", "upper", "work", "mnt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "a", "w"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("make a whiteout: %w", err)
	}
	if err := unix.Setxattr(filepath.Join(dir, "a"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("set a trusted xattr: %w", err)
	}
	t, err := mount.Overlay{
		Lower: []mount.Layer{mount.At(filepath.Join(dir, "a")), mount.At(filepath.Join(dir, "b"))},
		Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
	}.Mount()
	if err != nil {
		return err
	}
	return t.Close()
}

// Open opens or creates the driver's part of root and removes the temporaries of a crash. The error's class is
// errs.Precondition when a newer release wrote one of the layers; in that case nothing is changed.
func Open(fsys durable.FS, root string, opts Options) (*Driver, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	d := &Driver{
		fsys: fsys, root: root, layers: filepath.Join(root, "layers", "sha256"), opts: opts,
		targets: map[string][]string{},
	}
	if err := tree.CheckVersions(fsys, d.layers, map[string]int{variantName: variantVersion}); err != nil {
		return nil, err
	}
	if err := durable.MkdirPrivate(fsys, filepath.Dir(d.layers)); err != nil {
		return nil, err
	}
	for _, dir := range []string{d.layers, d.roots()} {
		if err := durable.MkdirPrivate(fsys, dir); err != nil {
			return nil, err
		}
		if err := durable.RemoveTemps(fsys, dir); err != nil {
			return nil, err
		}
	}
	d.inits, err = writable.OpenInits(fsys, filepath.Join(root, "inits"))
	return d, err
}

func (d *Driver) roots() string { return filepath.Join(d.root, "roots") }

// Name implements layer.Driver.
func (d *Driver) Name() string { return Name }

// Status implements layer.Driver.
func (d *Driver) Status() [][2]string {
	return [][2]string{
		{"Backing Filesystem", fsName(d.root)}, {"Supports d_type", "true"}, {"Using metacopy", "false"}, {"Native Overlay Diff", "true"},
	}
}

func fsName(dir string) string {
	kind, err := mount.Kind(dir)
	if err != nil {
		return "unknown"
	}
	return kind
}

// Close implements layer.Driver.
func (d *Driver) Close() error { return nil }

const keyPrefix = "sha256-"

func baseKey(id oci.DiffID) layer.Key { return layer.Key(keyPrefix + id.Hex()) }

func variantKey(id oci.DiffID, parents oci.Chain) layer.Key {
	on := strings.Repeat("0", 64) // without parents
	if len(parents) > 0 {
		on = parents.ID().Hex()
	}
	return baseKey(id) + "@" + layer.Key(on)
}

// dir returns the directory of an object. The key must be valid.
func (d *Driver) dir(key layer.Key) string {
	return filepath.Join(d.layers, strings.TrimPrefix(string(key), keyPrefix))
}

// parseKey returns an error for anything but a key of this driver.
func parseKey(key layer.Key) error {
	hex, ok := strings.CutPrefix(string(key), keyPrefix)
	own, on, variant := strings.Cut(hex, "@")
	if !ok || !oci.IsHex64(own) || variant && !oci.IsHex64(on) {
		return errs.New(errs.Invalid, "layer key %.200q: not a key of this driver", key)
	}
	return nil
}

// meta returns the description of a layer. The error's class is errs.NotFound when it does not exist, and errs.DataLoss
// when it is damaged.
func (d *Driver) meta(id oci.DiffID) (*tree.Meta, error) {
	d.mu.Lock()
	m := d.metas.kept[id]
	d.mu.Unlock()
	if m != nil {
		return m, nil
	}
	dir := d.dir(baseKey(id))
	m, err := tree.Load(d.fsys, dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, serr := d.fsys.Lstat(dir); serr == nil {
			return nil, tree.Damaged(id, err)
		}
		return nil, errs.New(errs.NotFound, "layer %s: not in the store", id)
	case errors.Is(err, errs.Precondition):
		return nil, err
	case err != nil:
		return nil, tree.Damaged(id, err)
	case m.DiffID != id:
		return nil, tree.Damaged(id, errors.New("its description is that of layer "+string(m.DiffID)))
	}
	d.mu.Lock()
	d.metas.keep(m)
	d.mu.Unlock()
	return m, nil
}

func (d *Driver) forget(id oci.DiffID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.metas.forget(id)
}

func checkChain(chain oci.Chain) error {
	if len(chain) == 0 {
		return errs.New(errs.Invalid, "layer: empty chain")
	}
	for _, id := range chain {
		if _, err := oci.ParseDigest(string(id)); err != nil {
			return err
		}
	}
	return nil
}

// Stat implements layer.Driver.
func (d *Driver) Stat(ctx context.Context, chain oci.Chain) (layer.Info, error) {
	if err := checkChain(chain); err != nil {
		return layer.Info{}, err
	}
	m, err := d.meta(chain.Top())
	if err != nil {
		return layer.Info{}, err
	}
	if _, _, err := d.variant(ctx, chain); err != nil {
		return layer.Info{}, err
	}
	return m.Info(), nil
}

// Keys implements layer.Driver.
func (d *Driver) Keys(chain oci.Chain) []layer.Key {
	var keys []layer.Key
	for i, id := range chain {
		keys = append(keys, baseKey(id))
		// A layer that cannot be read may have a variant. One key too many does no harm.
		if m, err := d.meta(id); err != nil || !m.Alone() {
			keys = append(keys, variantKey(id, chain[:i]))
		}
	}
	return keys
}

// Walk implements layer.Driver.
func (d *Driver) Walk(ctx context.Context, visit func(key layer.Key, made time.Time) error) error {
	return tree.Walk(ctx, d.fsys, d.layers, func(name string) (layer.Key, bool) {
		key := layer.Key(keyPrefix + name)
		return key, parseKey(key) == nil
	}, visit)
}

// Remove implements layer.Driver.
func (d *Driver) Remove(ctx context.Context, key layer.Key) error {
	if err := parseKey(key); err != nil {
		return err
	}
	defer d.locks.Lock(string(key))()
	dir := d.dir(key)
	if _, err := d.fsys.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	used, err := d.mounted(dir)
	if err != nil {
		return err
	}
	if used {
		return errs.New(errs.Conflict, "layer %s: is mounted", key)
	}
	trash := durable.TempName(d.layers)
	if err := d.fsys.Rename(dir, trash); err != nil {
		return err
	}
	d.forget(oci.DiffID("sha256:" + strings.TrimPrefix(string(key), keyPrefix)))
	return d.fsys.RemoveAll(trash)
}

// Tar implements layer.Driver.
func (d *Driver) Tar(ctx context.Context, chain oci.Chain) (io.ReadCloser, error) {
	if err := checkChain(chain); err != nil {
		return nil, err
	}
	m, err := d.meta(chain.Top())
	if err != nil {
		return nil, err
	}
	r, err := d.rebuild(m)
	if err != nil {
		return nil, tree.Damaged(m.DiffID, err)
	}
	return r, nil
}

func (d *Driver) rebuild(m *tree.Meta) (io.ReadCloser, error) {
	dir := d.dir(baseKey(m.DiffID))
	r, err := tree.OpenTar(d.fsys, dir, filepath.Join(dir, tree.FS), m)
	if err != nil {
		return nil, err
	}
	return tree.Verified(r, m.DiffID, m.TarSize), nil
}

// Verify implements layer.Driver.
func (d *Driver) Verify(ctx context.Context, chain oci.Chain) error {
	if err := checkChain(chain); err != nil {
		return err
	}
	d.forget(chain.Top())
	m, err := d.meta(chain.Top())
	if err != nil {
		return err
	}
	if err := d.verify(ctx, m); err != nil {
		return tree.Damaged(m.DiffID, err)
	}
	_, _, err = d.variant(ctx, chain)
	return err
}

func (d *Driver) verify(ctx context.Context, m *tree.Meta) error {
	r, err := d.rebuild(m)
	if err != nil {
		return err
	}
	defer r.Close()
	dir := d.dir(baseKey(m.DiffID))
	return tree.Check(ctx, r, filepath.Join(dir, tree.FS), d.opts.Limits)
}

// base returns the stack of a chain. Overlayfs refuses the same directory twice, so only the uppermost copy counts of a
// layer that a chain has several times: it shows and hides the same names as the others.
func (d *Driver) base(ctx context.Context, chain oci.Chain) (b writable.Base, paths []string, err error) {
	b.Root = -1
	if len(chain) > 0 {
		if err := checkChain(chain); err != nil {
			return b, nil, err
		}
	}
	open := true
	for i := len(chain) - 1; i >= 0; i-- {
		m, err := d.meta(chain[i])
		if err != nil {
			return b, nil, err
		}
		dir, has, err := d.variant(ctx, chain[:i+1])
		if err != nil {
			return b, nil, err
		}
		if open && has {
			paths = append(paths, filepath.Join(dir, tree.FS))
		}
		if open && !slices.Contains(chain[i+1:], chain[i]) {
			paths = append(paths, filepath.Join(d.dir(baseKey(chain[i])), tree.FS))
			if m.OwnRoot && b.Root < 0 {
				b.Root = len(paths) - 1
			}
		}
		open = open && !m.OpaqueRoot
	}
	b.Open = func() ([]*os.File, error) { return openAll(paths) }
	return b, paths, nil
}

func openAll(paths []string) ([]*os.File, error) {
	var dirs []*os.File
	for _, p := range paths {
		f, err := writable.OpenDir(p)
		if err != nil {
			for _, d := range dirs {
				d.Close()
			}
			return nil, err
		}
		dirs = append(dirs, f)
	}
	return dirs, nil
}
