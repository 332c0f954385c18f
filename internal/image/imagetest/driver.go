// Package imagetest provides a store that needs neither root nor mounts, and images for it, for tests.
package imagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs/image"
	"ply/internal/store/layer/tarscan"
)

// Driver keeps each layer as one tar, named after its diffID, and mounts nothing. It refuses the tars that real drivers refuse, and
// passes layertest.RunTars.
type Driver struct {
	layer.Driver // nil: a call of a method that is not defined below panics

	dir string
	mu  sync.Mutex
	// Open is the number of writers that were neither committed nor aborted, MaxOpen its maximum so far, Creates the number of
	// all writers.
	Open, MaxOpen, Creates int
	// Made is the number of commits of a layer that was not there.
	Made int

	// Creating, when it is not nil, is called before a writer is made.
	Creating func()

	ended   int
	commits map[oci.DiffID]int
	damaged map[oci.DiffID]bool // found by Verify and removed
}

// NewDriver returns a driver that keeps its files in dir.
func NewDriver(dir string) *Driver {
	return &Driver{dir: dir, commits: map[oci.DiffID]int{}, damaged: map[oci.DiffID]bool{}}
}

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

	ended, done bool
}

// Create starts a layer.
func (d *Driver) Create(context.Context) (layer.Writer, error) {
	if d.Creating != nil {
		d.Creating()
	}
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
	if w.ended {
		return 0, errs.New(errs.Precondition, "layer: the tar has ended")
	}
	w.hash.Write(p)
	return w.f.Write(p)
}

// End refuses further writes. Commit does the work, and looks for the layers below.
func (w *writer) End() (alone bool) {
	w.ended = true
	w.d.mu.Lock()
	w.d.ended++
	w.d.mu.Unlock()
	return false
}

// Ended returns how many writers had their whole tar.
func (d *Driver) Ended() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

// DiffID returns the digest of what was written.
func (w *writer) DiffID() oci.DiffID { return oci.DiffID(oci.DigestOfHash(w.hash)) }

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

func (w *writer) Commit(ctx context.Context, parents oci.Chain, want oci.DiffID) (info layer.Info, err error) {
	if w.done {
		return info, errs.New(errs.Precondition, "layer: already committed or aborted")
	}
	id := oci.DiffID(oci.DigestOfHash(w.hash))
	files, info, err := w.d.scan(w.f)
	if err == nil && want != "" && want != id {
		err = errs.New(errs.Invalid, "layer %s: content has digest %s", want, id)
	}
	if err == nil && len(parents) > 0 {
		_, err = w.d.Stat(ctx, parents)
	}
	if err == nil {
		err = w.d.checkLinks(files, parents)
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
	delete(w.d.damaged, id)
	return info, errors.Join(w.f.Close(), os.Rename(w.f.Name(), w.d.path(id)))
}

// scan reads and checks a tar with the code of the erofs driver. It returns the layer's names too.
func (d *Driver) scan(f *os.File) (*image.Tree, layer.Info, error) {
	var info layer.Info
	var err error
	if info.TarSize, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, info, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, info, err
	}
	names := image.NewTree()
	err = tarscan.Scan(f, tarscan.Limits{}, func(e *tarscan.Entry, _ io.Reader) error {
		if e.Kind != tarscan.Whiteout && e.Kind != tarscan.Opaque {
			info.Entries++
		}
		info.Size += e.Size
		return names.Add(e, image.Extent{Device: 1}) // the position does not matter: no image is written
	})
	return names, info, err
}

// checkLinks refuses hard links to files that neither the layer nor its parents have.
func (d *Driver) checkLinks(names *image.Tree, parents oci.Chain) error {
	missing, err := names.Missing()
	if err != nil {
		return err
	}
	var below map[string]bool
	for _, m := range missing {
		if !m.File {
			continue
		}
		if below == nil {
			if below, err = d.filesOf(parents); err != nil {
				return err
			}
		}
		if name := names.Path(m); !below[name] {
			return errs.New(errs.Invalid, "layer tar: hard link to %q, which is a file neither of this layer nor of those below", name)
		}
	}
	return nil
}

// filesOf returns the names in a chain that are not directories.
func (d *Driver) filesOf(chain oci.Chain) (map[string]bool, error) {
	files := map[string]bool{}
	for _, id := range chain {
		f, err := os.Open(d.path(id))
		if err != nil {
			return nil, err
		}
		err = tarscan.Scan(f, tarscan.Limits{}, func(e *tarscan.Entry, _ io.Reader) error {
			maps.DeleteFunc(files, func(p string, _ bool) bool {
				return e.Kind == tarscan.Whiteout && (p == e.Path || strings.HasPrefix(p, e.Path+"/")) ||
					e.Kind == tarscan.Opaque && (e.Path == "." || strings.HasPrefix(p, e.Path+"/"))
			})
			if e.Kind != tarscan.Whiteout && e.Kind != tarscan.Opaque {
				files[e.Path] = e.Kind != tarscan.Dir
			}
			return nil
		})
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// Stat describes the top layer of a chain. It does not look at the layers below.
func (d *Driver) Stat(_ context.Context, chain oci.Chain) (layer.Info, error) {
	f, err := os.Open(d.path(chain.Top()))
	if err != nil {
		return layer.Info{}, errs.New(errs.NotFound, "layer %s: not in the store", chain.Top())
	}
	defer f.Close()
	_, info, err := d.scan(f)
	info.DiffID = chain.Top()
	return info, err
}

// Tar returns the tar of the top layer after it has verified it.
func (d *Driver) Tar(_ context.Context, chain oci.Chain) (io.ReadCloser, error) {
	b, err := os.ReadFile(d.path(chain.Top()))
	d.mu.Lock()
	damaged := d.damaged[chain.Top()]
	d.mu.Unlock()
	if err != nil && damaged {
		return nil, errs.New(errs.DataLoss, "layer %s: damaged", chain.Top())
	}
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
		d.mu.Lock()
		d.damaged[chain.Top()] = true
		d.mu.Unlock()
		return errors.Join(err, os.RemoveAll(d.path(chain.Top())))
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
	hex, ok := strings.CutPrefix(string(key), "sha256-")
	if !ok || !oci.IsHex64(hex) {
		return errs.New(errs.Invalid, "layer key %q: not a key of this driver", key)
	}
	err := os.Remove(filepath.Join(d.dir, hex))
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
