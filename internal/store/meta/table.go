package meta

import (
	"encoding/json"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/oci"
)

// Name is what a tag or a digest reference points at; its key is the full reference.
type Name struct {
	Image   oci.ImageID `json:"image"`
	Updated time.Time   `json:"updated"`
}

// Image is what is known about an image besides the bytes of its config; its key is the image's ID.
type Image struct {
	Parent    oci.ImageID      `json:"parent,omitempty"` // the local image it was made from
	Format    oci.Format       `json:"format"`           // family of the manifest it came with or will get
	Chain     oci.Chain        `json:"chain"`
	Manifests []oci.Descriptor `json:"manifests,omitempty"` // their bytes are in the blob store
	Created   time.Time        `json:"created"`             // when the record was made here
	LastUsed  time.Time        `json:"lastUsed"`
}

// Layer is what is known about a layer; its key is the diffID.
type Layer struct {
	Size    int64       `json:"size"`    // sum of the sizes of the regular files, in bytes
	TarSize int64       `json:"tarSize"` // bytes of the uncompressed tar
	Blobs   []LayerBlob `json:"blobs,omitempty"`
}

// LayerBlob is one compressed form of a layer, stored here or in a registry.
type LayerBlob struct {
	oci.Descriptor
	Codec        string   `json:"codec,omitempty"`        // how to make these bytes from the tar: compress.Params as text; "" if made elsewhere
	Repositories []string `json:"repositories,omitempty"` // full names of repositories known to have it
}

// Volume is a named directory; its key is its name.
type Volume struct {
	Driver    string            `json:"driver"`
	Labels    map[string]string `json:"labels,omitempty"`
	Options   map[string]string `json:"options,omitempty"`
	Created   time.Time         `json:"created"`
	Anonymous bool              `json:"anonymous,omitempty"`
}

// table is a kind of record.
type table struct {
	bucket  string
	what    string // one record, in error texts
	version int    // the newest version that is known, and the one that is written
}

func (t table) name(key []byte) string { return t.what + " " + string(key) }

// The versions of the kinds of records. A change that an older build must not ignore raises the version (see package record).
const (
	nameVersion      = 1
	imageVersion     = 1
	layerVersion     = 1
	containerVersion = 1 // of the record of container.Service
	volumeVersion    = 1
	networkVersion   = 1 // of the record of network.Service
)

var (
	names      = table{"names", "name", nameVersion}
	images     = table{"images", "image", imageVersion}
	layers     = table{"layers", "layer", layerVersion}
	containers = table{"containers", "container", containerVersion}
	volumes    = table{"volumes", "volume", volumeVersion}
	networks   = table{"networks", "network", networkVersion}

	tables = []table{names, images, layers, containers, volumes, networks}
)

// Tx is a transaction. Its buckets are valid until the function that received it returns.
type Tx struct {
	tx     *bbolt.Tx
	Names  Bucket[string, Name]
	Images Bucket[oci.ImageID, Image]
	Layers Bucket[oci.DiffID, Layer]
	// Containers holds the records of container.Service as they are stored; As decodes them. "image" and "chain" at the
	// top of a record are roots of the collection.
	Containers Bucket[oci.ContainerID, json.RawMessage]
	Volumes    Bucket[string, Volume]
	// Networks holds the records of network.Service as they are stored; As decodes them.
	Networks Bucket[string, json.RawMessage]
}

func wrap(tx *bbolt.Tx) *Tx {
	return &Tx{
		tx:         tx,
		Names:      open[string, Name](tx, names),
		Images:     open[oci.ImageID, Image](tx, images),
		Layers:     open[oci.DiffID, Layer](tx, layers),
		Containers: open[oci.ContainerID, json.RawMessage](tx, containers),
		Volumes:    open[string, Volume](tx, volumes),
		Networks:   open[string, json.RawMessage](tx, networks),
	}
}
