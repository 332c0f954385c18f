package registry

import (
	"bytes"
	"io"
	"os"
	"testing"
	"time"

	"ply/internal/compress"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// TestDrivers: pull, mount, push and pull again on every real driver; the image holds the same layer at two places.
func TestDrivers(t *testing.T) {
	dir := remotetest.LayerSpec{Files: []remotetest.File{{Name: "etc/"}, {Name: "etc/a", Data: []byte("a")}}}
	zstd := files(3, 100_000)
	zstd.Codec = compress.Zstd
	img := remotetest.Make(t, oci.FormatOCI, dir, files(1, 2_000_000), dir, zstd)
	reg := remotetest.Start(t, remotetest.Options{})
	remotetest.Put(t, "http://"+reg.Addr, "r", "1", img, "", "")
	for name := range drivers {
		t.Run(name, func(t *testing.T) {
			st := realStore(t, name, store.Options{Retain: store.RetainNever})
			defer func() {
				if err := st.Close(); err != nil {
					t.Error(err)
				}
			}()
			images := image.New(st, image.Options{})
			c := New(st, images, Options{})
			defer c.Close()
			from := ref(t, reg.Addr+"/r:1")
			if err := c.Pull(t.Context(), from, transfer.PullOptions{}, transfer.Discard); err != nil {
				t.Fatal(err)
			}
			var chain oci.Chain
			for _, l := range img.Layers {
				chain = append(chain, l.DiffID)
				r, err := st.Layers.Tar(t.Context(), chain)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, l.Tar) {
					t.Errorf("layer %s: tar differs: %v", l.DiffID.Short(), err)
				}
				r.Close()
			}
			target := t.TempDir()
			if err := st.Layers.View(t.Context(), chain, target); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(target + "/etc/a"); err != nil || string(b) != "a" {
				t.Errorf("mounted: %q, %v", b, err)
			}
			if err := st.Layers.Unmount(t.Context(), target); err != nil {
				t.Error(err)
			}
			to := ref(t, reg.Addr+"/copy-"+name+":1")
			if err := images.Tag(t.Context(), from.String(), to); err != nil {
				t.Fatal(err)
			}
			l := &lines{}
			if err := c.Push(t.Context(), to, transfer.PushOptions{}, l.sink); err != nil {
				t.Fatal(err)
			}
			if !l.has(digestLine("1", img.Manifest)) {
				t.Errorf("push:\n%s", l.text())
			}
			start := time.Now()
			again := &lines{}
			if err := c.Pull(t.Context(), from, transfer.PullOptions{}, again.sink); err != nil || !again.has("Status: Image is up to date for "+from.Familiar()) {
				t.Errorf("second pull: %v\n%s", err, again.text())
			}
			t.Logf("second pull with verification: %v", time.Since(start))
		})
	}
}
