package e2e

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// temporaries lists the files of a running transfer.
func (w *world) temporaries(t *testing.T) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(filepath.Join(w.dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone while we looked
		}
		if err == nil && strings.HasPrefix(d.Name(), ".tmp-") {
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// leftovers lists what a failed transfer must not leave behind in the data root.
func (w *world) leftovers(t *testing.T) (list []string) {
	t.Helper()
	data := filepath.Join(w.dir, "data")
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(data, path)
		if !d.IsDir() && (strings.HasPrefix(rel, "partial/") || strings.HasPrefix(rel, "layers/sha256/")) || strings.HasPrefix(d.Name(), ".tmp-") {
			list = append(list, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func refuse(status int, code string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		remotetest.Refuse(w, status, code, "no")
		return true
	}
}

// blobs answers requests for blobs in place of the registry.
func blobs(f func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		f(w, r)
		return true
	}
}

// layerOnly passes requests for the config on to the registry.
func layerOnly(digest oci.Digest, f func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, string(digest)) && blobs(f)(w, r)
	}
}

// A pull that fails, in each way that is known, says why, exits with 1 and leaves nothing half-done.
func TestTransferPullErrors(t *testing.T) {
	w := prepareWorld(t)
	if err := os.WriteFile(filepath.Join(w.dir, "daemon.json"), []byte(`{"max-download-attempts": 2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w.startPlyd()
	f := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatDocker, remotetest.LayerSpec{Files: []remotetest.File{{Name: "a", Data: remotetest.Noise(70, 100_000)}}})
	layer := img.Layers[0]
	f.Add("r", "1", img)
	remake := func(tag string, edit func(cfg *oci.Config, m map[string]any)) {
		var cfg oci.Config
		var m map[string]any
		if json.Unmarshal(img.Config, &cfg) != nil || json.Unmarshal(img.Manifest, &m) != nil {
			t.Fatal("image is not JSON")
		}
		edit(&cfg, m)
		raw, _ := json.Marshal(cfg)
		f.AddBlob("r", raw)
		m["config"].(map[string]any)["digest"], m["config"].(map[string]any)["size"] = oci.DigestOf(raw), len(raw)
		man, _ := json.Marshal(m)
		f.AddManifest("r", tag, img.ManifestType, man)
	}
	remake("diffid", func(cfg *oci.Config, _ map[string]any) { cfg.RootFS.DiffIDs[0] = oci.DiffID(oci.DigestOf([]byte("x"))) })
	remake("both", func(_ *oci.Config, m map[string]any) { m["manifests"] = []any{} })
	remake("more", func(cfg *oci.Config, _ map[string]any) {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, cfg.RootFS.DiffIDs[0])
		cfg.History = nil
	})
	remake("size", func(_ *oci.Config, m map[string]any) {
		m["layers"].([]any)[0].(map[string]any)["size"] = layer.Size - 1
	})
	remake("windows", func(cfg *oci.Config, _ map[string]any) { cfg.OS = "windows" })
	f.AddManifest("r", "html", "text/html", []byte("<html>Please log in to the hotel's network</html>"))
	data, mediaType := remotetest.MakeIndex(t, []oci.Platform{{OS: "linux", Architecture: "riscv64"}}, []*remotetest.Image{img})
	f.AddManifest("r", "index", mediaType, data)

	r := f.Addr() + "/r"
	down := remotetest.FreeAddr(t)
	wrong := append([]byte{layer.Blob[0] ^ 1}, layer.Blob[1:]...)
	otherConfig := append([]byte{' '}, img.Config[1:]...)
	half := func(rw http.ResponseWriter, r *http.Request) {
		from, end := remotetest.Range(r, len(layer.Blob))
		rw.Header().Set("Content-Length", strconv.Itoa(end-from))
		if from > 0 {
			rw.Header().Set("Content-Range", "bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(end-1)+"/"+strconv.Itoa(len(layer.Blob)))
			rw.WriteHeader(http.StatusPartialContent)
		}
		_, _ = rw.Write(layer.Blob[from:max(from, len(layer.Blob)/2)]) // the client gives up
	}
	for name, c := range map[string]struct {
		ref  string
		hook func(http.ResponseWriter, *http.Request) bool
		want []string
	}{
		"down":      {down + "/r:1", nil, []string{down, "connection refused"}},
		"401":       {r + ":1", refuse(401, "UNAUTHORIZED"), []string{"pull access denied for " + r, "may require 'ply login'"}},
		"403":       {r + ":1", refuse(403, "DENIED"), []string{"pull access denied for " + r}},
		"404 tag":   {r + ":none", nil, []string{"manifest for " + r + ":none not found: manifest unknown"}},
		"404 repo":  {r + "x:1", refuse(404, "NAME_UNKNOWN"), []string{"repository " + r + "x not found"}},
		"404 blob":  {r + ":1", blobs(func(w http.ResponseWriter, _ *http.Request) { remotetest.Refuse(w, 404, "BLOB_UNKNOWN", "no") }), []string{r + ":1", "has the manifest but not all that it names"}},
		"429":       {r + ":1", patience("1"), []string{"toomanyrequests: slow down"}},
		"429 long":  {r + ":1", patience("3600"), []string{"asks to wait 1h", "toomanyrequests"}},
		"500":       {r + ":1", refuse(500, "UNKNOWN"), []string{"unknown: no"}},
		"502 plain": {r + ":1", func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "<html>", 502); return true }, []string{"502 Bad Gateway"}},
		"digest":    {r + ":1", layerOnly(layer.Digest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(wrong) }), []string{"layer " + string(layer.Digest), "content has digest " + string(oci.DigestOf(wrong))}},
		"config":    {r + ":1", blobs(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(otherConfig) }), []string{"blob " + string(oci.DigestOf(img.Config)), "has digest " + string(oci.DigestOf(otherConfig))}},
		"truncated": {r + ":1", layerOnly(layer.Digest, half), []string{layer.Digest.Short(), "unexpected EOF"}},
		"size":      {r + ":size", nil, []string{layer.Digest.Short(), "the manifest says " + strconv.FormatInt(layer.Size-1, 10)}},
		"diffid":    {r + ":diffid", nil, []string{"layer " + string(layer.Digest), string(layer.DiffID)}},
		"both":      {r + ":both", nil, []string{r + ":both", "manifest"}},
		"more":      {r + ":more", nil, []string{"the manifest has 1 layers, the config 2"}},
		"html":      {r + ":html", nil, []string{r + ":html"}},
		"platform":  {r + ":index", nil, []string{"no matching manifest for " + oci.HostPlatform().String() + " in the manifest list entries"}},
		"windows":   {r + ":windows", nil, []string{`operating system "windows" cannot be used on this platform`}},
	} {
		t.Run(name, func(t *testing.T) {
			f.Hook = c.hook
			out := w.fail(1, "pull", c.ref)
			wantAll(t, out, c.want...)
			for _, bad := range []string{"Pull complete", "Digest: ", "Status: ", "goroutine", "<nil>"} {
				if strings.Contains(out, bad) {
					t.Errorf("%q is in:\n%s", bad, out)
				}
			}
			if list := w.ply("images", "-a", "-q"); list != "" {
				t.Errorf("left images: %s", list)
			}
			left := w.leftovers(t)
			if name == "truncated" { // kept for the next try
				for _, p := range []string{"", ".json"} {
					if err := os.Remove(filepath.Join(w.dir, "data", "partial", layer.Digest.Hex()+p)); err != nil {
						t.Error(err)
					}
				}
				left = w.leftovers(t)
			}
			if len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
	f.Hook = nil
	w.ply("pull", r+":1") // none of it did harm
}

// patience answers 429 and asks the client to wait.
func patience(after string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Retry-After", after)
		remotetest.Refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "slow down")
		return true
	}
}

// A registry that asks a client to wait gets as much time as it asks for, and its second answer counts.
func TestTransferRetryAfter(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	f.Add("r", "1", remotetest.Make(t, oci.FormatOCI, noise(71, 1000)))
	var asked []time.Time
	f.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") || len(asked) == 2 {
			return false
		}
		if asked = append(asked, time.Now()); len(asked) == 2 {
			return false
		}
		return patience("1")(rw, r)
	}
	wantAll(t, w.ply("pull", f.Addr()+"/r:1"), "Downloaded newer image")
	if len(asked) != 2 || asked[1].Sub(asked[0]) < time.Second {
		t.Errorf("asked at %v", asked)
	}
}

// A push that fails says why, does not change the image, and succeeds once the reason is gone.
func TestTransferPushErrors(t *testing.T) {
	w := prepareWorld(t)
	if err := os.WriteFile(filepath.Join(w.dir, "daemon.json"), []byte(`{"max-download-attempts": 2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w.startPlyd()
	f := remotetest.StartFake(t, false)
	down := remotetest.FreeAddr(t)
	ref := f.Addr() + "/r:1"
	w.busybox()
	w.ply("tag", "busybox", ref)
	w.ply("tag", "busybox", down+"/r:1")
	before := w.ply("images", "-a", "--format", "{{.Repository}}:{{.Tag}} {{.Digest}} {{.ID}}")
	uploads := func(status int, code string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method != http.MethodGet && r.Method != http.MethodHead && refuse(status, code)(w, r)
		}
	}
	for name, c := range map[string]struct {
		ref  string
		hook func(http.ResponseWriter, *http.Request) bool
		want []string
	}{
		"none": {f.Addr() + "/none:1", nil, []string{"An image does not exist locally with the tag: " + f.Addr() + "/none"}},
		"down": {down + "/r:1", nil, []string{down, "connection refused"}},
		"401":  {ref, refuse(401, "UNAUTHORIZED"), []string{"push access denied for " + f.Addr() + "/r", "may require 'ply login'"}},
		"403":  {ref, uploads(403, "DENIED"), []string{"push access denied for " + f.Addr() + "/r"}},
		"507":  {ref, uploads(507, "TOOLARGE"), []string{"toolarge: no"}},
		"manifest": {ref, func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") && refuse(400, "MANIFEST_BLOB_UNKNOWN")(w, r)
		}, []string{"manifest blob unknown: no"}},
	} {
		t.Run(name, func(t *testing.T) {
			f.Hook = c.hook
			wantAll(t, w.fail(1, "push", c.ref), c.want...)
			if after := w.ply("images", "-a", "--format", "{{.Repository}}:{{.Tag}} {{.Digest}} {{.ID}}"); after != before {
				t.Errorf("images were\n%s\nand are\n%s", before, after)
			}
		})
	}
	f.Hook = nil
	w.ply("push", ref)
}
