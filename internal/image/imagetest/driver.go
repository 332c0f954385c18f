// Package imagetest provides a store that needs neither root nor mounts, and images for it, for tests.
package imagetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// Driver keeps each layer as one tar, named after its diffID, and mounts nothing. It refuses entries that leave the layer, as real
// drivers do.
type Driver struct {
	layer.Driver // nil: a call of a method that is not defined below panics

	dir string
	mu  sync.Mutex
	// Open is the number of writers that were neither committed nor aborted, MaxOpen its maximum so far, Creates the number of
	// all writers.
	Open, MaxOpen, Creates int
	// Made is the number of commits of a layer that was not there.
	Made int

	commits map[oci.DiffID]int
}

// NewDriver returns a driver that keeps its files in dir.
func NewDriver(dir string) *Driver { return &Driver{dir: dir, commits: map[oci.DiffID]int{}} }

// Commits returns how often a layer was committed.
func (d *Driver) Commits(id oci.DiffID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.commits[id]
}

func (d *Driver) path(id oci.DiffID) string { return filepath.Join(d.dir, id.Hex()) }

// Name returns "test".
func (d *Driver) Name() string { return "test" }

// Close does nothing.
func (d *Driver) Close() error { return nil }

// Path returns the file of a layer.
func (d *Driver) Path(id oci.DiffID) string { return d.path(id) }

type writer struct {
	d    *Driver
	f    *os.File
	hash hash.Hash
	done bool
}

// Create starts a layer.
func (d *Driver) Create(context.Context) (layer.Writer, error) {
	f, err := os.CreateTemp(d.dir, ".tmp-")
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.Open++
	d.Creates++
	d.MaxOpen = max(d.MaxOpen, d.Open)
	d.mu.Unlock()
	return &writer{d: d, f: f, hash: sha256.New()}, nil
}

func (w *writer) Write(p []byte) (int, error) {
	w.hash.Write(p)
	return w.f.Write(p)
}

func (w *writer) Abort() error {
	if w.done {
		return nil
	}
	w.end()
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}

func (w *writer) end() {
	w.done = true
	w.d.mu.Lock()
	w.d.Open--
	w.d.mu.Unlock()
}

func (w *writer) Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (layer.Info, error) {
	id := oci.DiffID(oci.DigestOfHash(w.hash))
	info, err := scan(w.f)
	if err == nil && want != "" && want != id {
		err = errs.New(errs.Invalid, "layer %s: content has digest %s", want, id)
	}
	if err == nil && len(parents) > 0 {
		_, err = w.d.Stat(ctx, parents)
	}
	if err != nil {
		return layer.Info{}, errors.Join(err, w.Abort())
	}
	info.DiffID = id
	w.end()
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	if _, err := os.Stat(w.d.path(id)); err != nil {
		w.d.Made++
	}
	w.d.commits[id]++
	return info, errors.Join(w.f.Close(), os.Rename(w.f.Name(), w.d.path(id)))
}

func scan(f *os.File) (info layer.Info, err error) {
	if info.TarSize, err = f.Seek(0, io.SeekEnd); err != nil {
		return info, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return info, err
	}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return info, nil
		}
		if err != nil {
			return info, errs.New(errs.Invalid, "layer: %w", err)
		}
		if strings.HasPrefix(h.Name, "../") {
			return info, errs.New(errs.Invalid, "layer: entry %q climbs with ..", h.Name)
		}
		info.Entries++
		if h.Typeflag == tar.TypeReg {
			info.Size += h.Size
		}
	}
}

// Stat describes the top layer of a chain. It does not look at the layers below.
func (d *Driver) Stat(_ context.Context, chain oci.Chain) (layer.Info, error) {
	f, err := os.Open(d.path(chain.Top()))
	if err != nil {
		return layer.Info{}, errs.New(errs.NotFound, "layer %s: not in the store", chain.Top())
	}
	defer f.Close()
	info, err := scan(f)
	info.DiffID = chain.Top()
	return info, err
}

// Tar returns the tar of the top layer after it has verified it.
func (d *Driver) Tar(_ context.Context, chain oci.Chain) (io.ReadCloser, error) {
	b, err := os.ReadFile(d.path(chain.Top()))
	if err != nil {
		return nil, errs.New(errs.NotFound, "layer %s: not in the store", chain.Top())
	}
	if got := oci.DigestOf(b); string(got) != string(chain.Top()) {
		return nil, errs.New(errs.DataLoss, "layer %s: damaged", chain.Top())
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Verify compares the digest of the top layer with its diffID. It removes a damaged layer, as real drivers do.
func (d *Driver) Verify(ctx context.Context, chain oci.Chain) error {
	r, err := d.Tar(ctx, chain)
	if errors.Is(err, errs.DataLoss) {
		return errors.Join(err, os.Remove(d.path(chain.Top())))
	}
	if err != nil {
		return err
	}
	return r.Close()
}

// Keys returns one key per layer, made of its diffID.
func (d *Driver) Keys(chain oci.Chain) []layer.Key {
	keys := make([]layer.Key, len(chain))
	for i, id := range chain {
		keys[i] = layer.Key("sha256-" + id.Hex())
	}
	return keys
}

// Walk visits all layers.
func (d *Driver) Walk(_ context.Context, visit func(layer.Key, time.Time) error) error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if oci.IsHex64(e.Name()) {
			fi, err := e.Info()
			if err != nil {
				return err
			}
			if err := visit(layer.Key("sha256-"+e.Name()), fi.ModTime()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Remove deletes a layer.
func (d *Driver) Remove(_ context.Context, key layer.Key) error {
	err := os.Remove(filepath.Join(d.dir, strings.TrimPrefix(string(key), "sha256-")))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Files returns the names of all files, temporary ones included.
func (d *Driver) Files() []string {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return []string{fmt.Sprint(err)}
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
