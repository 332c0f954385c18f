// Package image is what a user calls an image: names, list, tree, history, inspect, tag, remove, prune,
// and the making of a new image from a config and layers that the store already holds.
//
// Invariants: an image's ID is the digest of its config; a name points only at an image whose config and
// layers are durable; removing is a transaction on records, and space is freed by the collection that follows.
package image

import (
	"time"

	"ply/internal/filter"
	"ply/internal/oci"
)

// Image is one image as the store knows it.
type Image struct {
	ID       oci.ImageID
	Parent   oci.ImageID
	Config   oci.Config
	Raw      []byte // the config's exact bytes
	Format   oci.Format
	Names    []oci.Reference // tags, sorted
	Digests  []oci.Reference // repository@digest, sorted
	Manifest *oci.Descriptor // the last manifest it was pulled or pushed with, when one is known
	Size     int64           // sum of its layers' sizes
	Shared   int64           // the part of Size that other images have too; -1 when not asked for
	Tagged   time.Time
	LastUsed time.Time

	Chain     oci.Chain        // its layers, bottom first, as recorded (there even when the config is damaged)
	Manifests []oci.Descriptor // every manifest and index it was pulled, pushed or loaded with; exact bytes are in the blob store
}

// LayerView is one layer of an image for the layer view and the tree.
type LayerView struct {
	DiffID    oci.DiffID
	Chain     oci.ChainID
	Size      int64
	Virtual   int64 // cumulative size up to and with this layer
	CreatedBy string
	Tags      []oci.Reference // names of the images whose top layer this is
	Images    []oci.ImageID   // images that have exactly this stack
	Children  []*LayerView    // in a tree: stacks one layer higher
}

// HistoryEntry is one line of `history`, newest first.
type HistoryEntry struct {
	ID        oci.ImageID // "" shows as <missing>
	Created   time.Time
	CreatedBy string
	Size      int64
	Comment   string
	Tags      []oci.Reference
}

// ListOptions are the options of List; ListFilters lists the filters.
type ListOptions struct {
	All     bool // intermediate images too
	Filters filter.Args
	Shared  bool // compute Image.Shared
}

// CreateOptions of Create: everything that a new image needs; the layers are in the store already.
type CreateOptions struct {
	Parent  oci.ImageID   // "" for none
	Config  oci.Config    // RootFS and History complete; Created set by the caller
	Format  oci.Format    // "" means the parent's, or the daemon's image-format setting
	Name    oci.Reference // zero for none; a missing tag means latest
	Message string        // becomes the config's comment and that of the last history entry, where those have none
}

// PutOptions of Put: an image whose config somebody else made.
type PutOptions struct {
	Config   []byte          // exact bytes
	Format   oci.Format      // "" means the manifest's family, else oci.FormatOCI
	Manifest *oci.Descriptor // of its manifest, whose bytes are in the blob store; nil when there is none
	Index    *oci.Descriptor // of the index the manifest was chosen from, bytes in the blob store too; nil when there is none
	Names    []oci.Reference // repository:tag or repository@digest; each is moved here
	Parent   oci.ImageID     // local image it was made from; "" for none
}

// RemoveOptions of Remove.
type RemoveOptions struct {
	Force   bool
	NoPrune bool // keep untagged parents
}

// Removed is one line that rmi prints: exactly one of the two is set.
type Removed struct {
	Untagged string      // familiar reference
	Deleted  oci.ImageID // an image or, after its image, the ChainID of a stack that no image needs any more
}

// PruneOptions are the options of Prune; PruneFilters lists the filters.
type PruneOptions struct {
	Filters filter.Args
}
