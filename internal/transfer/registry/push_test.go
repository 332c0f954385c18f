package registry

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// tag gives an image another name, as `tag` does.
func (w *world) tag(from, to string) {
	w.t.Helper()
	if err := w.images.Tag(w.t.Context(), from, ref(w.t, to)); err != nil {
		w.t.Fatal(err)
	}
}

// made puts an image into the store that no registry ever saw, as commit and build do.
func (w *world) made(name string, format oci.Format, img *remotetest.Image) {
	w.t.Helper()
	ctx := w.t.Context()
	lease := w.st.Lease()
	defer lease.Release()
	var chain oci.Chain
	for _, l := range img.Layers {
		lw, err := w.driver.Create(ctx)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := lw.Write(l.Tar); err != nil {
			w.t.Fatal(err)
		}
		info, err := lw.Commit(ctx, chain, l.DiffID)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.st.RecordLayer(info, nil); err != nil {
			w.t.Fatal(err)
		}
		chain = append(chain, l.DiffID)
	}
	if _, err := w.images.Put(ctx, lease, image.PutOptions{Config: img.Config, Format: format, Names: []oci.Reference{ref(w.t, name)}}); err != nil {
		w.t.Fatal(err)
	}
}

func digestLine(tag string, data []byte) string {
	return tag + ": digest: " + string(oci.DigestOf(data)) + " size: " + itoa(len(data))
}

// TestPushKeepsDigests: pull, push elsewhere, pull there: the same bytes, whatever the format and whether or not the
// compressed layers were kept.
func TestPushKeepsDigests(t *testing.T) {
	src, dst := remotetest.Start(t, remotetest.Options{}), remotetest.Start(t, remotetest.Options{})
	zstd := files(3, 40_000)
	zstd.Codec = compress.Zstd
	for name, img := range map[string]*remotetest.Image{
		"docker": remotetest.Make(t, oci.FormatDocker, files(1, 10, 2_000_000), files(2, 50)),
		"oci":    remotetest.Make(t, oci.FormatOCI, files(1, 10, 200_000), zstd),
	} {
		for _, retain := range []store.Retain{store.RetainAuto, store.RetainNever} {
			t.Run(name+"-"+string(retain), func(t *testing.T) {
				repo := name + "-" + string(retain)
				remotetest.Put(t, "http://"+src.Addr, repo, "1", img, "", "")
				w := newWorld(t, Options{}, store.Options{Retain: retain})
				w.mustPull(src.Addr + "/" + repo + ":1")
				w.c.work.Wait()
				w.tag(src.Addr+"/"+repo+":1", dst.Addr+"/"+repo+":2")
				l := w.mustPush(dst.Addr+"/"+repo+":2", transfer.Credentials{})
				if !l.has("The push refers to repository ["+dst.Addr+"/"+repo+"]") || !l.has(digestLine("2", img.Manifest)) {
					t.Errorf("progress:\n%s", l.text())
				}
				if d := cmp.Diff([]any{transfer.PushResult{Tag: "2", Digest: img.Digest(), Size: len(img.Manifest)}}, l.aux); d != "" {
					t.Error(d)
				}
				other := newWorld(t, Options{})
				other.mustPull(dst.Addr + "/" + repo + ":2")
				other.holds(dst.Addr+"/"+repo+":2", img)
				w.holds(dst.Addr+"/"+repo+"@"+string(img.Digest()), img)

				l = w.mustPush(dst.Addr+"/"+repo+":2", transfer.Credentials{})
				for _, layer := range img.Layers {
					if !l.has(layer.DiffID.Short() + ": Layer already exists") {
						t.Errorf("second push:\n%s", l.text())
					}
				}
			})
		}
	}
}

func TestPushMade(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	img := remotetest.Make(t, oci.FormatOCI, files(1, 3_000_000), files(2, 50))
	for _, format := range []oci.Format{oci.FormatDocker, oci.FormatOCI} {
		t.Run(string(format), func(t *testing.T) {
			w := newWorld(t, Options{})
			name := reg.Addr + "/mhk/" + string(format) + ":1.3"
			w.made(name, format, img)
			l := w.mustPush(name, transfer.Credentials{})
			a, b := img.Layers[0].DiffID.Short(), img.Layers[1].DiffID.Short()
			if !strings.HasPrefix(l.text(), "The push refers to repository ["+reg.Addr+"/mhk/"+string(format)+"]\n"+b+": Preparing\n"+a+": Preparing\n") {
				t.Errorf("progress:\n%s", l.text())
			}
			if !l.has(a+": Pushed") || !l.has(b+": Pushed") {
				t.Errorf("progress:\n%s", l.text())
			}
			_, h, body := reg.Get(t, "/v2/mhk/"+string(format)+"/manifests/1.3", false, oci.MediaTypeDockerManifest+","+oci.MediaTypeOCIManifest)
			if !l.has(digestLine("1.3", body)) {
				t.Errorf("digest line is not of what the registry has:\n%s", l.text())
			}
			m, err := oci.DecodeManifest(body, h.Get("Content-Type"))
			if err != nil || oci.FormatOf(m.MediaType) != format {
				t.Fatalf("manifest: %v\n%s", err, body)
			}
			other := newWorld(t, Options{})
			other.mustPull(name)
			got, err := other.images.Get(t.Context(), name)
			if err != nil || got.ID != img.ID() {
				t.Errorf("image %v, %v, want %s", got, err, img.ID())
			}
			for _, l := range img.Layers {
				other.driver.sameTar(t, l.DiffID, l.Tar)
			}
			// A second push of the same layers to another repository moves no bytes.
			w.tag(name, reg.Addr+"/other/"+string(format)+":1")
			l = w.mustPush(reg.Addr+"/other/"+string(format)+":1", transfer.Credentials{})
			if !l.has(a+": Mounted from mhk/"+string(format)) || !l.has(digestLine("1", body)) {
				t.Errorf("second repository:\n%s", l.text())
			}
		})
	}
}

// TestDockerManifestBytes holds the schema 2 form to docker's: for two layers and sizes of the usual number of digits it
// is 741 bytes long.
func TestDockerManifestBytes(t *testing.T) {
	d := oci.DigestOf([]byte("x"))
	img := &image.Image{ID: oci.ImageID(d), Raw: make([]byte, 2000)}
	data, mediaType, err := makeManifest(oci.FormatDocker, img, []oci.Descriptor{
		{MediaType: oci.MediaTypeOCILayerGzip, Digest: d, Size: 28_568_000},
		{MediaType: oci.MediaTypeDockerLayerGzip, Digest: d, Size: 60_000_000},
	})
	if err != nil || mediaType != oci.MediaTypeDockerManifest {
		t.Fatal(mediaType, err)
	}
	want := `{
   "schemaVersion": 2,
   "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
   "config": {
      "mediaType": "application/vnd.docker.container.image.v1+json",
      "size": 2000,
      "digest": "` + string(d) + `"
   },
   "layers": [
      {
         "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
         "size": 28568000,
         "digest": "` + string(d) + `"
      },
      {
         "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
         "size": 60000000,
         "digest": "` + string(d) + `"
      }
   ]
}`
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Error(diff)
	}
	if len(data) != 741 {
		t.Errorf("length %d, want 741", len(data))
	}
}

func TestPushSchema2WhenOCIRefused(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.Header.Get("Content-Type"), "oci") {
			remotetest.Refuse(w, http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid")
			return true
		}
		return false
	}
	w := newWorld(t, Options{})
	name := reg.Addr() + "/r:1"
	w.made(name, oci.FormatOCI, remotetest.Make(t, oci.FormatOCI, files(1, 100)))
	l := w.mustPush(name, transfer.Credentials{})
	mediaType, data := reg.Manifest("r", "1")
	if mediaType != oci.MediaTypeDockerManifest || !l.has(digestLine("1", data)) {
		t.Errorf("%s\n%s", mediaType, l.text())
	}
}

func TestPushRefetchesFromSource(t *testing.T) {
	// Compressed elsewhere and not kept here: only the registry it came from can give the same bytes again.
	src, dst := remotetest.StartFake(t, false), remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, files(1, 3_000_000))
	src.Add("r", "1", img)
	w := newWorld(t, Options{}, store.Options{Retain: store.RetainNever})
	w.mustPull(src.Addr() + "/r:1")
	w.c.work.Wait()
	w.tag(src.Addr()+"/r:1", dst.Addr()+"/r:1")
	l := w.mustPush(dst.Addr()+"/r:1", transfer.Credentials{})
	if !l.has(digestLine("1", img.Manifest)) {
		t.Errorf("digest changed:\n%s", l.text())
	}
	// The registry that was heard of last is gone: the one before still has it.
	dst.Close()
	next := remotetest.StartFake(t, false)
	w.tag(src.Addr()+"/r:1", next.Addr()+"/r:1")
	if l = w.mustPush(next.Addr()+"/r:1", transfer.Credentials{}); !l.has(digestLine("1", img.Manifest)) {
		t.Errorf("digest changed:\n%s", l.text())
	}

	// And when nobody can, the user hears that the digest differs.
	src.DropBlobs()
	third := remotetest.StartFake(t, false)
	w2 := newWorld(t, Options{}, store.Options{Retain: store.RetainNever})
	src.Add("r", "1", img)
	w2.mustPull(src.Addr() + "/r:1")
	w2.c.work.Wait()
	src.Close()
	w2.tag(src.Addr()+"/r:1", third.Addr()+"/r:1")
	l = w2.mustPush(third.Addr()+"/r:1", transfer.Credentials{})
	_, data := third.Manifest("r", "1")
	if !l.has(digestLine("1", data)) || !strings.Contains(l.text(), "differs from the one pulled, "+string(img.Digest())) {
		t.Errorf("progress:\n%s", l.text())
	}
	var m oci.Manifest
	if err := json.Unmarshal(data, &m); err != nil || len(m.Layers) != 1 || third.Blob("r", m.Layers[0].Digest) == nil {
		t.Errorf("manifest %s: %v", data, err)
	}
}

// TestPushResumes: the connection breaks amid uploads; what the registry has is not sent again.
func TestPushResumes(t *testing.T) {
	for name, retain := range map[string]store.Retain{"kept blob": store.RetainAlways, "compressed while sent": store.RetainNever} {
		t.Run(name, func(t *testing.T) {
			reg := remotetest.StartFake(t, false)
			var breaks atomic.Int64
			reg.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPatch && breaks.Add(1) <= 3 {
					// The registry keeps what it got and the line drops.
					r.Body = &breakingBody{r.Body, 700_000}
				}
				return false
			}
			w := newWorld(t, Options{}, store.Options{Retain: retain})
			img := remotetest.Make(t, oci.FormatOCI, files(1, 8_000_000))
			to := reg.Addr() + "/r:1"
			if retain == store.RetainAlways {
				src := remotetest.StartFake(t, false)
				src.Add("r", "1", img)
				w.mustPull(src.Addr() + "/r:1")
				w.c.work.Wait()
				w.tag(src.Addr()+"/r:1", to)
			} else {
				w.made(to, oci.FormatOCI, img)
			}
			w.mustPush(to, transfer.Credentials{})
			_, data := reg.Manifest("r", "1")
			m, err := oci.DecodeManifest(data, "")
			if err != nil {
				t.Fatal(err)
			}
			if n := reg.Received(); float64(n) > 1.1*float64(m.Layers[0].Size+m.Config.Size) {
				t.Errorf("sent %d bytes for a layer of %d", n, m.Layers[0].Size)
			}
			if breaks.Load() < 4 {
				t.Errorf("%d uploads, want some that broke", breaks.Load())
			}
		})
	}
}

// breakingBody lets some bytes through, then fails.
type breakingBody struct {
	io.ReadCloser
	left int
}

func (b *breakingBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

func TestPushErrors(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{Htpasswd: true})
	w := newWorld(t, Options{})
	push := func(name string, cred transfer.Credentials) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return w.c.Push(ctx, ref(t, name), transfer.PushOptions{Credentials: cred}, transfer.Discard)
	}
	wantClass(t, push(reg.Addr+"/none:1", transfer.Credentials{}), errs.NotFound, "An image does not exist locally with the tag: "+reg.Addr+"/none")
	w.made(reg.Addr+"/r:1", oci.FormatOCI, remotetest.Make(t, oci.FormatOCI, files(1, 100)))
	wantClass(t, push(reg.Addr+"/r:1", transfer.Credentials{}), errs.Unauthorized, "no basic auth credentials", "ply login "+reg.Addr)
	wantClass(t, push(reg.Addr+"/r:1", transfer.Credentials{Username: remotetest.User, Password: "wrong"}), errs.Unauthorized, "unauthorized")
	if err := push(reg.Addr+"/r:1", transfer.Credentials{Username: remotetest.User, Password: remotetest.Password}); err != nil {
		t.Error(err)
	}
	free := remotetest.FreeAddr(t)
	w.tag(reg.Addr+"/r:1", free+"/r:1")
	wantClass(t, push(free+"/r:1", transfer.Credentials{}), errs.Unavailable, "connection refused")
}
