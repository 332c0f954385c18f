package archive_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/image/imagetest"
	"ply/internal/oci"
	"ply/internal/store/meta"
	"ply/internal/transfer"
	"ply/internal/transfer/archive"
)

// Loads, imports, removals, prunes, collections and saves of images with common layers run at the same time. A name that resolves
// is always a complete image. In the end nothing unused is left.
func TestLoadRemoveSaveTogether(t *testing.T) {
	s := newSide(t, archive.Options{})
	four(t, s)
	pulled(t, s, "h:5000/app:1", true)
	rootfs := imagetest.Tar(t, "etc/", "", "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n") // a layer of the image that four makes
	archives := [][]byte{s.save(t, "", "ubuntu:14.04"), s.save(t, "docker", "base:1"), s.save(t, "oci", "h:5000/app:1")}
	d := onDriver(t, drivers["erofs"])
	ctx := t.Context()
	fine := func(what string, err error) {
		if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Conflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var wg sync.WaitGroup
	loop := func(n int, do func(i int)) {
		wg.Go(func() {
			for i := range n {
				do(i)
			}
		})
	}
	refs := []string{"ubuntu:14.04", "base:1", "h:5000/app:1", "imported"}
	for range 2 {
		loop(12, func(i int) {
			err := d.Load(ctx, bytes.NewReader(archives[i%3]), transfer.LoadOptions{}, transfer.Discard)
			if err != nil {
				t.Errorf("load: %v", err)
			}
		})
	}
	loop(8, func(int) {
		_, err := d.Import(ctx, transfer.ImportOptions{Name: imagetest.Ref(t, "imported"), Source: bytes.NewReader(rootfs)}, transfer.Discard)
		if err != nil {
			t.Errorf("import: %v", err)
		}
	})
	loop(30, func(i int) {
		_, err := d.Images.Remove(ctx, refs[i%4], image.RemoveOptions{Force: i%2 == 0})
		fine("remove", err)
	})
	loop(10, func(int) {
		_, _, err := d.Images.Prune(ctx, image.PruneOptions{})
		fine("prune", err)
		_, err = d.Store.Collect(ctx)
		fine("collect", err)
	})
	loop(30, func(i int) {
		fine("save", d.Save(ctx, refs[i%4:i%4+1], transfer.SaveOptions{}, io.Discard))
		_, err := d.Images.List(ctx, image.ListOptions{All: true})
		fine("list", err)
	})
	wg.Wait()
	whole(t, d)
	list, err := d.Images.List(ctx, image.ListOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		_, err := d.Images.Remove(ctx, string(img.ID), image.RemoveOptions{Force: true})
		fine("remove", err)
	}
	noLayers(t, d)
}

// whole checks that all blobs and layers that records refer to exist.
func whole(t *testing.T, s side) {
	t.Helper()
	err := s.Store.Meta.View(func(tx *meta.Tx) error {
		for id, rec := range tx.Images.All() {
			if _, err := s.Store.Blobs.Bytes(oci.Digest(id), oci.MaxConfig); err != nil {
				t.Error(err)
			}
			for _, m := range rec.Value.Manifests {
				if _, err := s.Store.Blobs.Bytes(m.Digest, oci.MaxManifest); err != nil {
					t.Error(err)
				}
			}
			for i := range rec.Value.Chain {
				if err := s.Store.Layers.Verify(t.Context(), rec.Value.Chain[:i+1]); err != nil {
					t.Error(err)
				}
			}
		}
		for key, n := range tx.Names.All() {
			if !tx.Images.Has(n.Value.Image) {
				t.Errorf("%s names no image", key)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
