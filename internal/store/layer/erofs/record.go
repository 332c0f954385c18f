package erofs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

const (
	tarName    = "layer.tar"
	sideName   = "side.data"
	recordName = "layer.json"
	reasonName = "reason"
	chainTag   = "chain.data" // in an index's device table: chain-<chainID>.data

	recordVersion = 1
	maxRecord     = 1 << 20
)

// record is layer.json.
type record struct {
	Version    int        `json:"version"`
	DiffID     oci.DiffID `json:"diffID"`
	Size       int64      `json:"size"`
	TarSize    int64      `json:"tarSize"`
	Entries    int        `json:"entries"`
	Dependent  bool       `json:"dependent,omitempty"`  // has one index a chain of parents
	OpaqueRoot bool       `json:"opaqueRoot,omitempty"` // hides all layers below it
	Root       bool       `json:"root,omitempty"`       // an entry describes the root
	Side       *fileSum   `json:"side,omitempty"`
	made       time.Time
}

// fileSum says what a file must be.
type fileSum struct {
	Size   int64      `json:"size"`
	Digest oci.Digest `json:"digest"`
}

// indexRecord is index.json.
type indexRecord struct {
	Index fileSum  `json:"index"`
	Chain *fileSum `json:"chain,omitempty"`
}

func (r *record) info() layer.Info {
	return layer.Info{DiffID: r.DiffID, Size: r.Size, TarSize: r.TarSize, Entries: r.Entries}
}

// indexName gives the base name of the index of a layer on parents, without extension.
func (r *record) indexName(parents oci.Chain) string { return indexName(r.Dependent, parents) }

func indexName(dependent bool, parents oci.Chain) string {
	if !dependent || len(parents) == 0 {
		return "index"
	}
	return "index-" + parents.ID().Hex()
}

// chainFile is the side file that belongs to an index.
func chainFile(index string) string {
	return "chain" + strings.TrimPrefix(index, "index") + ".data"
}

func (d *Driver) layerDir(id oci.DiffID) string { return filepath.Join(d.layers, id.Hex()) }

// readRecord reads and checks a layer directory; the error says what is wrong with it.
func (d *Driver) readRecord(id oci.DiffID, dir string) (*record, error) {
	r := &record{}
	if err := d.readJSON(filepath.Join(dir, recordName), r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, errs.New(errs.DataLoss, "%s: version %d is not known", recordName, r.Version)
	}
	if r.DiffID != id {
		return nil, errs.New(errs.DataLoss, "%s: speaks of %.80s", recordName, r.DiffID)
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

// readIndex reads an index's record; a missing one is errs.NotFound, a damaged one errs.DataLoss.
func (d *Driver) readIndex(dir, name string) (*indexRecord, error) {
	r := &indexRecord{}
	if err := d.readJSON(filepath.Join(dir, name+".json"), r); err != nil {
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

func (d *Driver) readJSON(name string, v any) error {
	data, err := durable.ReadFile(d.fs, name, maxRecord)
	if os.IsNotExist(err) {
		return errs.New(errs.NotFound, "%s is missing", filepath.Base(name))
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return errs.New(errs.DataLoss, "%s: %w", filepath.Base(name), err)
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
