package dockerroot

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/mount"
	"ply/internal/oci"
	"ply/internal/safepath"
)

// The kinds of objects.
const (
	KindImage     = "image"
	KindContainer = "container"
	KindVolume    = "volume"
	KindNetwork   = "network"
	KindOther     = "other"
)

// Problem is an object that cannot be read, or that has nothing to which it could be translated.
type Problem struct {
	Kind, Object string
	Err          error
}

// Options of Open. The zero value finds everything by itself.
type Options struct {
	// Containerd is the root of the containerd that has the images; "" = the one in the data root, or for /var/lib/docker without images the one of
	// the host, if it is there.
	Containerd string
}

// Root is an open data root. Its methods are safe for concurrent use.
type Root struct {
	dir       *os.File // of a read-only copy of the mount
	tree      *mount.Tree
	databases []*database // locked until Close
	volumes   *database   // nil = none
	networks  *database   // nil = none
	store     *contentStore
}

// Limits of what is read into memory.
const (
	maxFile    = 16 << 20 // bytes of a file with JSON
	maxEntries = 200_000  // names in a directory of objects
)

// The limits of what the objects of one kind have together, which is kept until all of them were read.
var (
	maxBytes  = 256 << 20 // of their records and configs
	maxValues = 4 << 20   // of JSON: two bytes can become hundreds in memory
)

// budget is what further objects of a kind may have.
type budget struct{ bytes, values int }

func newBudget() *budget { return &budget{maxBytes, maxValues} }

// take takes the records of an object. The error means that it is left out.
func (b *budget) take(records ...[]byte) error {
	bytes, values := 0, 0
	for _, r := range records {
		bytes += len(r)
		for _, c := range r { // each value but the first of an object or an array is behind a comma
			if c == ',' || c == '{' || c == '[' {
				values++
			}
		}
	}
	if bytes > b.bytes || values > b.values {
		return errs.New(errs.DataLoss, "the records of all objects of this kind are too large together: they may have %d bytes and %d values", maxBytes, maxValues)
	}
	b.bytes -= bytes
	b.values -= values
	return nil
}

// hostRoot and hostContainerd are where the packages of distributions have the roots.
const (
	hostRoot       = "/var/lib/docker"
	hostContainerd = "/var/lib/containerd"
)

// remapped is the name of a data root with the setting userns-remap.
var remapped = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// Open opens the data root dir. Errors: errs.NotFound when there is no data root, errs.Conflict when a dockerd or containerd, or a container of it,
// runs on it, errs.Unimplemented for a root whose owners are shifted by userns-remap.
func Open(ctx context.Context, dir string, o Options) (_ *Root, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(dir) {
		return nil, errs.New(errs.Invalid, "docker data root %q: the path is not absolute", dir)
	}
	r := &Root{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.tree, r.dir, err = openReadOnly(dir); err != nil {
		return nil, err
	}
	if !r.looksRight() {
		return nil, errs.New(errs.NotFound, "%s is no data root of docker: it has neither containers nor images nor volumes", dir).
			WithHint("docker info shows the directory as Docker Root Dir.")
	}
	if remapped.MatchString(filepath.Base(dir)) {
		return nil, errs.New(errs.Unimplemented, "%s: the data root has the setting userns-remap: the owners of its files are shifted", dir).
			WithHint("Move the images with docker save and ply load, and the volumes with docker cp.")
	}
	if r.volumes, err = r.lock("volumes/metadata.db", "dockerd"); err != nil {
		return nil, err
	}
	if r.networks, err = r.lock("network/files/local-kv.db", "dockerd"); err != nil {
		return nil, err
	}
	if err := r.openStore(filepath.Clean(dir), o.Containerd); err != nil {
		return nil, err
	}
	return r, r.refuseRunning(ctx)
}

// openReadOnly opens a directory in a read-only copy of its mount and those below it.
func openReadOnly(dir string) (*mount.Tree, *os.File, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil, errs.New(errs.NotFound, "data root: %w", err)
	}
	if err != nil {
		return nil, nil, errs.New(errs.Internal, "data root: %w", err)
	}
	defer f.Close()
	tree, err := mount.Clone(f, mount.CloneOptions{ReadOnly: true})
	if err != nil {
		return nil, nil, errs.New(errs.Internal, "data root: %w", err)
	}
	top, err := tree.Open()
	if err != nil {
		return nil, nil, errors.Join(errs.New(errs.Internal, "data root: %w", err), tree.Close())
	}
	return tree, top, nil
}

// looksRight reports whether dir has directories that every docker makes.
func (r *Root) looksRight() bool {
	found := 0
	for _, name := range []string{"containers", "image", "volumes", "network"} {
		if f, err := openDir(r.dir, name); err == nil {
			_ = f.Close()
			found++
		}
	}
	return found >= 2
}

// lock opens a database of the root and keeps it locked. It returns nil when it is not there.
func (r *Root) lock(name, owner string) (*database, error) {
	db, err := openDatabase(r.dir, name, owner)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // docker makes it when it needs it
	}
	if err == nil {
		r.databases = append(r.databases, db)
	}
	return db, err
}

// openStore opens the root of containerd if there is one.
func (r *Root) openStore(dir, containerd string) (err error) {
	if containerd != "" {
		if !filepath.IsAbs(containerd) {
			return errs.New(errs.Invalid, "root of containerd %q: the path is not absolute", containerd)
		}
		r.store, err = openStoreAt(containerd)
		if errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.NotFound, "%s is no root of containerd: it has no %s", containerd, metadataFile).
				WithHint("containerd config dump shows the directory as root.")
		}
		return err
	}
	r.store, err = openStoreIn(r.dir, "containerd/daemon")
	if errors.Is(err, fs.ErrNotExist) {
		r.store, err = nil, nil
		if dir == hostRoot && !r.hasGraph() {
			if r.store, err = openStoreAt(hostContainerd); errors.Is(err, fs.ErrNotExist) {
				r.store, err = nil, nil
			}
		}
	}
	return err
}

// hasGraph reports whether the root has images of the driver overlay2.
func (r *Root) hasGraph() bool {
	f, err := openDir(r.dir, imageDB)
	if err != nil {
		return false
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	return err == nil && len(names) > 0
}

// Close releases the locks.
func (r *Root) Close() error {
	var err error
	if r.store != nil {
		err = errors.Join(err, r.store.close())
	}
	for _, db := range r.databases {
		err = errors.Join(err, db.close())
	}
	if r.dir != nil {
		err = errors.Join(err, r.dir.Close())
	}
	if r.tree != nil {
		err = errors.Join(err, r.tree.Close())
	}
	return err
}

// openDir opens a directory below root for reading. No component may be a link.
func openDir(root *os.File, name string) (*os.File, error) {
	f, err := safepath.OpenNoLinks(root, name, unix.O_RDONLY|unix.O_DIRECTORY)
	return f, plain(name, err)
}

// openFile opens a regular file below root for reading. No component may be a link.
func openFile(root *os.File, name string) (*os.File, error) {
	node, err := safepath.OpenNoLinks(root, name, unix.O_PATH)
	if err != nil {
		return nil, plain(name, err)
	}
	defer node.Close()
	f, err := safepath.Reopen(node, unix.O_RDONLY)
	if errors.Is(err, unix.ENXIO) {
		return nil, errs.New(errs.DataLoss, "%s is no regular file", name)
	}
	return f, err
}

// plain explains the errors of a look-up that met a link.
func plain(name string, err error) error {
	if errors.Is(err, unix.ELOOP) {
		return errs.New(errs.DataLoss, "%s is a symbolic link, or leads through one: none is followed in a data root", name)
	}
	return err
}

// readFile reads a file of at most limit bytes.
func readFile(root *os.File, name string, limit int64) ([]byte, error) {
	f, err := openFile(root, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errs.New(errs.DataLoss, "%s has more than %d bytes", name, limit)
	}
	return data, nil
}

// readJSON decodes a file.
func readJSON(root *os.File, name string, v any) error {
	data, err := readFile(root, name, maxFile)
	if err != nil {
		return err
	}
	return decode(name, data, v)
}

func decode(name string, data []byte, v any) error {
	if err := oci.DecodeJSON(data, v); err != nil {
		return errs.New(errs.DataLoss, "%s: %w", name, err)
	}
	return nil
}

// list returns the names in a directory, sorted; none when it is not there.
func list(root *os.File, name string) ([]string, error) {
	f, err := openDir(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errs.New(errs.DataLoss, "%s: %w", name, err)
	}
	if len(names) > maxEntries {
		return nil, errs.New(errs.DataLoss, "%s has more than %d entries", name, maxEntries)
	}
	slices.Sort(names)
	return names, nil
}

// Rest returns what the root has besides images, containers, volumes and networks and has no counterpart here.
func (r *Root) Rest() (all []Problem) {
	has := func(name string) bool {
		names, err := list(r.dir, name)
		return err != nil || len(names) > 0
	}
	add := func(object, why string) {
		all = append(all, Problem{KindOther, object, errs.New(errs.Unimplemented, "%s", why)})
	}
	if has("buildkit/content") || has("buildkit/net") {
		add("buildkit", "the build cache does not come over: the first build of each Dockerfile runs its steps again")
	}
	if has("swarm") {
		add("swarm", "services, secrets and configs of a swarm do not come over")
	}
	if names, err := list(r.dir, "plugins"); err == nil && slices.ContainsFunc(names, oci.IsHex64) {
		add("plugins", "plug-ins of volumes, networks and logs do not come over")
	}
	drivers, err := list(r.dir, "image")
	if err != nil {
		all = append(all, Problem{KindOther, "image", err})
	}
	for _, d := range drivers {
		if d != "overlay2" && has(path.Join("image", d, "imagedb/content/sha256")) {
			add("image/"+d, "the images of the storage driver "+d+" do not come over: move them with docker save and ply load")
		}
	}
	top, err := list(r.dir, ".")
	if err != nil {
		all = append(all, Problem{KindOther, ".", err})
	}
	for _, name := range top {
		if remapped.MatchString(name) {
			add(name, "a data root with the setting userns-remap does not come over: the owners of its files are shifted")
		}
	}
	return all
}

// short shortens the digits of an ID for people.
func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}
