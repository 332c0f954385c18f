package erofs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
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

func (d *Driver) layerDir(id oci.DiffID) string { return filepath.Join(d.layers, id.Hex()) }

// readRecord reads the record of a layer directory and checks the sizes of the files that it names. The error says what is
// wrong with the layer.
func (d *Driver) readRecord(id oci.DiffID, dir string) (*layerRecord, error) {
	r := &layerRecord{}
	if err := d.readJSON(filepath.Join(dir, recordName), layerVersion, r); err != nil {
		return nil, err
	}
	if r.DiffID != id {
		return nil, errs.New(errs.DataLoss, "%s: describes layer %.80s", recordName, r.DiffID)
	}
	if err := d.checkSize(filepath.Join(dir, tarName), r.TarSize); err != nil {
		return nil, err
	}
	if r.Side != nil {
		if err := d.checkSize(filepath.Join(dir, sideName), r.Side.Size); err != nil {
			return nil, err
		}
	}
	st, err := d.fs.Lstat(dir)
	if err != nil {
		return nil, err
	}
	r.made = st.ModTime()
	if st, err := d.fs.Lstat(filepath.Join(dir, recordName)); err == nil {
		r.made = st.ModTime()
	}
	return r, nil
}

// readIndex reads the record of an index and checks the sizes of its files. The error's class is errs.NotFound when there
// is no record and errs.DataLoss when something is damaged.
func (d *Driver) readIndex(dir, name string) (*indexRecord, error) {
	r := &indexRecord{}
	if err := d.readJSON(filepath.Join(dir, name+".json"), indexVersion, r); err != nil {
		return nil, err
	}
	if err := d.checkSize(filepath.Join(dir, name+".erofs"), r.Index.Size); err != nil {
		return nil, err
	}
	if r.Chain != nil {
		if err := d.checkSize(filepath.Join(dir, chainFile(name)), r.Chain.Size); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (d *Driver) readJSON(name string, known int, v any) error {
	data, err := durable.ReadFile(d.fs, name, maxRecord)
	if os.IsNotExist(err) {
		return errs.New(errs.NotFound, "%s is missing", filepath.Base(name))
	}
	if err != nil {
		return err
	}
	return record.Unmarshal(filepath.Base(name), data, known, v)
}

// checkVersions refuses a layer directory that a newer release wrote. It only reads, and it ignores what is damaged.
func (d *Driver) checkVersions(dir string) error {
	entries, err := d.fs.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		known := indexVersion
		switch name, ok := strings.CutSuffix(e.Name(), ".json"); {
		case e.Name() == recordName:
			known = layerVersion
		case !ok || !strings.HasPrefix(name, "index"):
			continue
		}
		name := filepath.Join(dir, e.Name())
		data, err := durable.ReadFile(d.fs, name, maxRecord)
		if err != nil {
			continue
		}
		if _, err := record.ReadHeader(name, data, known); errors.Is(err, errs.Precondition) {
			return err
		}
	}
	return nil
}

func (d *Driver) checkSize(name string, want int64) error {
	st, err := d.fs.Lstat(name)
	switch {
	case os.IsNotExist(err):
		return errs.New(errs.DataLoss, "%s is missing", filepath.Base(name))
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Size() != want:
		return errs.New(errs.DataLoss, "%s has %d bytes, want %d", filepath.Base(name), st.Size(), want)
	}
	return nil
}
