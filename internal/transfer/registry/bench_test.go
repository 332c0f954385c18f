package registry

import (
	"fmt"
	"testing"

	"ply/internal/durable"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer"
	"ply/internal/store/layer/erofs"
	"ply/internal/store/layer/overlay2"
	"ply/internal/store/layer/vfs"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// drivers opens every real driver on a root; those that do not work on this machine's temporary directory say why.
var drivers = map[string]func(root string) (layer.Driver, error){
	"erofs":    func(root string) (layer.Driver, error) { return erofs.Open(durable.OS, root, erofs.Options{}) },
	"overlay2": func(root string) (layer.Driver, error) { return overlay2.Open(durable.OS, root, overlay2.Options{}) },
	"vfs":      func(root string) (layer.Driver, error) { return vfs.Open(durable.OS, root, vfs.Options{}) },
}

func realStore(t testing.TB, name string, opts store.Options) *store.Store {
	t.Helper()
	root := t.TempDir()
	d, err := drivers[name](root)
	if err != nil {
		t.Fatalf("driver %s: %v", name, err)
	}
	st, err := store.Open(root, d, opts)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// halfNoise is data that gzip makes about half as big, as the files of real images.
func halfNoise(seed uint64, n int) []byte {
	b := remotetest.Noise(seed, n)
	for i := range b {
		b[i] &= 0x0f
	}
	return b
}

func benchImage(t testing.TB, layers, files, size int) *remotetest.Image {
	t.Helper()
	var specs []remotetest.LayerSpec
	for l := range layers {
		s := remotetest.LayerSpec{Files: []remotetest.File{{Name: fmt.Sprintf("d%d/", l)}}}
		for f := range files {
			s.Files = append(s.Files, remotetest.File{Name: fmt.Sprintf("d%d/f%d", l, f), Data: halfNoise(uint64(l*files+f), size)})
		}
		specs = append(specs, s)
	}
	return remotetest.Make(t, oci.FormatDocker, specs...)
}

// BenchmarkPull is one pull of an image of 4 layers with 32 MiB of files each from a docker-registry on loopback into an empty store.
// MB/s counts the uncompressed tars.
func BenchmarkPull(b *testing.B) {
	img := benchImage(b, 4, 128, 256<<10)
	var tars int64
	for _, l := range img.Layers {
		tars += int64(len(l.Tar))
	}
	reg := remotetest.Start(b, remotetest.Options{})
	remotetest.Put(b, "http://"+reg.Addr, "bench", "1", img, "", "")
	for name := range drivers {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(tars)
			for b.Loop() {
				b.StopTimer()
				st := realStore(b, name, store.Options{})
				c := New(st, image.New(st, image.Options{}), Options{})
				b.StartTimer()
				if err := c.Pull(b.Context(), ref(b, reg.Addr+"/bench:1"), transfer.PullOptions{}, transfer.Discard); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				if err := st.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPush is the push of the same image, made here, to an empty repository: compression included.
func BenchmarkPush(b *testing.B) {
	img := benchImage(b, 4, 128, 256<<10)
	var tars int64
	for _, l := range img.Layers {
		tars += int64(len(l.Tar))
	}
	w := newWorld(b, Options{})
	w.made("bench", oci.FormatDocker, img)
	b.SetBytes(tars)
	for b.Loop() {
		b.StopTimer()
		reg := remotetest.Start(b, remotetest.Options{})
		name := reg.Addr + "/bench:1"
		w.tag("bench", name)
		b.StartTimer()
		if err := w.c.Push(b.Context(), ref(b, name), transfer.PushOptions{}, transfer.Discard); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		reg.Stop()
		b.StartTimer()
	}
}
