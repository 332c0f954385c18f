package blob

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/record"
)

// PartialTTL is how long an unfinished download is kept since its last use.
const PartialTTL = 7 * 24 * time.Hour

// Partial is a download in progress. Its file outlives the process. One goroutine at a time may call its methods, but many
// may read and write its File at different offsets. Exactly one of Commit, Keep and Discard ends it.
type Partial struct {
	s      *Store
	d      oci.Digest
	f      durable.File
	prefix int64
}

// partialState is partial/<hex>.json. Builds before the first release wrote it without a version.
type partialState struct {
	Prefix int64 `json:"prefix"` // bytes from the start that are there without a gap
}

const (
	partialVersion  = 1
	maxPartialState = 4096
)

// checkPartials refuses a store in which a newer release left a download. It only reads.
func (s *Store) checkPartials() error {
	entries, err := s.fs.ReadDir(s.partial)
	if err != nil {
		return nil // a new store; other errors come up again when the directory is used
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		name := filepath.Join(s.partial, e.Name())
		data, err := durable.ReadFile(s.fs, name, maxPartialState)
		if err != nil {
			continue
		}
		if _, err := record.ReadHeader(name, data, partialVersion); errors.Is(err, errs.Precondition) {
			return err
		}
	}
	return nil
}

// Partial opens the download of a digest, with the data of an earlier try. The error's class is errs.Conflict while the
// download is open already.
func (s *Store) Partial(d oci.Digest) (*Partial, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[d] {
		return nil, errs.New(errs.Conflict, "blob %s: a download is in progress already", d)
	}
	f, err := s.fs.OpenFile(s.partialPath(d), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.New(writeClass(err), "blob %s: open partial: %w", d, err)
	}
	p := &Partial{s: s, d: d, f: f}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(classify(d, err), f.Close())
	}
	// After a power cut the record may claim more than was written. The caller hashes the prefix, so a wrong record costs
	// a second download and never makes a wrong blob. The same holds for a damaged record.
	var st partialState
	err = record.ReadFile(s.fs, s.partialPath(d)+".json", maxPartialState, partialVersion, &st)
	if errors.Is(err, errs.Precondition) {
		return nil, errors.Join(err, f.Close())
	}
	if err == nil {
		p.prefix = max(0, min(st.Prefix, fi.Size()))
	}
	s.open[d] = true
	return p, nil
}

func (s *Store) partialPath(d oci.Digest) string { return filepath.Join(s.partial, d.Hex()) }

// File returns the file of the data. It may be written at any offset.
func (p *Partial) File() durable.File { return p.f }

// Prefix returns how many bytes from the start are there without a gap.
func (p *Partial) Prefix() int64 { return p.prefix }

// SetPrefix records that the first n bytes are there. The record is a hint for the next try, so it is not synced.
func (p *Partial) SetPrefix(n int64) error {
	b, err := record.Marshal(partialVersion, partialState{n})
	if err != nil {
		return err
	}
	name := p.s.partialPath(p.d) + ".json"
	f, err := p.s.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return errs.New(writeClass(err), "blob %s: record progress: %w", p.d, err)
	}
	b = append(b, '\n')
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Truncate(int64(len(b)))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errs.New(writeClass(err), "blob %s: record progress: %w", p.d, err)
	}
	p.prefix = n
	return nil
}

// Reset discards all data of the download.
func (p *Partial) Reset() error {
	if err := p.f.Truncate(0); err != nil {
		return errs.New(writeClass(err), "blob %s: reset: %w", p.d, err)
	}
	return p.SetPrefix(0)
}

func (p *Partial) release() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	delete(p.s.open, p.d)
}

// Commit makes the file a blob, durable when it returns. The caller must have verified its digest.
func (p *Partial) Commit() error {
	defer p.release()
	err := p.f.Sync()
	if err = errors.Join(err, p.f.Close()); err != nil {
		return errs.New(writeClass(err), "blob %s: sync: %w", p.d, err)
	}
	if err := p.s.rename(p.f.Name(), p.d); err != nil {
		return errs.New(writeClass(err), "blob %s: rename: %w", p.d, err)
	}
	return ignoreNotExist(p.s.fs.Remove(p.s.partialPath(p.d) + ".json"))
}

// Keep closes the download and leaves its data for the next try.
func (p *Partial) Keep() error {
	defer p.release()
	return p.f.Close()
}

// Discard closes the download and removes its data.
func (p *Partial) Discard() error {
	defer p.release()
	name := p.s.partialPath(p.d)
	return errors.Join(p.f.Close(), ignoreNotExist(p.s.fs.Remove(name)), ignoreNotExist(p.s.fs.Remove(name+".json")))
}

// RemoveStale removes the downloads that were not used for PartialTTL.
func (s *Store) RemoveStale(now time.Time) error {
	entries, err := s.fs.ReadDir(s.partial)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all error
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || now.Sub(fi.ModTime()) < PartialTTL {
			continue
		}
		hex := strings.TrimSuffix(e.Name(), ".json")
		if s.open[oci.Digest("sha256:"+hex)] {
			continue
		}
		all = errors.Join(all, ignoreNotExist(s.fs.Remove(filepath.Join(s.partial, e.Name()))))
	}
	return all
}

// Partials returns the names of the files of unfinished downloads, and of those that are no regular files and so cannot be used. What
// the files contain is not checked: a crash may leave any bytes there, and the next try hashes them.
func (s *Store) Partials() (names, unusable []string, err error) {
	entries, err := s.fs.ReadDir(s.partial)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		names = append(names, e.Name())
		if !e.Type().IsRegular() {
			unusable = append(unusable, filepath.Join(s.partial, e.Name()))
		}
	}
	return names, unusable, nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeClass returns the class of a failed write: errs.Exhausted for a full disk, errs.Internal for anything else.
func writeClass(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errs.Exhausted
	}
	return errs.Internal
}
