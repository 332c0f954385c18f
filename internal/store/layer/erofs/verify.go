package erofs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
	"ply/internal/oci"
)

// glance checks the records of a layer and of one index, and the sizes of their files. The error's class is errs.NotFound
// when the layer depends on its parents and was not committed on these.
func (f *files) glance(r *layerRecord, index string) error {
	dir := f.layerDir(r.DiffID)
	if _, err := f.readRecord(r.DiffID, dir); err != nil {
		return lost(err)
	}
	_, err := f.readIndex(dir, index)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errs.NotFound) && r.Dependent:
		return errs.New(errs.NotFound, "layer %s: not prepared for the layers below it", r.DiffID.Short()).
			WithHint("Pull or load the image again.")
	}
	return lost(err)
}

// verify reads all files of a layer and of one index. The error's class is errs.NotFound when the layer is whole and only
// the index does not exist.
func (f *files) verify(ctx context.Context, r *layerRecord, index string) error {
	absent := f.glance(r, index)
	if absent != nil && !errors.Is(absent, errs.NotFound) {
		return absent
	}
	dir := f.layerDir(r.DiffID)
	files := map[string]fileSum{tarName: {r.TarSize, oci.Digest(r.DiffID)}}
	if r.Side != nil {
		files[sideName] = *r.Side
	}
	if absent == nil {
		idx, err := f.readIndex(dir, index)
		if err != nil {
			return lost(err)
		}
		files[index+".erofs"] = idx.Index
		if idx.Chain != nil {
			files[chainFile(index)] = *idx.Chain
		}
	}
	for name, want := range files {
		if err := f.verifyFile(ctx, filepath.Join(dir, name), want); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return absent
}

func (fs *files) verifyFile(ctx context.Context, name string, want fileSum) (err error) {
	f, err := fs.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer errs.Close(&err, f)
	h := sha256.New()
	buf := make([]byte, 1<<20)
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{withContext{ctx, f}}, buf)
	if errors.Is(err, unix.EIO) {
		return errs.New(errs.DataLoss, "%w", err)
	}
	if err != nil {
		return err
	}
	if n != want.Size || oci.DigestOfHash(h) != want.Digest {
		return errs.New(errs.DataLoss, "its content has changed")
	}
	return nil
}
