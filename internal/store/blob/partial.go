package blob

import (
	"encoding/json"
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
)

// PartialTTL is how long an unfinished download is kept for the next try.
const PartialTTL = 7 * 24 * time.Hour

// Partial is a download that may be unfinished: a file that survives its process. Its methods are for one
// goroutine, except that File may be read and written at any offset by many. Exactly one of Commit, Keep and
// Discard ends it.
type Partial struct {
	s      *Store
	d      oci.Digest
	f      durable.File
	prefix int64
}

type partialState struct {
	Prefix int64 `json:"prefix"`
}

// Partial opens the download of a digest; errs.Conflict while another one in this process has it.
func (s *Store) Partial(d oci.Digest) (*Partial, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[d] {
		return nil, errs.New(errs.Conflict, "blob %s: is being downloaded already", d)
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
	// The record may be ahead of the data after a power cut, never the other way that matters: the caller
	// hashes the prefix again, so a lie costs a second download, not a wrong blob.
	var st partialState
	if b, err := durable.ReadFile(s.fs, s.partialPath(d)+".json", 4096); err == nil && json.Unmarshal(b, &st) == nil {
		p.prefix = max(0, min(st.Prefix, fi.Size()))
	}
	s.open[d] = true
	return p, nil
}

func (s *Store) partialPath(d oci.Digest) string { return filepath.Join(s.partial, d.Hex()) }

// File is the data, to be written at any offset.
func (p *Partial) File() durable.File { return p.f }

// Prefix is how many bytes from the start are there without a gap.
func (p *Partial) Prefix() int64 { return p.prefix }

// SetPrefix records that the first n bytes are there. Not synced: it is a hint for the next try.
func (p *Partial) SetPrefix(n int64) error {
	b, _ := json.Marshal(partialState{n})
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

// Reset forgets all that is there.
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

// Commit makes the file a blob. The caller has hashed every byte of it.
func (p *Partial) Commit() error {
	defer p.release()
	err := p.f.Sync()
	if err = errors.Join(err, p.f.Close()); err != nil {
		return errs.New(writeClass(err), "blob %s: sync: %w", p.d, err)
	}
	if err := durable.Rename(p.s.fs, p.f.Name(), p.s.path(p.d)); err != nil {
		return errs.New(writeClass(err), "blob %s: rename: %w", p.d, err)
	}
	return ignoreNotExist(p.s.fs.Remove(p.s.partialPath(p.d) + ".json"))
}

// Keep closes the download; it stays for the next try.
func (p *Partial) Keep() error {
	defer p.release()
	return p.f.Close()
}

// Discard removes the download.
func (p *Partial) Discard() error {
	defer p.release()
	name := p.s.partialPath(p.d)
	return errors.Join(p.f.Close(), ignoreNotExist(p.s.fs.Remove(name)), ignoreNotExist(p.s.fs.Remove(name+".json")))
}

// RemoveStale deletes downloads that nobody has touched for PartialTTL.
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

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeClass tells a full disk from everything else that can go wrong while writing.
func writeClass(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errs.Exhausted
	}
	return errs.Internal
}
