package erofs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store/layer"
)

const keyPrefix = "sha256-"

// Keys implements layer.Driver. Each layer has a key that all chains with it share, and one for the index that it may need
// on these parents. Whether a layer depends on its parents is not known before it is committed, so both are always
// returned.
func (d *Driver) Keys(chain oci.Chain) []layer.Key {
	ids := chain.IDs()
	keys := make([]layer.Key, 0, 2*len(chain))
	for i, id := range chain {
		if i > 0 {
			keys = append(keys, layer.Key(keyPrefix+id.Hex()+"-"+ids[i-1].Hex()))
		}
		keys = append(keys, layer.Key(keyPrefix+id.Hex()))
	}
	return keys
}

// parseKey returns the layer of a key and, if the key is that of an index, the index's file name without extension.
func parseKey(k layer.Key) (id oci.DiffID, index string, err error) {
	rest, ok := strings.CutPrefix(string(k), keyPrefix)
	hex, parent, two := strings.Cut(rest, "-")
	if !ok || !oci.IsHex64(hex) || two && !oci.IsHex64(parent) {
		return "", "", errs.New(errs.Invalid, "layer key %.100q: not a key of this driver", string(k))
	}
	if two {
		index = "index-" + parent
	}
	return diffIDOf(hex), index, nil
}

// Stat implements layer.Driver. It moves a damaged layer to the quarantine and reports it as not found.
func (d *Driver) Stat(ctx context.Context, chain oci.Chain) (layer.Info, error) {
	if len(chain) == 0 {
		return layer.Info{}, errs.New(errs.Invalid, "layer: an empty chain has no top")
	}
	id := chain.Top()
	r, err := d.lookup(id)
	if err == nil {
		if err = d.glance(r, r.indexName(chain.Parent())); errors.Is(err, errs.DataLoss) {
			err = d.condemn(ctx, r, err)
		}
	}
	if errors.Is(err, errs.DataLoss) {
		err = errs.New(errs.NotFound, "%w", err)
	}
	if err != nil {
		return layer.Info{}, err
	}
	return r.info(), nil
}

// lost turns errs.NotFound into errs.DataLoss, for files that the layer must have.
func lost(err error) error {
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.DataLoss, "%w", err)
	}
	return err
}

// condemn moves a damaged layer to the quarantine, unless it was replaced or removed meanwhile. A layer that could not be read
// stays in its place, because its data may be right. It returns the error for the caller that wants the layer.
func (d *Driver) condemn(ctx context.Context, r *layerRecord, reason error) error {
	unlock, err := d.installing.lock(ctx, r.DiffID)
	if err != nil {
		return err
	}
	defer unlock()
	now, err := d.lookup(r.DiffID)
	if err != nil {
		return err
	}
	if now != r {
		return errs.New(errs.Unavailable, "layer %s: was replaced while it was read", r.DiffID.Short()).WithHint("Try again.")
	}
	if errors.Is(reason, unix.EIO) {
		distrust(d, r.DiffID, reason.Error())
		return damage(r.DiffID, reason)
	}
	return errors.Join(damage(r.DiffID, reason), d.quarantine(r.DiffID, reason.Error()))
}

// Tar implements layer.Driver.
func (d *Driver) Tar(ctx context.Context, chain oci.Chain) (io.ReadCloser, error) {
	if len(chain) == 0 {
		return nil, errs.New(errs.Invalid, "layer: an empty chain has no tar")
	}
	id := chain.Top()
	r, err := d.lookup(id)
	if err != nil {
		return nil, err
	}
	f, err := d.fs.OpenFile(filepath.Join(d.layerDir(id), tarName), os.O_RDONLY, 0)
	if os.IsNotExist(err) {
		return nil, d.condemn(ctx, r, fmt.Errorf("%s is missing", tarName))
	}
	if err != nil {
		return nil, err
	}
	return &tarReader{d: d, f: f, r: r, left: r.TarSize, h: sha256.New()}, nil
}

// tarReader hashes the tar while it is read and compares size and digest at the end. It moves a damaged layer to the
// quarantine.
type tarReader struct {
	d    *Driver
	f    durable.File
	r    *layerRecord
	left int64
	h    hash.Hash
	err  error
}

func (t *tarReader) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.f.Read(p)
	t.h.Write(p[:n])
	t.left -= int64(n)
	switch {
	case errors.Is(err, unix.EIO):
		t.err = t.damaged(err)
	case err == io.EOF && t.left != 0, t.left < 0:
		t.err = t.damaged(errors.New("the length of its tar has changed"))
	case err == io.EOF && oci.DiffID(oci.DigestOfHash(t.h)) != t.r.DiffID:
		t.err = t.damaged(errors.New("the content of its tar has changed"))
	default:
		t.err = err
	}
	return n, t.err
}

func (t *tarReader) damaged(reason error) error {
	err := t.d.condemn(context.Background(), t.r, reason) // only waits for another commit or removal of the layer
	if !errors.Is(err, errs.DataLoss) {
		err = errors.Join(damage(t.r.DiffID, reason), err)
	}
	return err
}

func (t *tarReader) Close() error { return t.f.Close() }

// Walk implements layer.Driver. Layers in quarantine are visited too.
func (d *Driver) Walk(ctx context.Context, visit func(key layer.Key, made time.Time) error) error {
	type object struct {
		id   oci.DiffID
		made time.Time
	}
	var all []object
	d.mu.Lock()
	for id, r := range d.records {
		all = append(all, object{id, r.made})
	}
	for id := range d.damaged {
		all = append(all, object{id: id})
	}
	d.mu.Unlock()
	for _, o := range all {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := visit(layer.Key(keyPrefix+o.id.Hex()), o.made); err != nil {
			return err
		}
		if err := d.walkIndexes(o.id, visit); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements layer.Driver.
func (d *Driver) Remove(ctx context.Context, key layer.Key) error {
	id, index, err := parseKey(key)
	if err != nil {
		return err
	}
	unlock, err := d.installing.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	d.mu.Lock()
	if d.inUse(id, index) {
		d.mu.Unlock()
		return errs.New(errs.Conflict, "layer %s: in use by a mounted file system", id.Short())
	}
	if index != "" {
		if m := d.mounts[mountKey{id, index}]; m != nil {
			d.unmountIdle(m)
		}
		d.mu.Unlock()
		return d.removeIndex(d.layerDir(id), index)
	}
	delete(d.records, id)
	delete(d.damaged, id)
	d.forget(id)
	d.mu.Unlock()
	return d.removeLayer(id)
}

func (d *Driver) removeLayer(id oci.DiffID) error {
	// The rename is not synced. After a crash the layer exists, or a part of it under the name of a temporary, which the
	// next start removes. No record refers to it in either case.
	tmp := durable.TempName(d.layers)
	err := d.fs.Rename(d.layerDir(id), tmp)
	if err == nil {
		err = d.fs.RemoveAll(tmp)
	} else if os.IsNotExist(err) {
		err = nil
	}
	return errors.Join(err,
		d.fs.RemoveAll(filepath.Join(d.quar, id.Hex())))
}

// Verify implements layer.Driver. It moves a damaged layer to the quarantine.
func (d *Driver) Verify(ctx context.Context, chain oci.Chain) error {
	if len(chain) == 0 {
		return errs.New(errs.Invalid, "layer: an empty chain has no top")
	}
	id := chain.Top()
	r, err := d.lookup(id)
	if err != nil {
		return err
	}
	err = d.verify(ctx, r, r.indexName(chain.Parent()))
	if errors.Is(err, errs.DataLoss) {
		err = d.condemn(ctx, r, err)
	}
	return err
}

type withContext struct {
	ctx context.Context
	r   io.Reader
}

func (r withContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
