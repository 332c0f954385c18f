// Package layer is the contract of storage drivers: how layers are kept, stacked and mounted,
// and how the writable layer of a container is made, compared and turned into a tar.
//
// Words: a layer is known by its diffID; a chain is a stack of layers, bottom first; a writable is
// the one read-write layer of a container on top of a chain. A driver stores objects under keys of its
// own (by diffID where a layer stands alone, by chainID where it does not); Keys maps a chain to them,
// and garbage collection works on keys alone.
//
// Life of a layer: Create → write the uncompressed tar → Commit (verified, durable, visible) → mounted in
// any number of chains → Remove when no chain needs its key. Nothing is visible before Commit returns.
//
// Every driver passes layertest.Run.
package layer

import (
	"context"
	"io"
	"time"

	"ply/internal/oci"
)

// Key names one stored object of a driver; safe as a file name ("sha256-<hex>…").
type Key string

// Info describes a committed layer.
type Info struct {
	DiffID  oci.DiffID
	Size    int64 // sum of the sizes of its regular files, as docker counts
	TarSize int64 // bytes of the uncompressed tar
	Entries int   // tar entries that became names
}

// Driver keeps layers and makes root file systems of them. All methods are safe for concurrent use;
// operations on one writable are serialised by the caller. Errors carry errs classes.
type Driver interface {
	// Name is the value of --storage-driver.
	Name() string
	// Status gives pairs for `info`, such as {"Backing Filesystem", "extfs"}.
	Status() [][2]string

	// Create starts a layer. Layers may be created in parallel, whatever their order in an image.
	Create(ctx context.Context) (Writer, error)
	// Stat tells whether the top layer of chain is held for that chain; errs.NotFound otherwise.
	Stat(ctx context.Context, chain oci.Chain) (Info, error)
	// Tar opens the byte-exact uncompressed tar of the top layer of chain. The reader verifies: damage
	// shows as an error of class errs.DataLoss at the end of the stream at the latest.
	Tar(ctx context.Context, chain oci.Chain) (io.ReadCloser, error)
	// Keys names every object that chain needs, bottom first.
	Keys(chain oci.Chain) []Key
	// Walk visits every stored object; made is when it was committed.
	Walk(ctx context.Context, visit func(key Key, made time.Time) error) error
	// Remove deletes an object; space is free when it returns. Removing one that is mounted is a errs.Conflict;
	// one that is absent is no error.
	Remove(ctx context.Context, key Key) error
	// Verify reads the top layer of chain again and compares every digest it can.
	Verify(ctx context.Context, chain oci.Chain) error

	// View mounts chain read-only at target, an existing empty directory.
	View(ctx context.Context, chain oci.Chain, target string) error

	// CreateWritable makes the writable layer of a container in dir (an existing directory that the
	// container owns; the driver puts what it needs below it).
	CreateWritable(ctx context.Context, dir string, chain oci.Chain) error
	// Mount makes the writable over its chain appear at target. Volatile means that nobody needs the
	// writable after a crash (run --rm).
	Mount(ctx context.Context, dir string, chain oci.Chain, target string, opts MountOptions) error
	// Unmount undoes View or Mount; not mounted is no error.
	Unmount(ctx context.Context, target string) error
	// Changes lists what the writable adds, modifies and deletes, sorted by path, as `diff` shows it.
	Changes(ctx context.Context, dir string, chain oci.Chain) ([]Change, error)
	// Diff writes the writable as a layer tar (whiteouts as .wh. entries) in sorted order. The caller has
	// frozen the container or accepts a moving picture.
	Diff(ctx context.Context, dir string, chain oci.Chain, w io.Writer) error
	// Usage sums the sizes of the regular files in the writable, in bytes.
	Usage(ctx context.Context, dir string, chain oci.Chain) (int64, error)
	// RemoveWritable deletes what CreateWritable and use put below dir.
	RemoveWritable(ctx context.Context, dir string) error

	// Close gives up what the driver holds (descriptors, mounts of its own). Mounted writables stay.
	Close() error
}

// MountOptions of Driver.Mount.
type MountOptions struct {
	Volatile bool
	// Init holds the mount points a runtime needs (path inside the root → "dir" or "file") that must exist
	// but must not show up in Changes or Diff.
	Init []InitEntry
}

// InitEntry is a mount point that every container needs.
type InitEntry struct {
	Path string // clean, absolute
	Dir  bool
	Mode uint32 // permission bits
	Link string // when not "", the entry is a symbolic link to it
}

// Writer takes the uncompressed tar of one layer. Not safe for concurrent use. Exactly one of Commit and
// Abort ends it; Abort after Commit does nothing.
type Writer interface {
	io.Writer
	// Commit ends the tar: checks that its digest is want (unless want is "", for tars made here), resolves what
	// depends on the layers below, makes everything durable and visible. A layer already held is kept, and
	// the new copy dropped, unless the held one is damaged.
	// Errors: errs.Invalid for a tar that may not be unpacked (the text names the entry) or whose digest differs.
	Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (Info, error)
	// Abort throws everything away.
	Abort() error
}

// Kind of a change.
type Kind int

// As docker numbers them.
const (
	Modified Kind = iota
	Added
	Deleted
)

// Change is one line of `diff`.
type Change struct {
	Path string // absolute inside the container
	Kind Kind
}
