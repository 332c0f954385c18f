package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
	"ply/internal/store/meta"
)

// besideVersion is the version of the files of besideRecord.
const besideVersion = 1

// besideRecord is a copy of a record of the database, in a file beside the data to which the record belongs. It is written
// after the record, without a sync: it is read only when the record is lost or damaged, and the record's checksum says
// whether it is whole.
type besideRecord struct {
	Kind   string          `json:"kind"` // the name of the bucket
	Key    string          `json:"key"`
	Record json.RawMessage `json:"record"` // as it is stored
}

// maxBeside is the longest such file that is read, in bytes.
const maxBeside = 16 << 20

// beside keeps those files. The records of build steps have none: they are a cache.
type beside struct {
	fs   durable.FS
	root string
}

// path returns the file of a record; "" when it has none.
func (b beside) path(kind, key string) string {
	hashed := func() string {
		return filepath.Join(b.root, "records", kind, fmt.Sprintf("%x.json", sha256.Sum256([]byte(key))))
	}
	switch kind {
	case "containers":
		if oci.IsHex64(key) {
			return filepath.Join(b.root, kind, key, "record.json")
		}
	case "volumes":
		if key != "" && key[0] != '.' && !strings.Contains(key, "/") {
			return filepath.Join(b.root, kind, key, "record.json")
		}
	case "names", "images", "indexes", "layers", "networks":
		return hashed()
	}
	return ""
}

// own reports whether the records of a kind lie in the directory of their object.
func own(kind string) bool { return kind == "containers" || kind == "volumes" }

// follow repeats changes of the database. An error is not returned: the records are durable, and the next start repeats what
// is missing here.
func (b beside) follow(changes []meta.Change) {
	for _, c := range changes {
		path := b.path(c.Bucket, c.Key)
		if path == "" {
			continue
		}
		if c.Data == nil {
			_ = b.fs.Remove(path)
			continue
		}
		_ = b.write(path, c)
	}
}

func (b beside) write(path string, c meta.Change) error {
	data, err := record.Marshal(besideVersion, besideRecord{c.Bucket, c.Key, c.Data})
	if err != nil {
		return err
	}
	tmp := durable.TempName(filepath.Dir(path))
	f, err := b.fs.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err // the object is being removed, and its directory is gone
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = b.fs.Rename(tmp, path)
	}
	if err != nil {
		_ = b.fs.Remove(tmp)
	}
	return err
}

// read reads one file. The error's class is errs.DataLoss when it, or the record in it, is not whole.
func (b beside) read(path string) (r besideRecord, err error) {
	if err := record.ReadFile(b.fs, path, maxBeside, besideVersion, &r); err != nil {
		return r, err
	}
	if b.path(r.Kind, r.Key) != path {
		return r, errs.New(errs.DataLoss, "%s: is of %s %q", path, r.Kind, r.Key)
	}
	return r, meta.Check(r.Kind, r.Key, r.Record)
}

// walk calls do with the path of each file that is there.
func (b beside) walk(do func(path string) error) error {
	for _, kind := range meta.Kinds() {
		if b.path(kind, strings.Repeat("a", 64)) == "" {
			continue
		}
		dir := filepath.Join(b.root, "records", kind)
		if own(kind) {
			dir = filepath.Join(b.root, kind)
		}
		entries, err := b.fs.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if own(kind) {
				if path = b.path(kind, e.Name()); path == "" || !e.IsDir() {
					continue
				}
				if _, err := b.fs.Lstat(path); err != nil {
					continue
				}
			} else if filepath.Ext(e.Name()) != ".json" {
				continue
			}
			if err := do(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// open makes the directories.
func (b beside) open() error {
	for _, kind := range meta.Kinds() {
		if path := b.path(kind, "x"); path != "" && !own(kind) {
			if err := b.fs.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return err
			}
			if err := durable.RemoveTemps(b.fs, filepath.Dir(path)); err != nil {
				return err
			}
		}
	}
	return nil
}

// occupied reports whether a data root has anything to which records refer.
func occupied(fsys durable.FS, root string) (bool, error) {
	for _, dir := range []string{"blobs/sha256", "containers", "volumes", "layers/sha256"} {
		entries, err := fsys.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name()[0] != '.' }) {
			return true, nil
		}
	}
	return false, nil
}

// Lost is a record that is damaged, or that the database lacks.
type Lost struct {
	Kind    string // the name of its bucket: containers, images, names, volumes, layers, networks, steps, stepkeys
	Key     string
	Damaged bool   // else it is missing
	Source  string // the file from which Rebuild takes it; "" = its object's directory says enough
	Err     error  // why it cannot be rebuilt; nil = it can

	data []byte
}

// Lost returns the damaged records, and, while the database is in doubt, those that files beside the data have and the
// database lacks.
func (s *Store) Lost(ctx context.Context) (lost []Lost, err error) {
	b := s.beside
	known := map[[2]string]bool{}
	err = s.Meta.View(func(tx *meta.Tx) error {
		for _, kind := range meta.Kinds() {
			for key, r := range tx.Raw(kind).All() {
				known[[2]string{kind, key}] = true
				if err := meta.Check(kind, key, r.Value); err != nil {
					lost = append(lost, Lost{Kind: kind, Key: key, Damaged: true, Source: b.path(kind, key), Err: err})
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range lost {
		if lost[i].Source == "" {
			continue
		}
		if r, err := b.read(lost[i].Source); err == nil {
			lost[i].data, lost[i].Err = r.Record, nil
		}
	}
	if s.Meta.Doubt() == "" {
		return lost, nil
	}
	found := map[[2]string]bool{}
	err = b.walk(func(path string) error {
		r, err := b.read(path)
		if err != nil {
			lost = append(lost, Lost{Source: path, Err: err})
			return ctx.Err()
		}
		key := [2]string{r.Kind, r.Key}
		if found[key] = true; !known[key] {
			lost = append(lost, Lost{Kind: r.Kind, Key: r.Key, Source: path, data: r.Record})
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, err
	}
	return s.lostVolumes(lost, known, found)
}

// lostVolumes adds the volumes of which only the directory is left.
func (s *Store) lostVolumes(lost []Lost, known, found map[[2]string]bool) ([]Lost, error) {
	entries, err := s.FS.ReadDir(filepath.Join(s.Root, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		key := [2]string{"volumes", e.Name()}
		if known[key] || found[key] || e.Name()[0] == '.' || !e.IsDir() {
			continue
		}
		fi, err := s.FS.Lstat(filepath.Join(s.Root, "volumes", e.Name(), "_data"))
		if err != nil || !fi.IsDir() {
			continue
		}
		data, err := record.Marshal(1, meta.Volume{Driver: "local", Created: fi.ModTime().UTC().Round(time.Second), Anonymous: oci.IsHex64(e.Name())})
		if err != nil {
			return nil, err
		}
		lost = append(lost, Lost{Kind: "volumes", Key: e.Name(), data: data})
	}
	return lost, nil
}

// Rebuild writes those of the records that can be rebuilt, in one transaction, and returns how many these are. A record
// that somebody else has written meanwhile is kept.
func (s *Store) Rebuild(_ context.Context, lost []Lost) (n int, err error) {
	err = s.Meta.Update(func(tx *meta.Tx) error {
		n = 0
		for _, l := range lost {
			if l.Err != nil || l.data == nil {
				continue
			}
			records := tx.Raw(l.Kind)
			if have, err := records.Get(l.Key); err == nil && meta.Check(l.Kind, l.Key, have) == nil {
				continue
			}
			if err := records.Put(l.Key, l.data); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}

// RepeatRecords brings the files beside the data in line with the database: those of an upgrade, and those that a crash
// left out. While the database is in doubt, files of records that it lacks stay.
func (s *Store) RepeatRecords(ctx context.Context) error {
	b := s.beside
	for _, kind := range meta.Kinds() {
		if b.path(kind, strings.Repeat("a", 64)) == "" {
			continue
		}
		var keys []string
		if err := s.Meta.View(func(tx *meta.Tx) error { keys = slices.Collect(tx.Raw(kind).Keys()); return nil }); err != nil {
			return err
		}
		for _, key := range keys {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := s.repeat(kind, key); err != nil {
				return err
			}
		}
	}
	if s.Meta.Doubt() != "" {
		return nil
	}
	return b.walk(func(path string) error {
		r, err := b.read(path)
		if err != nil || own(r.Kind) {
			return ctx.Err() // what lies in the directory of an object goes with it
		}
		return s.Meta.Exclusive(func(tx *meta.Tx) error {
			if tx.Raw(r.Kind).Has(r.Key) {
				return nil
			}
			return s.FS.Remove(path)
		})
	})
}

// repeat writes the file of one record unless it is as it should be.
func (s *Store) repeat(kind, key string) error {
	path := s.beside.path(kind, key)
	if path == "" {
		return nil
	}
	return s.Meta.Exclusive(func(tx *meta.Tx) error {
		data, err := tx.Raw(kind).Get(key)
		if err != nil || meta.Check(kind, key, data) != nil {
			return nil // removed meanwhile; or damaged, and the file may be whole
		}
		if r, err := s.beside.read(path); err == nil && string(r.Record) == string(data) {
			return nil
		}
		if err := s.beside.write(path, meta.Change{Bucket: kind, Key: key, Data: data}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// endDoubt rebuilds what can be rebuilt, and lets collections remove what no record refers to again. It says what it did.
func (s *Store) endDoubt(ctx context.Context) (string, error) {
	lost, err := s.Lost(ctx)
	if err != nil {
		return "", err
	}
	n, err := s.Rebuild(ctx, lost)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d records rebuilt from the files beside the data; collections run again", n), s.Meta.Trust()
}

// held returns the error of a collection while the database is in doubt.
func (s *Store) held() error {
	d := s.Meta.Doubt()
	if d == "" {
		return nil
	}
	return errs.New(errs.DataLoss, "collection: stopped, nothing is removed: %s", d).WithHint("Run ply system check --repair.")
}
