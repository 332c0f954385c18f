package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
)

// file is one entry of a layer.
type file struct {
	name string
	size int
}

// put commits a layer of files whose content does not repeat.
func put(d *erofs.Driver, parents oci.Chain, seed uint64, files []file) (oci.Chain, error) {
	ctx := context.Background()
	w, err := d.Create(ctx)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(w)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(f.size), ModTime: time.Unix(1e9, 0)}
		if err = tw.WriteHeader(h); err == nil {
			_, err = io.CopyN(tw, src, int64(f.size))
		}
		if err != nil {
			return nil, errors.Join(err, w.Abort())
		}
	}
	if err := tw.Close(); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	info, err := w.Commit(ctx, parents, "")
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return append(slices.Clone(parents), info.DiffID), nil
}

func stack(d *erofs.Driver, n int) (oci.Chain, error) {
	var chain oci.Chain
	for i := range n {
		var err error
		chain, err = put(d, chain, uint64(i), []file{{fmt.Sprintf("usr/lib/only%d", i), 10}, {"usr/lib/every", 10 + i}})
		if err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// mountCost measures the mounts for the first container of an image and for each further one.
func (b *bench) mountCost() error {
	var rows [][]string
	for _, n := range []int{1, 10, 60, 100, 300} {
		err := b.withDriver(erofs.Options{IdleMounts: -1}, func(d *erofs.Driver, root string) error {
			chain, err := stack(d, n)
			if err != nil {
				return err
			}
			var first, next, off []time.Duration
			for range 15 {
				a, u1, err := b.mountOnce(d, chain, func() error {
					n, _, err := b.mountOnce(d, chain, nil)
					next = append(next, n)
					return err
				})
				if err != nil {
					return err
				}
				first, off = append(first, a), append(off, u1)
			}
			each := (median(first) - median(next)) / time.Duration(n)
			rows = append(rows, []string{fmt.Sprint(n), show(median(first)), show(median(next)), show(each), show(median(off))})
			return nil
		})
		if err != nil {
			return err
		}
	}
	table("Mounting a writable over N layers", []string{"layers", "first container", "next container", "so each EROFS mount", "unmount of the last, with the layers"}, rows)
	return nil
}

// mountOnce mounts a new writable layer, calls within, and unmounts it.
func (b *bench) mountOnce(d *erofs.Driver, chain oci.Chain, within func() error) (on, off time.Duration, err error) {
	ctx := context.Background()
	dir, err := b.sub("rw")
	if err != nil {
		return 0, 0, err
	}
	target, err := b.sub("at")
	if err != nil {
		return 0, 0, err
	}
	if err := d.CreateWritable(ctx, dir, chain); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := d.Mount(ctx, dir, chain, target, layer.MountOptions{}); err != nil {
		return 0, 0, err
	}
	on = time.Since(start)
	if within != nil {
		err = within()
	}
	start = time.Now()
	err = errors.Join(err, d.Unmount(ctx, target))
	off = time.Since(start)
	return on, off, errors.Join(err, d.RemoveWritable(ctx, dir))
}

// depth measures look-ups under N layers.
func (b *bench) depth() error {
	var rows [][]string
	for _, n := range []int{1, 10, 60, 100, 300} {
		err := b.withDriver(erofs.Options{}, func(d *erofs.Driver, root string) error {
			chain, err := stack(d, n)
			if err != nil {
				return err
			}
			target, err := b.sub("at")
			if err != nil {
				return err
			}
			if err := d.View(context.Background(), chain, target); err != nil {
				return err
			}
			var absent, again, bottom []time.Duration
			var st unix.Stat_t
			for i := range 200 {
				p := filepath.Join(target, "usr/lib", fmt.Sprintf("absent%d", i))
				for _, into := range []*[]time.Duration{&absent, &again} {
					start := time.Now()
					_ = unix.Lstat(p, &st)
					*into = append(*into, time.Since(start))
				}
			}
			for i := range min(n, 50) {
				start := time.Now()
				if err := unix.Lstat(filepath.Join(target, "usr/lib", fmt.Sprintf("only%d", i)), &st); err != nil {
					return err
				}
				bottom = append(bottom, time.Since(start))
			}
			rows = append(rows, []string{fmt.Sprint(n), show(median(absent)), show(median(again)), show(median(bottom))})
			return d.Unmount(context.Background(), target)
		})
		if err != nil {
			return err
		}
	}
	table("Look-ups under N layers that all have the directory", []string{"layers", "absent name, first", "absent name, again", "name of a low layer, first"}, rows)
	return nil
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

func show(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%.1f µs", float64(d)/1e3)
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/1e6)
}

// dropFile drops a file's clean pages from the page cache.
func dropFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func chainOf(hex string) oci.Chain { return oci.Chain{oci.DiffID("sha256:" + hex)} }
