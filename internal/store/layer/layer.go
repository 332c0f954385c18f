// Package layer is the contract of storage drivers: how layers are stored, stacked and mounted, and how the writable layer
// of a container is created, compared with its image and turned into a tar.
//
// A layer is named by its diffID. A chain is a stack of layers, bottom first. A writable is the one read-write layer of a
// container, on top of a chain. A driver stores objects under keys of its own: keys are made from the diffID where a layer
// does not depend on the layers below, and from the chainID where it does. Keys maps a chain to the keys of its objects,
// and garbage collection only works with keys.
//
// The life of a layer: Create, write the uncompressed tar, Commit (verified, durable and visible), be mounted in any number
// of chains, Remove when no chain needs its key. A layer is not visible before Commit returns.
//
// Every driver passes layertest.Run.
package layer

import (
	"context"
	"io"
	"time"

	"ply/internal/oci"
)

// Key names one stored object of a driver. It can be used as a file name ("sha256-<hex>…").
type Key string

// Info describes a committed layer.
type Info struct {
	DiffID  oci.DiffID
	Size    int64 // sum of the sizes of its regular files in bytes, as docker counts
	TarSize int64 // bytes of the uncompressed tar
	Entries int   // tar entries that became names
}

// Driver stores layers and makes root file systems of them. All methods are safe for concurrent use, but the caller runs
// one operation at a time on each writable. Errors have classes of package errs.
type Driver interface {
	// Name returns the value of --storage-driver.
	Name() string
	// Status returns pairs for `info`, such as {"Backing Filesystem", "extfs"}.
	Status() [][2]string

	// Create starts a layer. The layers of an image may be created in parallel and in any order.
	Create(ctx context.Context) (Writer, error)
	// Stat describes the top layer of chain. The error's class is errs.NotFound when it is not stored for that chain.
	Stat(ctx context.Context, chain oci.Chain) (Info, error)
	// Tar opens the uncompressed tar of the top layer of chain, byte for byte as it was committed. The reader verifies it:
	// damage is reported as an error of class errs.DataLoss, at the latest at the end.
	Tar(ctx context.Context, chain oci.Chain) (io.ReadCloser, error)
	// Keys returns the keys of all objects that chain needs, bottom first.
	Keys(chain oci.Chain) []Key
	// Walk calls visit for every stored object. Made is when it was committed.
	Walk(ctx context.Context, visit func(key Key, made time.Time) error) error
	// Remove removes an object; its space is free when Remove returns. The error's class is errs.Conflict when the object
	// is mounted. Removing an object that does not exist is no error.
	Remove(ctx context.Context, key Key) error
	// Verify reads the top layer of chain and compares every digest that is known.
	Verify(ctx context.Context, chain oci.Chain) error

	// View mounts chain read-only at target, an existing empty directory.
	View(ctx context.Context, chain oci.Chain, target string) error

	// CreateWritable creates the writable layer of a container below dir, an existing directory that the container owns.
	CreateWritable(ctx context.Context, dir string, chain oci.Chain) error
	// Mount mounts the writable over its chain at target.
	Mount(ctx context.Context, dir string, chain oci.Chain, target string, opts MountOptions) error
	// Unmount undoes View or Mount. It is no error when nothing is mounted.
	Unmount(ctx context.Context, target string) error
	// Changes lists what the writable adds, modifies and deletes, sorted by path, as `diff` shows it.
	Changes(ctx context.Context, dir string, chain oci.Chain) ([]Change, error)
	// Diff writes the writable as the tar of a layer, sorted, with whiteouts as .wh. entries. The caller freezes the
	// container first, or accepts that files change while they are read.
	Diff(ctx context.Context, dir string, chain oci.Chain, w io.Writer) error
	// Usage returns the sum of the sizes of the regular files in the writable, in bytes.
	Usage(ctx context.Context, dir string, chain oci.Chain) (int64, error)
	// RemoveWritable removes what CreateWritable and the use of the writable left below dir.
	RemoveWritable(ctx context.Context, dir string) error

	// Close releases the driver's descriptors and its own mounts. Mounted writables stay mounted.
	Close() error
}

// Examiner is implemented by drivers whose layers can be examined without changing them. Verify, unlike Examine, may put a
// damaged layer aside.
type Examiner interface {
	// Examine compares the top layer of chain with what is recorded of it: its files and their sizes, and with full every byte.
	// The error's class is errs.NotFound when the layer is not stored for that chain and errs.DataLoss when it is damaged.
	Examine(ctx context.Context, chain oci.Chain, full bool) error
	// Salvage opens the tar of the top layer of chain as far as the files of a damaged layer still have it. The content is not
	// verified. The error's class is errs.NotFound when there is nothing to read.
	Salvage(ctx context.Context, chain oci.Chain) (io.ReadCloser, error)
}

// WritableExaminer is implemented by drivers whose writables can be examined.
type WritableExaminer interface {
	// ExamineWritable reports whether the writable in dir has what CreateWritable made. With mend it makes again what holds no
	// data. The error's class is errs.DataLoss when something is missing.
	ExamineWritable(dir string, mend bool) error
}

// WritableLimiter is implemented by drivers that can limit the size of a writable.
type WritableLimiter interface {
	// CanLimit returns nil when the file system of dir, below which writables are created, enforces limits. Otherwise the class of the error is
	// errs.Precondition.
	CanLimit(dir string) error
	// LimitWritable lets the writable in dir, which CreateWritable has just made, take at most size bytes. The limit ends with RemoveWritable.
	LimitWritable(dir string, size int64) error
}

// MountOptions are the options of Driver.Mount.
type MountOptions struct {
	Volatile bool
	// Init lists the mount points of the runtime. They exist in the mounted tree and do not count as changes.
	Init []InitEntry
}

// InitEntry is a mount point that every container needs.
type InitEntry struct {
	Path string // in the container; clean and absolute
	Dir  bool
	Mode uint32 // permission bits
	Link string // when not "", the entry is a symbolic link to it
}

// Writer receives the uncompressed tar of one layer. It is not safe for concurrent use. Exactly one of Commit and Abort
// ends it; Abort after Commit does nothing.
type Writer interface {
	io.Writer
	// End ends the tar: a Write after it is an error. It waits until everything is processed and frees the memory that only
	// Write needs, so that a writer can wait for the layers below. Commit returns the errors. A second call only returns the same
	// again. alone reports whether Commit does not need the layers below to be there.
	End() (alone bool)
	// DiffID returns the digest of the tar, after End: the caller can lease the layer before Commit makes it.
	DiffID() oci.DiffID
	// Commit ends the tar, if End has not. It checks that the digest is want (unless want is "", for tars made here), resolves what depends
	// on the layers below, and makes the layer durable and visible. If the layer is stored already, that copy stays and the
	// new one is discarded, unless the stored one is damaged. The error's class is errs.Invalid when the tar must not be
	// unpacked (the text names the entry) or its digest differs.
	Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (Info, error)
	// Abort discards the layer.
	Abort() error
}

// Kind is the kind of a change.
type Kind int

// The kinds, with docker's numbers.
const (
	Modified Kind = iota
	Added
	Deleted
)

// Change is one line of `diff`.
type Change struct {
	Path string // in the container; absolute
	Kind Kind
}
