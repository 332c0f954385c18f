package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/oci"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
)

const pieces = 3000

// cold mounts a chain whose layers are not in the page cache and returns the mount point.
func (b *bench) cold(d *erofs.Driver, root string, chain oci.Chain) (string, error) {
	for _, id := range chain {
		if err := dropFile(filepath.Join(root, "layers/sha256", id.Hex(), "layer.tar")); err != nil {
			return "", err
		}
	}
	target, err := b.sub("at")
	if err != nil {
		return "", err
	}
	return target, d.View(context.Background(), chain, target)
}

// reads compares layers read directly and through the page cache with a plain file.
func (b *bench) reads() error {
	var rows [][]string
	plain := filepath.Join(b.dir, "plain")
	if err := writePlain(plain, b.size); err != nil {
		return err
	}
	measure := func(name string, get func() (string, func() error, error)) error {
		var seq, random, warm []time.Duration
		for range 5 {
			for _, r := range []struct {
				do   func(string) (time.Duration, error)
				into *[]time.Duration
			}{{sequential, &seq}, {mapped, &random}} {
				p, done, err := get()
				if err != nil {
					return err
				}
				took, err := r.do(p)
				if err != nil {
					return err
				}
				*r.into = append(*r.into, took)
				if r.into == &seq {
					w, err := sequential(p)
					if err != nil {
						return err
					}
					warm = append(warm, w)
				}
				if err := done(); err != nil {
					return err
				}
			}
		}
		rows = append(rows, []string{name, show(median(seq)), show(median(random)), show(median(warm))})
		return nil
	}
	err := measure("plain file", func() (string, func() error, error) {
		return plain, func() error { return nil }, dropFile(plain)
	})
	if err != nil {
		return err
	}
	for _, buffered := range []bool{false, true} {
		name := map[bool]string{false: "EROFS, direct", true: "EROFS, buffered"}[buffered]
		err := b.withDriver(erofs.Options{Buffered: buffered, IdleMounts: -1}, func(d *erofs.Driver, root string) error {
			chain, err := put(d, nil, 7, []file{{"small", 100}, {"big", b.size}})
			if err != nil {
				return err
			}
			return measure(name, func() (string, func() error, error) {
				target, err := b.cold(d, root, chain)
				return filepath.Join(target, "big"), func() error { return d.Unmount(context.Background(), target) }, err
			})
		})
		if err != nil {
			return err
		}
	}
	table(fmt.Sprintf("Reading one file of %d MiB", b.size>>20), []string{"", "cold, sequential", fmt.Sprintf("cold, %d random pages by mmap", pieces), "warm, sequential"}, rows)
	return nil
}

func writePlain(name string, size int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{9}), int64(size)); err != nil {
		return err
	}
	return f.Sync()
}

func sequential(name string) (time.Duration, error) {
	start := time.Now()
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		if _, err := f.Read(buf); err == io.EOF {
			return time.Since(start), nil
		} else if err != nil {
			return 0, err
		}
	}
}

func mapped(name string) (time.Duration, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	r := rand.New(rand.NewPCG(1, 2))
	var sum byte
	for range pieces {
		sum += m[r.IntN(len(m))]
	}
	took := time.Since(start)
	runtime.KeepAlive(sum) // or nothing would be read
	return took, unix.Munmap(m)
}

// memory measures the page cache after 50 containers of one image have read the same files.
func (b *bench) memory() error {
	const containers = 50
	files := make([]file, 400)
	for i := range files {
		files[i] = file{fmt.Sprintf("usr/lib/f%d", i), 160 << 10}
	}
	var rows [][]string
	for _, buffered := range []bool{false, true} {
		err := b.withDriver(erofs.Options{Buffered: buffered}, func(d *erofs.Driver, root string) error {
			chain, err := put(d, nil, 3, files)
			if err != nil {
				return err
			}
			if err := dropFile(filepath.Join(root, "layers/sha256", chain[0].Hex(), "layer.tar")); err != nil {
				return err
			}
			var used [3]meminfo // before, after one, after all
			var targets []string
			for i := range containers {
				if i == 0 {
					if used[0], err = readMeminfo(); err != nil {
						return err
					}
				}
				target, err := b.startContainer(d, chain)
				if err != nil {
					return err
				}
				targets = append(targets, target)
				for _, f := range files {
					if _, err := sequential(filepath.Join(target, f.name)); err != nil {
						return err
					}
				}
				if i == 0 {
					if used[1], err = readMeminfo(); err != nil {
						return err
					}
				}
			}
			if used[2], err = readMeminfo(); err != nil {
				return err
			}
			rows = append(rows, []string{
				map[bool]string{false: "direct", true: "buffered"}[buffered],
				fmt.Sprintf("%d MiB", (used[1].cached-used[0].cached)>>10), fmt.Sprintf("%d MiB", (used[2].cached-used[0].cached)>>10),
				fmt.Sprintf("%.1f MiB", float64(used[2].slab-used[1].slab)/1024),
			})
			for _, t := range targets {
				if err := d.Unmount(context.Background(), t); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	table(fmt.Sprintf("Page cache when %d containers of one image each read the same %d MiB", containers, 400*160>>10),
		[]string{"layers", "after the first", "after all", "kernel structures of the others"}, rows)
	return nil
}

func (b *bench) startContainer(d *erofs.Driver, chain oci.Chain) (string, error) {
	dir, err := b.sub("rw")
	if err != nil {
		return "", err
	}
	target, err := b.sub("at")
	if err != nil {
		return "", err
	}
	if err := d.CreateWritable(context.Background(), dir, chain); err != nil {
		return "", err
	}
	return target, d.Mount(context.Background(), dir, chain, target, layer.MountOptions{})
}

// meminfo returns values in KiB.
type meminfo struct{ cached, slab int }

func readMeminfo() (m meminfo, err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return m, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.Atoi(fields[1])
		switch fields[0] {
		case "Cached:":
			m.cached = n
		case "Slab:":
			m.slab = n
		}
	}
	return m, nil
}
