package pull_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// forge returns a copy of an image whose manifest lists d as its only layer.
func forge(t *testing.T, img *remotetest.Image, d oci.Digest, size int64) *remotetest.Image {
	t.Helper()
	l := img.Layers[0]
	old, lie := fmt.Sprintf("%q,\n", l.Digest), fmt.Sprintf("%q,\n", d)
	text := string(img.Manifest)
	i := strings.Index(text, old)
	if i < 0 {
		t.Fatalf("the manifest does not list %s: %s", l.Digest, text)
	}
	text = text[:i] + lie + strings.Replace(text[i+len(old):], fmt.Sprint(l.Size), fmt.Sprint(size), 1)
	forged := *img
	forged.Manifest = []byte(text)
	return &forged
}

// A manifest can list any digest as a layer, with any size. That removes and changes nothing of other images.
func TestManifestCannotRemoveBlobs(t *testing.T) {
	good, evil, dst := remotetest.StartFake(t, false), remotetest.StartFake(t, false), remotetest.StartFake(t, false)
	victim := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 200_000), transfertest.Files(2, 1000))
	good.Add("victim", "1", victim)
	w := transfertest.New(t, transfertest.Options{})
	name := good.Addr() + "/victim:1"
	w.MustPull(name)
	w.AwaitRetention()
	blobs := map[string][]byte{"config": victim.Config, "manifest": victim.Manifest, "layer": victim.Layers[0].Blob, "upper layer": victim.Layers[1].Blob}
	for what, data := range blobs {
		d := oci.DigestOf(data)
		for i, size := range []int64{int64(len(data)), int64(len(data)) + 1, int64(len(data)) - 1, 1, 0, 1 << 30} {
			t.Run(fmt.Sprintf("%s of %d bytes", what, size), func(t *testing.T) {
				own := remotetest.Make(t, oci.FormatOCI, transfertest.Files(uint64(10+i), 3000))
				benign := remotetest.Make(t, oci.FormatOCI, transfertest.Files(uint64(40+i), 3000))
				evil.Add("r", "1", forge(t, own, d, size))
				evil.Add("r", "2", benign)
				evil.AddBlob("r", data)
				var group sync.WaitGroup
				group.Go(func() {
					if _, err := w.Pull(evil.Addr()+"/r:1", transfer.PullOptions{}); err == nil {
						t.Error("the pull of a manifest that lists a blob of another image succeeded")
					}
				})
				group.Go(func() {
					if _, err := w.Pull(evil.Addr()+"/r:2", transfer.PullOptions{}); err != nil {
						t.Errorf("a benign pull beside it: %v", err)
					}
				})
				group.Wait()
				w.AwaitRetention()
				for what, data := range blobs {
					if got, err := w.Store.Blobs.Bytes(oci.DigestOf(data), 1<<20); err != nil || !bytes.Equal(got, data) {
						t.Errorf("%s: %v", what, err)
					}
				}
			})
		}
	}
	w.Holds(name, victim)
	w.Tag(name, dst.Addr()+"/copy:1")
	if l := w.MustPush(dst.Addr()+"/copy:1", transfer.Credentials{}); !l.HasPushed(dst.Addr()+"/copy:1", victim.Manifest) {
		t.Errorf("push of the victim:\n%s", l.Text())
	}
}

// A config that names a compressed layer of another image leaves that layer alone too.
func TestConfigOfAManifestCannotRemoveBlobs(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	victim := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 200_000))
	reg.Add("victim", "1", victim)
	w := transfertest.New(t, transfertest.Options{})
	w.MustPull(reg.Addr() + "/victim:1")
	w.AwaitRetention()
	own := remotetest.Make(t, oci.FormatOCI, transfertest.Files(2, 3000))
	l := victim.Layers[0]
	for _, size := range []int64{l.Size, 5} {
		text := strings.Replace(string(own.Manifest), string(oci.DigestOf(own.Config)), string(l.Digest), 1)
		text = strings.Replace(text, fmt.Sprint(len(own.Config)), fmt.Sprint(size), 1)
		reg.AddManifest("victim", "evil", own.ManifestType, []byte(text))
		if _, err := w.Pull(reg.Addr()+"/victim:evil", transfer.PullOptions{}); err == nil {
			t.Error("a layer was taken as config")
		}
		if got, err := w.Store.Blobs.Bytes(l.Digest, 1<<20); err != nil || !bytes.Equal(got, l.Blob) {
			t.Errorf("the layer: %v", err)
		}
	}
}

// A compressed layer in the store whose own bytes are wrong is removed, reported and fetched again.
func TestDamagedCompressedLayerIsReplaced(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 200_000))
	reg.Add("r", "1", img)
	for name, damage := range map[string]func(b []byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"empty":   func(b []byte) []byte { return nil },
		"longer":  func(b []byte) []byte { return append(b, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			w := transfertest.New(t, transfertest.Options{})
			var removed []oci.Digest
			w.Store.Blobs.Damaged = func(d, got oci.Digest) { removed = append(removed, d) }
			l := img.Layers[0]
			path := filepath.Join(w.Root, "blobs", "sha256", l.Digest.Hex())
			if err := os.WriteFile(path, damage(bytes.Clone(l.Blob)), 0o600); err != nil {
				t.Fatal(err)
			}
			w.MustPull(reg.Addr() + "/r:1")
			w.Holds(reg.Addr()+"/r:1", img)
			if len(removed) != 1 || removed[0] != l.Digest {
				t.Errorf("removed %v, want %s", removed, l.Digest)
			}
			w.AwaitRetention()
			if got, err := w.Store.Blobs.Bytes(l.Digest, 1<<20); err != nil || !bytes.Equal(got, l.Blob) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	// The twin: a whole compressed layer is used and stays.
	w := transfertest.New(t, transfertest.Options{})
	if _, err := w.Store.Blobs.Put(img.Layers[0].Blob); err != nil {
		t.Fatal(err)
	}
	before := reg.Served(img.Layers[0].Digest)
	w.MustPull(reg.Addr() + "/r:1")
	if n := reg.Served(img.Layers[0].Digest); n != before {
		t.Errorf("%d bytes of a layer that is here were fetched", n-before)
	}
	if _, err := w.Store.Blobs.Stat(img.Layers[0].Digest); errors.Is(err, errs.NotFound) {
		t.Error("the layer is gone")
	}
}
