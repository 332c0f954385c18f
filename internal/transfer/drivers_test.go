package transfer_test

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
	"ply/internal/store/layer/drivers"
	"ply/internal/transfer"
	"ply/internal/transfer/pull"
	"ply/internal/transfer/push"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// Pull, mount, push and pull again on every storage driver. The image has the same layer twice.
func TestStorageDrivers(t *testing.T) {
	dir := remotetest.LayerSpec{Files: []remotetest.File{{Name: "etc/"}, {Name: "etc/a", Data: []byte("a")}}}
	zstd := transfertest.Files(3, 100_000)
	zstd.Codec = compress.Zstd
	img := remotetest.Make(t, oci.FormatOCI, dir, transfertest.Files(1, 2_000_000), dir, zstd)
	reg := remotetest.Start(t, remotetest.Options{})
	remotetest.Put(t, "http://"+reg.Addr, "r", "1", img, "", "")
	for _, name := range drivers.Names() {
		t.Run(name, func(t *testing.T) {
			st := realStore(t, name, store.Options{Retain: store.RetainNever})
			defer func() {
				if err := st.Close(); err != nil {
					t.Error(err)
				}
			}()
			images := image.New(st, image.Options{})
			client := remote.New(remote.Options{})
			defer client.Close()
			puller := pull.New(st, images, client, pull.Options{})
			defer puller.Close()
			pusher := push.New(st, images, client, push.Options{})
			from := transfertest.Ref(t, reg.Addr+"/r:1")
			if err := puller.Pull(t.Context(), from, transfer.PullOptions{}, transfer.Discard); err != nil {
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
			to := transfertest.Ref(t, reg.Addr+"/copy-"+name+":1")
			if err := images.Tag(t.Context(), from.String(), to); err != nil {
				t.Fatal(err)
			}
			l := &transfertest.Lines{}
			if err := pusher.Push(t.Context(), to, transfer.PushOptions{}, l.Sink); err != nil {
				t.Fatal(err)
			}
			if !l.HasPushed(to.Familiar(), img.Manifest) {
				t.Errorf("push:\n%s", l.Text())
			}
			start := time.Now()
			again := &transfertest.Lines{}
			if err := puller.Pull(t.Context(), from, transfer.PullOptions{}, again.Sink); err != nil || !again.Has(transfer.UpToDate, from.Familiar()) {
				t.Errorf("second pull: %v\n%s", err, again.Text())
			}
			t.Logf("second pull with verification: %v", time.Since(start))
		})
	}
}
