// Package archive reads and writes tar files that hold images: save, load, and import of a root file system.
//
// Save writes the hybrid layout by default: an OCI layout that, with manifest.json, repositories and one directory per
// layer, is also an archive that every version of Docker can read. Each layer is in it once. Load reads the archives that all
// these versions wrote. It reads a stream in one pass, and writes each layer into the store's driver when it comes. Layers
// that the archive has announced before are committed at once, the others when the whole archive has been read and checked.
//
// Invariants: nothing that an archive says about itself is trusted. Every blob is hashed again, links that leave the archive
// are refused, and no name of an entry is used as a path on disk. A load that fails leaves no names and no layers.
//
// The formats are defined by OCI image-spec 1.1.1 (image layout) and Docker's image spec 1.0 to 1.2.
package archive

import (
	"log/slog"

	"ply/internal/host"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
)

// Options of New. The zero value works.
type Options struct {
	Log    *slog.Logger // nil discards
	Limits Limits
}

// Limits bound the resources that one archive may use. A field that is 0 means the default.
type Limits struct {
	Entries  int   // tar entries; the default is 100,000
	Metadata int64 // bytes of manifests, configs and other small files, which are kept in memory; the default is 1/32 of what the process may use, from 4 to 64 MiB
	Layer    int64 // bytes of one uncompressed layer; the default is oci.MaxLayerSize
	Images   int   // images; the default is 1,000
	Names    int   // names; the default is 10,000
	Reserve  int64 // bytes to keep free on the data root's file system; the default is 5 %, at least 1 GiB, at most half of what is free
}

// Archive saves images from a store and loads images into it. Safe for concurrent use.
type Archive struct {
	st     *store.Store
	images *image.Service
	opts   Options
	limit  *transfer.Limiter // of archives that are read at a time
}

// memoryPerArchive is the memory of the engine for which another archive is read at the same time.
const memoryPerArchive = 128 << 20

// New returns the archive service of a store. images is the image service of the same store.
func New(st *store.Store, images *image.Service, opts Options) *Archive {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	l := &opts.Limits
	setDefault(&l.Entries, 100_000)
	memory := host.MemoryLimit()
	setDefault(&l.Metadata, min(max(memory/32, 4<<20), 64<<20))
	setDefault(&l.Layer, oci.MaxLayerSize)
	setDefault(&l.Images, 1_000)
	setDefault(&l.Names, 10_000)
	return &Archive{st: st, images: images, opts: opts, limit: transfer.NewLimiter(int(max(2, memory/memoryPerArchive)))}
}

func setDefault[T int | int64](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// File names and annotations of the layouts, besides those of package oci.
const (
	fileManifest     = "manifest.json"
	fileRepositories = "repositories"
	fileIndex        = "index.json"
	fileLayout       = "oci-layout"
	blobDir          = "blobs/sha256/"

	// annotationTag is defined by the image-spec. In practice it is a tag without a repository, or a whole reference.
	annotationTag = "org.opencontainers.image.ref.name"
	// annotationManifests is defined here: digests, separated by blanks, of the exact manifests and indexes that the image came
	// with. The archive has their bytes. It may have their layers as uncompressed tars only.
	annotationManifests = "io.ply.image.manifests"
	// annotationIndex is defined here: the digest of the index that lists an image, whose name the entries of all its images have. The archive has its bytes, but not the
	// layers in the forms that it lists.
	annotationIndex = "io.ply.image.index"
)

// dockerImage is one element of manifest.json.
type dockerImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// repositories maps the familiar name of a repository to its tags, and these to the v1 IDs of their top layers.
type repositories map[string]map[string]string
