package transfer_test

import (
	"fmt"
	"testing"

	"ply/internal/durable"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/store/layer/drivers"
	"ply/internal/transfer"
	"ply/internal/transfer/pull"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// realStore opens an empty store on a real storage driver.
func realStore(t testing.TB, name string, opts store.Options) *store.Store {
	t.Helper()
	root := t.TempDir()
	d, _, err := drivers.Open(durable.OS, root, name)
	if err != nil {
		t.Fatalf("driver %s: %v", name, err)
	}
	st, err := store.Open(root, d, opts)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// halfNoise returns data that gzip makes about half as big, as it does with the files of real images.
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

// BenchmarkPull pulls an image of 4 layers, with 32 MiB of files each, from a docker-registry on loopback into an empty store. MB/s
// is of the uncompressed tars.
func BenchmarkPull(b *testing.B) {
	img := benchImage(b, 4, 128, 256<<10)
	var tars int64
	for _, l := range img.Layers {
		tars += int64(len(l.Tar))
	}
	reg := remotetest.Start(b, remotetest.Options{})
	remotetest.Put(b, "http://"+reg.Addr, "bench", "1", img, "", "")
	for _, name := range drivers.Names() {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(tars)
			for b.Loop() {
				b.StopTimer()
				st := realStore(b, name, store.Options{})
				client := remote.New(remote.Options{})
				p := pull.New(st, image.New(st, image.Options{}), client, pull.Options{})
				b.StartTimer()
				if err := p.Pull(b.Context(), transfertest.Ref(b, reg.Addr+"/bench:1"), transfer.PullOptions{}, transfer.Discard); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				p.Close()
				client.Close()
				if err := st.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPush pushes the same image, which was made here and has to be compressed, to an empty repository.
func BenchmarkPush(b *testing.B) {
	img := benchImage(b, 4, 128, 256<<10)
	var tars int64
	for _, l := range img.Layers {
		tars += int64(len(l.Tar))
	}
	w := transfertest.New(b, transfertest.Options{})
	w.Make("bench", oci.FormatDocker, img)
	b.SetBytes(tars)
	for b.Loop() {
		b.StopTimer()
		reg := remotetest.Start(b, remotetest.Options{})
		name := reg.Addr + "/bench:1"
		w.Tag("bench", name)
		b.StartTimer()
		if err := w.Pusher.Push(b.Context(), transfertest.Ref(b, name), transfer.PushOptions{}, transfer.Discard); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		reg.Stop()
		b.StartTimer()
	}
}
