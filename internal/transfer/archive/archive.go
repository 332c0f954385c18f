// Package archive moves images through tar files: save, load, import.
//
// Save writes the hybrid layout: one file that is an OCI layout and, by manifest.json, repositories and a directory for
// each layer, also what every Docker since the first can read; layers are in it once. Load reads whatever any of
// those wrote, from a stream, in one pass: each layer goes straight into the store's driver as it comes by and
// is committed only when the whole archive has been read and checked.
//
// Invariants: nothing an archive says about itself is believed: every blob is hashed again, links never leave the
// archive, no entry's name becomes a path on disk; a bad archive leaves neither names nor layers behind.
// Follows OCI image-spec 1.1.1 (image layout) and Docker's image spec 1.0 to 1.2.
package archive

import (
	"log/slog"

	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
)

// Options of New. The zero value works.
type Options struct {
	Log    *slog.Logger // nil discards
	Limits Limits
}

// Limits bound what an archive may cost. Zero fields mean the defaults.
type Limits struct {
	Entries  int   // tar entries; 100,000
	Metadata int64 // bytes of manifests, configs and the like, held in memory; 64 MiB
	Layer    int64 // bytes of one uncompressed layer; oci.MaxLayerSize
	Images   int   // images of one archive; 1,000
	Names    int   // names of one archive; 10,000
	Reserve  int64 // bytes that stay free on the data root's file system; the greater of 1 GiB and 5 %, at most half of what is free at the start
}

// Archive saves from and loads into one store. Safe for concurrent use.
type Archive struct {
	st     *store.Store
	images *image.Service
	opts   Options
}

// New makes the archive side of a store; images is the service of the same store.
func New(st *store.Store, images *image.Service, opts Options) *Archive {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	l := &opts.Limits
	setDefault(&l.Entries, 100_000)
	setDefault(&l.Metadata, 64<<20)
	setDefault(&l.Layer, oci.MaxLayerSize)
	setDefault(&l.Images, 1_000)
	setDefault(&l.Names, 10_000)
	return &Archive{st: st, images: images, opts: opts}
}

func setDefault[T int | int64](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// File names and annotations of the layouts.
const (
	fileManifest     = "manifest.json"
	fileRepositories = "repositories"
	fileIndex        = "index.json"
	fileLayout       = "oci-layout"
	blobDir          = "blobs/sha256/"

	// annotationName is containerd's: the full reference of an image in index.json.
	annotationName = "io.containerd.image.name"
	// annotationTag is the image-spec's: in practice a bare tag or a whole reference.
	annotationTag = "org.opencontainers.image.ref.name"
	// annotationDigests is ours: repository@digest references, separated by blanks, that the image is known by. Load
	// believes those whose digest is that of a manifest or index in the archive that leads to the image.
	annotationDigests = "io.ply.image.digests"
	// annotationManifests is ours: digests, separated by blanks, of the exact manifests and indexes that the image came
	// with. The archive has their bytes; of their layers perhaps only the uncompressed tars.
	annotationManifests = "io.ply.image.manifests"
)

// dockerImage is one element of manifest.json.
type dockerImage struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// repositories maps a familiar repository to tags and the v1 IDs of their top layers.
type repositories map[string]map[string]string
