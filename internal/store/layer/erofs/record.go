package erofs

import (
	"strings"
	"time"

	"ply/internal/oci"
	"ply/internal/store/layer"
)

const (
	tarName    = "layer.tar"
	sideName   = "side.data"
	recordName = "layer.json"
	reasonName = "reason"
	chainTag   = "chain.data" // in an index's device table: chain-<chainID>.data

	layerVersion = 1 // of layer.json
	indexVersion = 1 // of index.json
	maxRecord    = 1 << 20
)

// layerRecord is layer.json. Builds before the first release wrote it with a version and without a writer.
type layerRecord struct {
	DiffID     oci.DiffID `json:"diffID"`
	Size       int64      `json:"size"`                 // as in layer.Info
	TarSize    int64      `json:"tarSize"`              // bytes of layer.tar
	Entries    int        `json:"entries"`              // as in layer.Info
	Dependent  bool       `json:"dependent,omitempty"`  // the layer has one index per chain of parents
	OpaqueRoot bool       `json:"opaqueRoot,omitempty"` // the layer hides all layers below it
	Root       bool       `json:"root,omitempty"`       // an entry of the tar describes the root directory
	Side       *fileSum   `json:"side,omitempty"`       // side.data, if there is one
	made       time.Time  // when the layer was committed; the modification time of layer.json
}

// fileSum is the size and digest that a file must have.
type fileSum struct {
	Size   int64      `json:"size"`
	Digest oci.Digest `json:"digest"`
}

// indexRecord is index.json. Builds before the first release wrote it without a version.
type indexRecord struct {
	Index fileSum  `json:"index"`           // index.erofs
	Chain *fileSum `json:"chain,omitempty"` // chain-<chainID>.data, if there is one
}

func (r *layerRecord) info() layer.Info {
	return layer.Info{DiffID: r.DiffID, Size: r.Size, TarSize: r.TarSize, Entries: r.Entries}
}

// indexName returns the file name, without extension, of the layer's index for these parents.
func (r *layerRecord) indexName(parents oci.Chain) string { return indexName(r.Dependent, parents) }

func indexName(dependent bool, parents oci.Chain) string {
	if !dependent || len(parents) == 0 {
		return "index"
	}
	return "index-" + parents.ID().Hex()
}

// chainFile returns the name of the side file that belongs to an index.
func chainFile(index string) string {
	return "chain" + strings.TrimPrefix(index, "index") + ".data"
}
