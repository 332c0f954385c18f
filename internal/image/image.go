// Package image manages the images of a store: their names, list, tree, history, tag, remove and prune, and the creation of an
// image from a config and layers that the store already has.
//
// Invariants: the ID of an image is the digest of its config. A name refers only to an image whose config and layers are
// durable. Removing an image is a transaction on records; the collection that follows frees the disk space.
package image

import (
	"time"

	"ply/internal/filter"
	"ply/internal/oci"
)

// Image is one image of the store.
type Image struct {
	ID       oci.ImageID // "" = unknown: the record of its only name is damaged (List only)
	Parent   oci.ImageID
	Config   oci.Config // of List only what lists show: the time of its creation, the platform and the labels
	Raw      []byte     // the exact bytes of the config; nil of List
	Format   oci.Format
	Names    []oci.Reference // tags, sorted
	Digests  []oci.Reference // repository@digest, sorted
	Manifest *oci.Descriptor // the last manifest with which it was pulled or pushed; nil = none
	Size     int64           // sum of the sizes of its layers, in bytes
	Shared   int64           // the part of Size in layers that other images have too; -1 = not computed
	Tagged   time.Time
	LastUsed time.Time

	Chain     oci.Chain        // its layers, bottom layer first, as recorded; valid also when the config is damaged
	Damaged   error            // why it cannot be used: its record or config is damaged. List only; nil = it can
	Manifests []oci.Descriptor // the manifests and indexes with which it was pulled, pushed or loaded; the blob store has their bytes
}

// LayerView is one layer in the result of Layers or Tree.
type LayerView struct {
	DiffID    oci.DiffID
	Chain     oci.ChainID
	Size      int64
	Virtual   int64 // sum of the sizes of this layer and those below it
	CreatedBy string
	Tags      []oci.Reference // names of the images whose top layer this is
	Images    []oci.ImageID   // images that have exactly this chain, those with a name first
	Shown     []string        // names for people: as Tags, and for the images of an index the names of the index with their platforms
	Children  []*LayerView    // in a tree: the chains with one layer more
}

// TreeOptions are the options of Tree. The zero value asks for all images.
type TreeOptions struct {
	Listed  *ListOptions // only the images that List returns for these, and LayerView.Shown is set; nil = all images. Shared has no effect
	History bool         // set LayerView.CreatedBy, for which the configs of all images are read
}

// HistoryEntry is one step in the history of an image.
type HistoryEntry struct {
	ID        oci.ImageID // the local image that ended with this step; "" = none
	Created   time.Time
	CreatedBy string
	Size      int64
	Comment   string
	Tags      []oci.Reference
}

// ListOptions are the options of List; ListFilters lists the filters.
type ListOptions struct {
	All     bool // list intermediate images too
	Filters filter.Args
	Shared  bool // compute Image.Shared
}

// CreateOptions are the options of Create. The layers of the image are in the store already.
type CreateOptions struct {
	Parent  oci.ImageID   // "" = none
	Config  oci.Config    // with RootFS and History; a nil Created becomes the current time
	Format  oci.Format    // "" = the format of the parent, else Options.Format
	Name    oci.Reference // zero = none; a missing tag means latest
	Message string        // the comment of the config and of the last history entry, if these have none
}

// PutOptions are the options of Put.
type PutOptions struct {
	Config   []byte          // the exact bytes
	Format   oci.Format      // "" = the format of the manifest, else oci.FormatOCI
	Manifest *oci.Descriptor // its manifest, whose bytes are in the blob store; nil = none
	Index    *oci.Descriptor // the index that lists the manifest, whose bytes are in the blob store too; nil = none
	Names    []oci.Reference // repository:tag or repository@digest; another image that has one of them loses it
	Parent   oci.ImageID     // the local image from which it was made; "" = none
	Step     string          // meta.Image.Step of an image that only a build step made; an image that is put without it is no step's any more
}

// RemoveOptions are the options of Remove.
type RemoveOptions struct {
	Force     bool
	NoPrune   bool     // keep untagged parents
	Platforms []string // os/arch[/variant]: remove the images for these only, which needs Force
}

// Removed is one line of the result of a removal. Exactly one of its fields is set.
type Removed struct {
	Untagged string      // the familiar form of the name
	Deleted  oci.ImageID // an image, or the chain ID of layers that no image has any more
}

// PruneOptions are the options of Prune; PruneFilters lists the filters.
type PruneOptions struct {
	Filters filter.Args
}
