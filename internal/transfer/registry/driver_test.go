package registry

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

// tarDriver keeps each layer as one file, by diffID. It is what these tests need of a driver, and counts commits. The embedded
// nil interface fails loudly when more is used.
type tarDriver struct {
	layer.Driver
	dir string

	mu      sync.Mutex
	commits map[oci.DiffID]int
}

func newTarDriver(t testing.TB, root string) *tarDriver {
	t.Helper()
	d := &tarDriver{dir: filepath.Join(root, "tars"), commits: map[oci.DiffID]int{}}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *tarDriver) path(id oci.DiffID) string { return filepath.Join(d.dir, id.Hex()) }

func (d *tarDriver) count(id oci.DiffID) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.commits[id]
}

func (d *tarDriver) Name() string { return "tar" }

func (d *tarDriver) Close() error { return nil }

func (d *tarDriver) Create(context.Context) (layer.Writer, error) {
	f, err := os.CreateTemp(d.dir, ".tmp-")
	if err != nil {
		return nil, err
	}
	return &tarWriter{d: d, f: f, h: sha256.New()}, nil
}

func (d *tarDriver) Stat(_ context.Context, chain oci.Chain) (layer.Info, error) {
	fi, err := os.Stat(d.path(chain.Top()))
	if err != nil {
		return layer.Info{}, errs.New(errs.NotFound, "layer %s: %w", chain.Top(), err)
	}
	return layer.Info{DiffID: chain.Top(), Size: fi.Size(), TarSize: fi.Size(), Entries: 1}, nil
}

func (d *tarDriver) Tar(_ context.Context, chain oci.Chain) (io.ReadCloser, error) {
	return os.Open(d.path(chain.Top()))
}

func (d *tarDriver) Keys(chain oci.Chain) []layer.Key {
	var keys []layer.Key
	for _, id := range chain {
		keys = append(keys, layer.Key("sha256-"+id.Hex()))
	}
	return keys
}

func (d *tarDriver) Walk(context.Context, func(layer.Key, time.Time) error) error { return nil }

// Verify sets a damaged layer aside, as the drivers do.
func (d *tarDriver) Verify(_ context.Context, chain oci.Chain) error {
	b, err := os.ReadFile(d.path(chain.Top()))
	if err != nil {
		return err
	}
	if got := oci.DigestOf(b); got != oci.Digest(chain.Top()) {
		return errors.Join(errs.New(errs.DataLoss, "layer %s: is damaged", chain.Top()), os.Remove(d.path(chain.Top())))
	}
	return nil
}

type tarWriter struct {
	d    *tarDriver
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
	if err := errors.Join(w.f.Close(), os.Rename(w.f.Name(), w.d.path(got))); err != nil {
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

// sameTar compares a stored layer with what it should be.
func (d *tarDriver) sameTar(t testing.TB, id oci.DiffID, want []byte) {
	t.Helper()
	got, err := os.ReadFile(d.path(id))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("layer %s: stored tar differs (%d bytes, want %d): %v", id.Short(), len(got), len(want), err)
	}
}
