package meta

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"time"

	"go.etcd.io/bbolt"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
)

// Name is what a tag or a digest reference points at; its key is the full reference.
type Name struct {
	Image   oci.ImageID `json:"image"`
	Updated time.Time   `json:"updated"`
	Index   oci.Digest  `json:"index,omitempty"` // the name means this index; Image is then the one for this host
}

// Image is what is known about an image besides the bytes of its config; its key is the image's ID.
type Image struct {
	Parent    oci.ImageID      `json:"parent,omitempty"` // the local image it was made from
	Format    oci.Format       `json:"format"`           // family of the manifest it came with or will get
	Chain     oci.Chain        `json:"chain"`
	Manifests []oci.Descriptor `json:"manifests,omitempty"` // their bytes are in the blob store
	Created   time.Time        `json:"created"`             // when the record was made here
	LastUsed  time.Time        `json:"lastUsed"`
	// Step marks the image of a build step: it is the ID of the step's record, or one of the constants below. "" = not made by a step. An image of a step that has no
	// name is removed with the step.
	Step string `json:"step,omitempty"`
}

// StepOfBase is the Step of images whose steps changed the config of an image only.
const StepOfBase = "base"

// StepOfRun is the Step of images that containers of steps are made from. They are removed when the build ends.
const StepOfRun = "run"

// StepOfStack is the Step of images that were made of the lower layers of an image, because a reference named them by their chain ID. They are removed with the
// build cache and whenever an image is removed.
const StepOfStack = "stack"

// StepFailed is the Step of images of what steps that failed left. The build cache knows no such steps: the images are removed with results of the same age.
const StepFailed = "failed"

// Index is an index that was made here: the images of several platforms, or an image with its attestations. Its key is its digest. It exists as long as a name
// means it.
type Index struct {
	MediaType string           `json:"mediaType"`
	Size      int64            `json:"size"`
	Images    []oci.ImageID    `json:"images"`              // in the order of the index
	Artifacts []oci.Descriptor `json:"artifacts,omitempty"` // the manifests of attestations
	Blobs     []oci.Digest     `json:"blobs,omitempty"`     // what Artifacts list
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

// Step is the result of a build step that the build cache remembers; its key is the digest that identifies it.
type Step struct {
	Outputs []StepOutput  `json:"outputs"`
	Name    string        `json:"name"`            // for people
	Parts   []StepPart    `json:"parts,omitempty"` // what its first key was made of
	Created time.Time     `json:"created"`
	Used    time.Time     `json:"used"`
	Uses    int           `json:"uses"`
	Took    time.Duration `json:"took"` // nanoseconds
}

// StepOutput is one output of a step.
type StepOutput struct {
	Index int       `json:"index"`
	Chain oci.Chain `json:"chain"`
}

// StepPart is a component of the key of a step.
type StepPart struct {
	What string `json:"what"`
	Sum  string `json:"sum"`
}

// StepKey leads from a key of the build cache to a step; its key is a digest, of a name where it starts with "name ".
type StepKey struct {
	Step oci.Digest `json:"step"`
}

// table is a kind of record.
type table struct {
	bucket  string
	what    string // one record, in error texts
	version int    // the newest version that is known, and the one that is written
}

func (t table) name(key []byte) string { return t.what + " " + string(key) }

// A stored record ends with its checksum: the field "sum", with the CRC-32C of the bucket, the key and the record without
// that field. So a record whose bytes have changed on disk is damaged even when it is still JSON. Builds before the first
// release wrote none.
const (
	sumField = `,"sum":"`
	sumLen   = len(sumField) + 8 + len(`"}`)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum returns the checksum of a record without its field of that name.
func (t table) sum(key, data []byte) string {
	h := crc32.New(castagnoli)
	for _, part := range [][]byte{[]byte(t.bucket), {0}, key, {0}, data} {
		h.Write(part)
	}
	return fmt.Sprintf("%08x", h.Sum32())
}

// marshal encodes a record as it is stored.
func (t table) marshal(key []byte, v any) ([]byte, error) {
	data, err := record.Marshal(t.version, v)
	if err != nil {
		return nil, err
	}
	sum := t.sum(key, data)
	return append(data[:len(data)-1], sumField+sum+`"}`...), nil
}

// unmarshal decodes a stored record. The error's class is errs.DataLoss when it is damaged.
func (t table) unmarshal(key, data []byte, v any) error {
	if err := record.CheckHeader(t.name(key), data, t.version); err != nil {
		return err
	}
	if at := len(data) - sumLen; at > 0 && string(data[at:at+len(sumField)]) == sumField {
		plain := append(bytes.Clone(data[:at]), '}')
		if t.sum(key, plain) != string(data[at+len(sumField):len(data)-2]) {
			return errs.New(errs.DataLoss, "%s: damaged record: its checksum does not match", t.name(key))
		}
	}
	return record.Decode(t.name(key), data, v)
}

// The versions of the kinds of records. A change that an older build must not ignore raises the version (see package record).
const (
	nameVersion      = 1
	imageVersion     = 1
	indexVersion     = 1
	layerVersion     = 1
	containerVersion = 1 // of the record of container.Service
	volumeVersion    = 1
	networkVersion   = 1 // of the record of network.Service
	stepVersion      = 1
	stepKeyVersion   = 1
)

var (
	names      = table{"names", "name", nameVersion}
	images     = table{"images", "image", imageVersion}
	indexes    = table{"indexes", "index", indexVersion}
	layers     = table{"layers", "layer", layerVersion}
	containers = table{"containers", "container", containerVersion}
	volumes    = table{"volumes", "volume", volumeVersion}
	networks   = table{"networks", "network", networkVersion}
	steps      = table{"steps", "build step", stepVersion}
	stepKeys   = table{"stepkeys", "key of a build step", stepKeyVersion}

	tables = []table{names, images, indexes, layers, containers, volumes, networks, steps, stepKeys}
)

// Tx is a transaction. Its buckets are valid until the function that received it returns.
type Tx struct {
	db      *DB
	tx      *bbolt.Tx
	log     *[]Change // nil in a View
	Names   Bucket[string, Name]
	Images  Bucket[oci.ImageID, Image]
	Indexes Bucket[oci.Digest, Index]
	Layers  Bucket[oci.DiffID, Layer]
	// Containers holds the records of container.Service as they are stored; As decodes them. "image" and "chain" at the
	// top of a record are roots of the collection.
	Containers Bucket[oci.ContainerID, json.RawMessage]
	Volumes    Bucket[string, Volume]
	// Networks holds the records of network.Service as they are stored; As decodes them.
	Networks Bucket[string, json.RawMessage]
	Steps    Bucket[oci.Digest, Step]
	StepKeys Bucket[string, StepKey]
}

func wrap(db *DB, tx *bbolt.Tx, log *[]Change) *Tx {
	return &Tx{
		db:         db,
		tx:         tx,
		log:        log,
		Names:      open[string, Name](tx, names, log),
		Images:     open[oci.ImageID, Image](tx, images, log),
		Indexes:    open[oci.Digest, Index](tx, indexes, log),
		Layers:     open[oci.DiffID, Layer](tx, layers, log),
		Containers: open[oci.ContainerID, json.RawMessage](tx, containers, log),
		Volumes:    open[string, Volume](tx, volumes, log),
		Networks:   open[string, json.RawMessage](tx, networks, log),
		Steps:      open[oci.Digest, Step](tx, steps, log),
		StepKeys:   open[string, StepKey](tx, stepKeys, log),
	}
}

// Kinds returns the names of the buckets of records.
func Kinds() []string {
	all := make([]string, len(tables))
	for i, t := range tables {
		all[i] = t.bucket
	}
	return all
}

// Raw returns the records of a kind as they are stored.
func (tx *Tx) Raw(kind string) Bucket[string, json.RawMessage] {
	for _, t := range tables {
		if t.bucket == kind {
			return open[string, json.RawMessage](tx.tx, t, tx.log)
		}
	}
	panic(errs.New(errs.Internal, "no records of the kind %q", kind))
}

// Check returns why a stored record cannot be decoded; nil when it can. Key is the record's, kind the name of its bucket.
func Check(kind, key string, data []byte) error {
	for _, t := range tables {
		if t.bucket == kind {
			var fields map[string]json.RawMessage
			return t.unmarshal([]byte(key), data, &fields)
		}
	}
	return errs.New(errs.Invalid, "no records of the kind %q", kind)
}
