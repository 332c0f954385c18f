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
	"ply/internal/store/layer/erofs/image"
)

// files reads and writes the files of layer directories. It keeps no state and knows nothing of mounts. Safe for concurrent
// use.
type files struct {
	fs     durable.FS
	layers string // layers/sha256
}

func (f *files) layerDir(id oci.DiffID) string { return filepath.Join(f.layers, id.Hex()) }

// readRecord reads the record of a layer directory and checks the sizes of the files that it names. The error says what is
// wrong with the layer.
func (f *files) readRecord(id oci.DiffID, dir string) (*layerRecord, error) {
	r := &layerRecord{}
	if err := f.readJSON(filepath.Join(dir, recordName), layerVersion, r); err != nil {
		return nil, err
	}
	if r.DiffID != id {
		return nil, errs.New(errs.DataLoss, "%s: describes layer %.80s", recordName, r.DiffID)
	}
	if err := f.checkSize(filepath.Join(dir, tarName), r.TarSize); err != nil {
		return nil, err
	}
	if r.Side != nil {
		if err := f.checkSize(filepath.Join(dir, sideName), r.Side.Size); err != nil {
			return nil, err
		}
	}
	st, err := f.fs.Lstat(dir)
	if err != nil {
		return nil, err
	}
	r.made = st.ModTime()
	if st, err := f.fs.Lstat(filepath.Join(dir, recordName)); err == nil {
		r.made = st.ModTime()
	}
	return r, nil
}

// readIndex reads the record of an index and checks the sizes of its files. The error's class is errs.NotFound when there
// is no record and errs.DataLoss when something is damaged.
func (f *files) readIndex(dir, name string) (*indexRecord, error) {
	r := &indexRecord{}
	if err := f.readJSON(filepath.Join(dir, name+".json"), indexVersion, r); err != nil {
		return nil, err
	}
	if err := f.checkSize(filepath.Join(dir, name+".erofs"), r.Index.Size); err != nil {
		return nil, err
	}
	if r.Chain != nil {
		if err := f.checkSize(filepath.Join(dir, chainFile(name)), r.Chain.Size); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (f *files) readJSON(name string, known int, v any) error {
	data, err := durable.ReadFile(f.fs, name, maxRecord)
	if os.IsNotExist(err) {
		return errs.New(errs.NotFound, "%s is missing", filepath.Base(name))
	}
	if err != nil {
		return err
	}
	return record.Unmarshal(filepath.Base(name), data, known, v)
}

// checkVersions refuses a layer directory that a newer release wrote. It only reads, and it ignores what is damaged.
func (f *files) checkVersions(dir string) error {
	entries, err := f.fs.ReadDir(dir)
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
		data, err := durable.ReadFile(f.fs, name, maxRecord)
		if err != nil {
			continue
		}
		if _, err := record.ReadHeader(name, data, known); errors.Is(err, errs.Precondition) {
			return err
		}
	}
	return nil
}

// checkAllVersions refuses a root in which a newer release wrote any layer. It only reads.
func (f *files) checkAllVersions() error {
	entries, err := f.fs.ReadDir(f.layers)
	if err != nil {
		return nil // a new root; other errors come up again when the directory is used
	}
	for _, e := range entries {
		if !oci.IsHex64(e.Name()) {
			continue
		}
		if err := f.checkVersions(filepath.Join(f.layers, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (f *files) checkSize(name string, want int64) error {
	st, err := f.fs.Lstat(name)
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

// makeDir creates a directory, durable when it returns. The directory may exist already.
func (f *files) makeDir(dir string) error {
	if err := f.fs.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	err := f.fs.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.fs.SyncDir(filepath.Dir(dir))
}

func (f *files) walkIndexes(id oci.DiffID, visit func(layer.Key, time.Time) error) error {
	entries, err := f.fs.ReadDir(f.layerDir(id))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		// The .erofs file counts and not the record, so that an index whose record a crash prevented is found too.
		hex, ok := strings.CutPrefix(e.Name(), "index-")
		hex, erofs := strings.CutSuffix(hex, ".erofs")
		if !ok || !erofs || !oci.IsHex64(hex) {
			continue
		}
		st, err := e.Info()
		if err != nil {
			continue // removed meanwhile
		}
		if err := visit(layer.Key(keyPrefix+id.Hex()+"-"+hex), st.ModTime()); err != nil {
			return err
		}
	}
	return nil
}

func (f *files) removeIndex(dir, index string) error {
	found := false
	for _, name := range []string{index + ".json", index + ".erofs", chainFile(index)} {
		err := f.fs.Remove(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		found = found || err == nil
	}
	if !found {
		return nil
	}
	return f.fs.SyncDir(dir)
}

// devices returns the paths of the files in an index's device table.
func (fs *files) devices(dir, index string) (paths []string, err error) {
	f, err := fs.fs.OpenFile(filepath.Join(dir, index+".erofs"), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer errs.Close(&err, f)
	tags, err := image.Devices(f)
	if err != nil {
		return nil, err
	}
	for _, tag := range tags {
		switch tag {
		case tarName, sideName:
		case chainTag:
			tag = chainFile(index)
		default:
			return nil, errs.New(errs.DataLoss, "%s.erofs: unknown device %q", index, tag)
		}
		paths = append(paths, filepath.Join(dir, tag))
	}
	return paths, nil
}

// writeJSON writes a record into a staging directory.
func (fs *files) writeJSON(syncs *syncing, name string, version int, v any) error {
	data, err := record.Marshal(version, v)
	if err != nil {
		return err
	}
	f, err := fs.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return syncs.file(f, err)
}
