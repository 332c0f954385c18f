package push_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// An image that was pulled is pushed to another registry byte for byte, in every format, whether or not its compressed layers were
// kept.
func TestPushKeepsDigests(t *testing.T) {
	src, dst := remotetest.Start(t, remotetest.Options{}), remotetest.Start(t, remotetest.Options{})
	zstd := transfertest.Files(3, 40_000)
	zstd.Codec = compress.Zstd
	for name, img := range map[string]*remotetest.Image{
		"docker": remotetest.Make(t, oci.FormatDocker, transfertest.Files(1, 10, 2_000_000), transfertest.Files(2, 50)),
		"oci":    remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 10, 200_000), zstd),
	} {
		for _, retain := range []store.Retain{store.RetainAuto, store.RetainNever} {
			t.Run(name+"-"+string(retain), func(t *testing.T) {
				repo := name + "-" + string(retain)
				remotetest.Put(t, "http://"+src.Addr, repo, "1", img, "", "")
				w := transfertest.New(t, transfertest.Options{Store: store.Options{Retain: retain}})
				w.MustPull(src.Addr + "/" + repo + ":1")
				w.AwaitRetention()
				w.Tag(src.Addr+"/"+repo+":1", dst.Addr+"/"+repo+":2")
				l := w.MustPush(dst.Addr+"/"+repo+":2", transfer.Credentials{})
				if !l.Has(transfer.PushStarted, dst.Addr+"/"+repo) || !l.HasPushed(dst.Addr+"/"+repo+":2", img.Manifest) {
					t.Errorf("progress:\n%s", l.Text())
				}
				if n := strings.Count(l.Text(), transfer.ManifestPushed.String()); n != 1 {
					t.Errorf("the push ended %d times:\n%s", n, l.Text())
				}
				other := transfertest.New(t, transfertest.Options{})
				other.MustPull(dst.Addr + "/" + repo + ":2")
				other.Holds(dst.Addr+"/"+repo+":2", img)
				w.Holds(dst.Addr+"/"+repo+"@"+string(img.Digest()), img)

				l = w.MustPush(dst.Addr+"/"+repo+":2", transfer.Credentials{})
				for _, layer := range img.Layers {
					if !l.Has(transfer.LayerPresent, layer.DiffID.Short()) {
						t.Errorf("second push:\n%s", l.Text())
					}
				}
			})
		}
	}
}

func TestPushOfAnImageMadeHere(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 3_000_000), transfertest.Files(2, 50))
	for _, format := range []oci.Format{oci.FormatDocker, oci.FormatOCI} {
		t.Run(string(format), func(t *testing.T) {
			w := transfertest.New(t, transfertest.Options{})
			name := reg.Addr + "/mhk/" + string(format) + ":1.3"
			w.Make(name, format, img)
			l := w.MustPush(name, transfer.Credentials{})
			a, b := img.Layers[0].DiffID.Short(), img.Layers[1].DiffID.Short()
			if !strings.HasPrefix(l.Text(), "PushStarted "+reg.Addr+"/mhk/"+string(format)+"\nLayerPreparing "+b+"\nLayerPreparing "+a+"\n") {
				t.Errorf("progress:\n%s", l.Text())
			}
			if !l.Has(transfer.LayerPushed, a) || !l.Has(transfer.LayerPushed, b) {
				t.Errorf("progress:\n%s", l.Text())
			}
			_, h, body := reg.Get(t, "/v2/mhk/"+string(format)+"/manifests/1.3", false, oci.MediaTypeDockerManifest+","+oci.MediaTypeOCIManifest)
			if !l.HasPushed(name, body) {
				t.Errorf("digest line is not of what the registry has:\n%s", l.Text())
			}
			m, err := oci.DecodeManifest(body, h.Get("Content-Type"))
			if err != nil || oci.FormatOf(m.MediaType) != format {
				t.Fatalf("manifest: %v\n%s", err, body)
			}
			other := transfertest.New(t, transfertest.Options{})
			other.MustPull(name)
			got, err := other.Images.Get(t.Context(), name)
			if err != nil || got.ID != img.ID() {
				t.Errorf("image %v, %v, want %s", got, err, img.ID())
			}
			for _, l := range img.Layers {
				other.SameTar(l.DiffID, l.Tar)
			}
			// A push of the same layers to another repository of the registry sends no layer.
			w.Tag(name, reg.Addr+"/other/"+string(format)+":1")
			l = w.MustPush(reg.Addr+"/other/"+string(format)+":1", transfer.Credentials{})
			if !l.Has(transfer.LayerMounted, a, "mhk/"+string(format)) || !l.HasPushed(reg.Addr+"/other/"+string(format)+":1", body) {
				t.Errorf("second repository:\n%s", l.Text())
			}
		})
	}
}

func TestPushSchema2WhenOCIIsRefused(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.Header.Get("Content-Type"), "oci") {
			remotetest.Refuse(w, http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid")
			return true
		}
		return false
	}
	w := transfertest.New(t, transfertest.Options{})
	name := reg.Addr() + "/r:1"
	w.Make(name, oci.FormatOCI, remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100)))
	l := w.MustPush(name, transfer.Credentials{})
	mediaType, data := reg.Manifest("r", "1")
	if mediaType != oci.MediaTypeDockerManifest || !l.HasPushed(name, data) {
		t.Errorf("%s\n%s", mediaType, l.Text())
	}
}

// A layer that was compressed elsewhere and is not kept here is sent from a registry that has it.
func TestPushFromAnotherRegistry(t *testing.T) {
	src, dst := remotetest.StartFake(t, false), remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 3_000_000))
	src.Add("r", "1", img)
	w := transfertest.New(t, transfertest.Options{Store: store.Options{Retain: store.RetainNever}})
	w.MustPull(src.Addr() + "/r:1")
	w.AwaitRetention()
	w.Tag(src.Addr()+"/r:1", dst.Addr()+"/r:1")
	l := w.MustPush(dst.Addr()+"/r:1", transfer.Credentials{})
	if !l.HasPushed(dst.Addr()+"/r:1", img.Manifest) {
		t.Errorf("digest changed:\n%s", l.Text())
	}
	// The last recorded registry is gone. The one before it still has the layer.
	dst.Close()
	next := remotetest.StartFake(t, false)
	w.Tag(src.Addr()+"/r:1", next.Addr()+"/r:1")
	if l = w.MustPush(next.Addr()+"/r:1", transfer.Credentials{}); !l.HasPushed(next.Addr()+"/r:1", img.Manifest) {
		t.Errorf("digest changed:\n%s", l.Text())
	}

	// No registry has the layer any more. The push compresses it anew and reports that the manifest has changed.
	src.DropBlobs()
	third := remotetest.StartFake(t, false)
	w2 := transfertest.New(t, transfertest.Options{Store: store.Options{Retain: store.RetainNever}})
	src.Add("r", "1", img)
	w2.MustPull(src.Addr() + "/r:1")
	w2.AwaitRetention()
	src.Close()
	w2.Tag(src.Addr()+"/r:1", third.Addr()+"/r:1")
	l = w2.MustPush(third.Addr()+"/r:1", transfer.Credentials{})
	_, data := third.Manifest("r", "1")
	if !l.HasPushed(third.Addr()+"/r:1", data) || !l.Has(transfer.ManifestChanged, string(img.Digest())) {
		t.Errorf("progress:\n%s", l.Text())
	}
	var m oci.Manifest
	if err := json.Unmarshal(data, &m); err != nil || len(m.Layers) != 1 || third.Blob("r", m.Layers[0].Digest) == nil {
		t.Errorf("manifest %s: %v", data, err)
	}
}

// Connections break during uploads. Bytes that the registry has are not sent again.
func TestInterruptedUploadResumes(t *testing.T) {
	for name, retain := range map[string]store.Retain{"kept blob": store.RetainAlways, "compressed while sent": store.RetainNever} {
		t.Run(name, func(t *testing.T) {
			reg := remotetest.StartFake(t, false)
			var breaks atomic.Int64
			reg.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPatch && breaks.Add(1) <= 3 {
					// The registry keeps the bytes it got, and the connection breaks.
					r.Body = &breakingBody{r.Body, 700_000}
				}
				return false
			}
			w := transfertest.New(t, transfertest.Options{Store: store.Options{Retain: retain}})
			img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 8_000_000))
			to := reg.Addr() + "/r:1"
			if retain == store.RetainAlways {
				src := remotetest.StartFake(t, false)
				src.Add("r", "1", img)
				w.MustPull(src.Addr() + "/r:1")
				w.AwaitRetention()
				w.Tag(src.Addr()+"/r:1", to)
			} else {
				w.Make(to, oci.FormatOCI, img)
			}
			w.MustPush(to, transfer.Credentials{})
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

// breakingBody fails after a number of bytes.
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
	w := transfertest.New(t, transfertest.Options{})
	push := func(name string, cred transfer.Credentials) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return w.Pusher.Push(ctx, transfertest.Ref(t, name), transfer.PushOptions{Credentials: cred}, transfer.Discard)
	}
	transfertest.WantClass(t, push(reg.Addr+"/none:1", transfer.Credentials{}), errs.NotFound, "An image does not exist locally with the tag: "+reg.Addr+"/none")
	w.Make(reg.Addr+"/r:1", oci.FormatOCI, remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100)))
	transfertest.WantClass(t, push(reg.Addr+"/r:1", transfer.Credentials{}), errs.Unauthorized, "no basic auth credentials", "ply login "+reg.Addr)
	transfertest.WantClass(t, push(reg.Addr+"/r:1", transfer.Credentials{Username: remotetest.User, Password: "wrong"}), errs.Unauthorized, "unauthorized")
	if err := push(reg.Addr+"/r:1", transfer.Credentials{Username: remotetest.User, Password: remotetest.Password}); err != nil {
		t.Error(err)
	}
	free := remotetest.FreeAddr(t)
	w.Tag(reg.Addr+"/r:1", free+"/r:1")
	transfertest.WantClass(t, push(free+"/r:1", transfer.Credentials{}), errs.Unavailable, "connection refused")
}

// The registry refuses the first requests. The push succeeds all the same.
func TestTemporaryFaults(t *testing.T) {
	faults := map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"503 on everything": func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		},
		"429 on uploads": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				return false
			}
			w.Header().Set("Retry-After", "1")
			remotetest.Refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "slow down")
			return true
		},
		"reset on manifest": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			remotetest.CutOff(w, true)
			return true
		},
		"uploads are forgotten": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch {
				return false
			}
			remotetest.Refuse(w, http.StatusInternalServerError, "UNKNOWN", "oops")
			return true
		},
	}
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 2_000_000), transfertest.Files(2, 100))
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := remotetest.StartFake(t, false)
			var n atomic.Int64
			reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				return n.Load() < 3 && fault(w, r) && n.Add(1) > 0
			}
			w := transfertest.New(t, transfertest.Options{})
			to := reg.Addr() + "/r:1"
			w.Make(to, oci.FormatOCI, img)
			l := w.MustPush(to, transfer.Credentials{})
			_, data := reg.Manifest("r", "1")
			if !l.HasPushed(to, data) {
				t.Errorf("push:\n%s", l.Text())
			}
		})
	}
}
