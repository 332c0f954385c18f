package transfertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

// Driver keeps each layer as one file, named after its diffID, and counts commits. It is what tests of transfers need of a
// driver; a call of any other method of the embedded nil interface panics.
type Driver struct {
	layer.Driver
	dir string

	mu      sync.Mutex
	commits map[oci.DiffID]int // guarded by mu
}

func newDriver(t testing.TB, root string) *Driver {
	t.Helper()
	d := &Driver{dir: filepath.Join(root, "tars"), commits: map[oci.DiffID]int{}}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

// Path returns the file of a layer.
func (d *Driver) Path(id oci.DiffID) string { return filepath.Join(d.dir, id.Hex()) }

// Commits returns how often a layer was committed.
func (d *Driver) Commits(id oci.DiffID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.commits[id]
}

// Name returns "tar".
func (d *Driver) Name() string { return "tar" }

// Close does nothing.
func (d *Driver) Close() error { return nil }

// Create starts a layer.
func (d *Driver) Create(context.Context) (layer.Writer, error) {
	f, err := os.CreateTemp(d.dir, ".tmp-")
	if err != nil {
		return nil, err
	}
	return &tarWriter{d: d, f: f, h: sha256.New()}, nil
}

// Stat looks at the file of the top layer.
func (d *Driver) Stat(_ context.Context, chain oci.Chain) (layer.Info, error) {
	fi, err := os.Stat(d.Path(chain.Top()))
	if err != nil {
		return layer.Info{}, errs.New(errs.NotFound, "layer %s: %w", chain.Top(), err)
	}
	return layer.Info{DiffID: chain.Top(), Size: fi.Size(), TarSize: fi.Size(), Entries: 1}, nil
}

// Tar opens the file of the top layer.
func (d *Driver) Tar(_ context.Context, chain oci.Chain) (io.ReadCloser, error) {
	return os.Open(d.Path(chain.Top()))
}

// Keys returns one key per layer.
func (d *Driver) Keys(chain oci.Chain) []layer.Key {
	var keys []layer.Key
	for _, id := range chain {
		keys = append(keys, layer.Key("sha256-"+id.Hex()))
	}
	return keys
}

// Walk visits nothing: these tests collect no garbage.
func (d *Driver) Walk(context.Context, func(layer.Key, time.Time) error) error { return nil }

// Verify reads a layer again and removes a damaged one, as the drivers do.
func (d *Driver) Verify(_ context.Context, chain oci.Chain) error {
	b, err := os.ReadFile(d.Path(chain.Top()))
	if err != nil {
		return err
	}
	if got := oci.DigestOf(b); got != oci.Digest(chain.Top()) {
		return errors.Join(errs.New(errs.DataLoss, "layer %s: is damaged", chain.Top()), os.Remove(d.Path(chain.Top())))
	}
	return nil
}

type tarWriter struct {
	d    *Driver
	f    *os.File
	h    hash.Hash
	done bool
}

func (w *tarWriter) Write(p []byte) (int, error) {
	w.h.Write(p)
	return w.f.Write(p)
}

func (w *tarWriter) Commit(_ context.Context, parents oci.Chain, want oci.DiffID) (layer.Info, error) {
	got := oci.DiffID(oci.DigestOfHash(w.h))
	if want != "" && got != want {
		return layer.Info{}, errs.New(errs.Invalid, "tar has digest %s, want %s", got, want)
	}
	if len(parents) > 0 {
		if _, err := w.d.Stat(context.Background(), parents); err != nil {
			return layer.Info{}, errs.New(errs.Internal, "parent: %w", err)
		}
	}
	w.done = true
	if err := errors.Join(w.f.Close(), os.Rename(w.f.Name(), w.d.Path(got))); err != nil {
		return layer.Info{}, err
	}
	w.d.mu.Lock()
	w.d.commits[got]++
	w.d.mu.Unlock()
	return w.d.Stat(context.Background(), append(parents[:len(parents):len(parents)], got))
}

func (w *tarWriter) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()))
}

// SameTar compares a stored layer with what it should be.
func (d *Driver) SameTar(t testing.TB, id oci.DiffID, want []byte) {
	t.Helper()
	got, err := os.ReadFile(d.Path(id))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("layer %s: stored tar differs (%d bytes, want %d): %v", id.Short(), len(got), len(want), err)
	}
}
