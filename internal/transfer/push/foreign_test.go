package push_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// An image whose layers were here already can list any digest in its manifest. A push of it sends no content of another image
// to the registry, and removes none.
func TestPushSendsNothingOfAnotherImage(t *testing.T) {
	src := remotetest.StartFake(t, false)
	private := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 5000))
	base := remotetest.Make(t, oci.FormatOCI, transfertest.Files(2, 5000))
	evil := remotetest.Make(t, oci.FormatDocker, transfertest.Files(2, 5000))
	src.Add("private", "1", private)
	src.Add("base", "1", base)
	src.Add("evil", "1", evil)
	blobs := map[string][]byte{"config": private.Config, "manifest": private.Manifest, "layer": private.Layers[0].Blob}

	var leaked atomic.Bool
	for what, secret := range blobs {
		for _, size := range []int{len(secret), len(secret) + 1} {
			dst := remotetest.StartFake(t, false)
			dst.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
				b, err := io.ReadAll(r.Body)
				for _, secret := range blobs {
					if err != nil || bytes.Contains(b, secret) {
						leaked.Store(true)
					}
				}
				r.Body = io.NopCloser(bytes.NewReader(b))
				return false
			}
			w := transfertest.New(t, transfertest.Options{})
			w.MustPull(src.Addr() + "/private:1")
			w.MustPull(src.Addr() + "/base:1")
			w.AwaitRetention()
			l := evil.Layers[0]
			i := strings.Index(string(evil.Manifest), `"layers"`)
			text := strings.Replace(string(evil.Manifest[i:]), string(l.Digest), string(oci.DigestOf(secret)), 1)
			text = strings.Replace(text, fmt.Sprint(l.Size), fmt.Sprint(size), 1)
			src.AddManifest("evil", "1", evil.ManifestType, []byte(string(evil.Manifest[:i])+text))
			w.MustPull(src.Addr() + "/evil:1")
			w.Tag(src.Addr()+"/evil:1", dst.Addr()+"/evil:1")
			w.MustPush(dst.Addr()+"/evil:1", transfer.Credentials{})
			if leaked.Swap(false) {
				t.Errorf("the %s of another image was sent", what)
			}
			for what, data := range blobs {
				if got, err := w.Store.Blobs.Bytes(oci.DigestOf(data), 1<<20); err != nil || !bytes.Equal(got, data) {
					t.Errorf("the %s of another image: %v", what, err)
				}
			}
		}
	}
}
