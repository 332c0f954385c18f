package vfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/tarscan"
	"ply/internal/store/layer/tree"
)

// Name is the driver's name.
const Name = "vfs"

// Options of Open. The zero value works.
type Options struct {
	Limits tarscan.Limits
}

// Driver implements layer.Driver.
type Driver struct {
	fsys   durable.FS
	root   string
	layers string
	opts   Options
	locks  tree.Locks // of object directories
}

var _ layer.Driver = (*Driver)(nil)

// Probe reports whether root can hold trees, and if not why. Only device nodes and trusted xattrs are needed.
func Probe(root string) (bool, string) {
	dir, err := os.MkdirTemp(root, durable.TempPrefix+"probe-")
	if err != nil {
		return false, err.Error()
	}
	defer os.RemoveAll(dir)
	if err := unix.Mknod(filepath.Join(dir, "w"), unix.S_IFCHR, 0); err != nil {
		return false, "make a device node: " + err.Error()
	}
	if err := unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return false, "set a trusted xattr: " + err.Error()
	}
	return true, ""
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
	}
	if err := tree.CheckVersions(fsys, d.layers, nil); err != nil {
		return nil, err
	}
	if err := durable.MkdirPrivate(fsys, filepath.Dir(d.layers)); err != nil {
		return nil, err
	}
	for _, dir := range []string{d.layers, d.emptyDir()} {
		if err := fsys.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	return d, durable.RemoveTemps(fsys, d.layers)
}

func (d *Driver) emptyDir() string { return filepath.Join(d.root, "empty") }

// Name implements layer.Driver.
func (d *Driver) Name() string { return Name }

// Status implements layer.Driver.
func (d *Driver) Status() [][2]string { return nil }

// Close implements layer.Driver.
func (d *Driver) Close() error { return nil }

const keyPrefix = "sha256-"

// Keys implements layer.Driver.
func (d *Driver) Keys(chain oci.Chain) []layer.Key {
	var keys []layer.Key
	for _, id := range chain.IDs() {
		keys = append(keys, layer.Key(keyPrefix+id.Hex()))
	}
	return keys
}

func parseKey(key layer.Key) (hex string, err error) {
	hex, ok := strings.CutPrefix(string(key), keyPrefix)
	if !ok || !oci.IsHex64(hex) {
		return "", errs.New(errs.Invalid, "layer key %.200q: not a key of this driver", key)
	}
	return hex, nil
}

func (d *Driver) dir(chain oci.Chain) string { return filepath.Join(d.layers, chain.ID().Hex()) }

// tree returns the directory with the tree of a chain.
func (d *Driver) tree(chain oci.Chain) string {
	if len(chain) == 0 {
		return d.emptyDir()
	}
	return filepath.Join(d.dir(chain), tree.FS)
}

// meta returns the description of the top layer of chain. The error's class is errs.NotFound when it does not exist, and
// errs.DataLoss when it is damaged. The empty chain always exists.
func (d *Driver) meta(chain oci.Chain) (*tree.Meta, error) {
	if len(chain) == 0 {
		return &tree.Meta{}, nil
	}
	for _, id := range chain {
		if _, err := oci.ParseDigest(string(id)); err != nil {
			return nil, err
		}
	}
	m, err := tree.Load(d.fsys, d.dir(chain))
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := d.fsys.Lstat(d.dir(chain)); serr != nil {
			return nil, errs.New(errs.NotFound, "layer %s: not in the store on these %d layers", chain.Top(), len(chain)-1)
		}
	}
	if errors.Is(err, errs.Precondition) {
		return nil, err
	}
	if err == nil && m.DiffID != chain.Top() {
		err = errors.New("its description is that of layer " + string(m.DiffID))
	}
	if err != nil {
		return nil, tree.Damaged(chain.Top(), err)
	}
	return m, nil
}

func notEmpty(chain oci.Chain) error {
	if len(chain) == 0 {
		return errs.New(errs.Invalid, "layer: empty chain")
	}
	return nil
}

// Stat implements layer.Driver.
func (d *Driver) Stat(ctx context.Context, chain oci.Chain) (layer.Info, error) {
	if err := notEmpty(chain); err != nil {
		return layer.Info{}, err
	}
	m, err := d.meta(chain)
	if err != nil {
		return layer.Info{}, err
	}
	return m.Info(), nil
}

// Walk implements layer.Driver.
func (d *Driver) Walk(ctx context.Context, visit func(key layer.Key, made time.Time) error) error {
	return tree.Walk(ctx, d.fsys, d.layers, func(name string) (layer.Key, bool) { return layer.Key(keyPrefix + name), oci.IsHex64(name) }, visit)
}

// Remove implements layer.Driver.
func (d *Driver) Remove(ctx context.Context, key layer.Key) error {
	hex, err := parseKey(key)
	if err != nil {
		return err
	}
	dir := filepath.Join(d.layers, hex)
	defer d.locks.Lock(dir)()
	if _, err := d.fsys.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	used, err := d.mounted(filepath.Join(dir, tree.FS))
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
	return d.fsys.RemoveAll(trash)
}

// mounted reports whether this or an earlier process has bound a tree anywhere.
func (d *Driver) mounted(tree string) (bool, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(info)) {
		// id parent major:minor root target …, where root is a path inside its file system
		if f := strings.Fields(line); len(f) > 4 && len(f[3]) > 1 && strings.HasSuffix(tree, unescape.Replace(f[3])) {
			return true, nil
		}
	}
	return false, nil
}

// Tar implements layer.Driver.
func (d *Driver) Tar(ctx context.Context, chain oci.Chain) (io.ReadCloser, error) {
	if err := notEmpty(chain); err != nil {
		return nil, err
	}
	m, err := d.meta(chain)
	if err != nil {
		return nil, err
	}
	r, err := tree.OpenTar(d.fsys, d.dir(chain), d.tree(chain), m)
	if err != nil {
		return nil, tree.Damaged(m.DiffID, err)
	}
	return tree.Verified(r, m.DiffID, m.TarSize), nil
}

// Verify implements layer.Driver.
func (d *Driver) Verify(ctx context.Context, chain oci.Chain) error {
	r, err := d.Tar(ctx, chain)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := tree.Check(ctx, r, d.tree(chain), d.opts.Limits); err != nil {
		return tree.Damaged(chain.Top(), err)
	}
	return nil
}

// View implements layer.Driver.
func (d *Driver) View(ctx context.Context, chain oci.Chain, target string) error {
	if _, err := d.meta(chain); err != nil {
		return err
	}
	return mount.Bind(d.tree(chain), target, true)
}

// Unmount implements layer.Driver.
func (d *Driver) Unmount(ctx context.Context, target string) error {
	return mount.Unmount(target, true)
}

// Create implements layer.Driver.
func (d *Driver) Create(ctx context.Context) (layer.Writer, error) {
	return tree.NewLayer(ctx, d.fsys, d.layers, d.opts.Limits, d.publish)
}

// publish merges the layer at tmp with its parents and makes it a durable object, unless an undamaged one exists.
func (d *Driver) publish(ctx context.Context, tmp string, parents oci.Chain, m *tree.Meta) error {
	chain := append(parents[:len(parents):len(parents)], m.DiffID)
	dir := d.dir(chain)
	defer d.locks.Lock(dir)()
	_, err := d.fsys.Lstat(dir)
	held := err == nil
	if held && d.Verify(ctx, chain) == nil {
		return nil
	}
	if err := d.stack(ctx, tmp, parents, m); err != nil {
		return fmt.Errorf("layer %s: %w", m.DiffID, err)
	}
	if err := d.fsys.SyncFS(tmp); err != nil {
		return err
	}
	if !held {
		return durable.Rename(d.fsys, tmp, dir)
	}
	trash := durable.TempName(d.layers)
	if err := d.fsys.Rename(dir, trash); err != nil {
		return err
	}
	if err := durable.Rename(d.fsys, tmp, dir); err != nil {
		return err
	}
	if used, err := d.mounted(filepath.Join(trash, tree.FS)); err != nil || used {
		return err // mounts of the damaged layer keep it until the next start
	}
	return d.fsys.RemoveAll(trash)
}

const (
	fullName  = "full"
	spareName = "spare"
)

// stack turns tmp/fs from the layer alone into the whole stack.
func (d *Driver) stack(ctx context.Context, tmp string, parents oci.Chain, m *tree.Meta) error {
	if _, err := d.meta(parents); err != nil {
		return err
	}
	full, spare := filepath.Join(tmp, fullName), filepath.Join(tmp, spareName)
	var dirs []*os.File
	defer func() {
		for _, f := range dirs {
			f.Close()
		}
	}()
	for _, p := range []string{full, spare} {
		if err := d.fsys.Mkdir(p, 0o755); err != nil {
			return err
		}
	}
	for _, p := range []string{d.tree(parents), full, filepath.Join(tmp, tree.FS), spare} {
		f, err := openRoot(p)
		if err != nil {
			return err
		}
		dirs = append(dirs, f)
	}
	if err := copyTree(ctx, dirs[0], dirs[1]); err != nil {
		return err
	}
	mg := &merger{ctx: ctx, from: dirs[2], to: dirs[1], spare: dirs[3], meta: m}
	if err := mg.run(); err != nil {
		return err
	}
	for _, p := range []string{filepath.Join(tmp, tree.FS), spare} {
		if err := d.fsys.RemoveAll(p); err != nil {
			return err
		}
	}
	return d.fsys.Rename(full, filepath.Join(tmp, tree.FS))
}
