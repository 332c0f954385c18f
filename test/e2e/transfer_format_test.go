package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"ply/internal/compress"
	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// served returns the manifest that a registry has under a name.
func served(t *testing.T, addr, repo, ref string) (mediaType string, data []byte) {
	t.Helper()
	r := &remotetest.Registry{Addr: addr}
	status, h, data := r.Get(t, "/v2/"+repo+"/manifests/"+ref, false, strings.Join([]string{
		oci.MediaTypeDockerManifest, oci.MediaTypeOCIManifest, oci.MediaTypeDockerManifestList, oci.MediaTypeOCIIndex}, ", "))
	if status != http.StatusOK {
		t.Fatalf("%s/%s %s: status %d", addr, repo, ref, status)
	}
	return h.Get("Content-Type"), data
}

// What was pulled, in any format, is pushed to another registry as the same bytes, whether its compressed layers were kept or not.
func TestTransferKeepsDigest(t *testing.T) {
	for _, retain := range []string{"auto", "never"} {
		t.Run(retain, func(t *testing.T) {
			w := prepareWorld(t)
			if err := os.WriteFile(filepath.Join(w.dir, "daemon.json"), []byte(`{"retain-blobs": "`+retain+`"}`), 0o644); err != nil {
				t.Fatal(err)
			}
			w.startPlyd()
			from, to := remotetest.StartFake(t, false), w.registry("")
			for name, c := range map[string]struct {
				format oci.Format
				codec  compress.Codec
			}{
				"docker-gzip": {oci.FormatDocker, compress.Gzip}, "docker-plain": {oci.FormatDocker, compress.None},
				"oci-gzip": {oci.FormatOCI, compress.Gzip}, "oci-zstd": {oci.FormatOCI, compress.Zstd}, "oci-plain": {oci.FormatOCI, compress.None},
			} {
				layers := []remotetest.LayerSpec{noise(20, 200_000), noise(21, 3000)}
				for i := range layers {
					layers[i].Codec = c.codec
				}
				img := remotetest.Make(t, c.format, layers...)
				from.Add(name, "1", img)
				w.ply("pull", from.Addr()+"/"+name+":1")
				w.ply("tag", from.Addr()+"/"+name+":1", to+"/"+name+":1")
				out := w.ply("push", to+"/"+name+":1")
				wantAll(t, out, "1: digest: "+string(img.Digest())+" size: "+strconv.Itoa(len(img.Manifest)))
				if mediaType, data := served(t, to, name, "1"); string(data) != string(img.Manifest) || mediaType != img.ManifestType {
					t.Errorf("%s: the registry has other bytes, as %s:\n%s", name, mediaType, data)
				}
				w.content(t, to+"/"+name+"@"+string(img.Digest()), 20, 200_000)
			}
		})
	}
}

// With an index, the platform decides which image is pulled, both images can be here, and the digest of the index survives an archive.
func TestTransferIndex(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	platforms := []oci.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}}
	images := []*remotetest.Image{
		remotetest.MakeFor(t, oci.FormatOCI, platforms[0], noise(30, 4000)), remotetest.MakeFor(t, oci.FormatDocker, platforms[1], noise(31, 4000)),
	}
	for _, img := range images {
		f.Add("multi", "", img)
	}
	data, mediaType := remotetest.MakeIndex(t, platforms, images)
	f.AddManifest("multi", "1", mediaType, data)
	ref, top := f.Addr()+"/multi:1", f.Addr()+"/multi@"+string(oci.DigestOf(data))

	arch := func(name string) string { return w.ply("image", "inspect", "--format", "{{.Architecture}}", name) }
	wantAll(t, w.ply("pull", ref), "Digest: "+string(oci.DigestOf(data)), "Downloaded newer image")
	w.content(t, ref, 30, 4000)
	wantAll(t, w.ply("pull", ref), "Image is up to date")
	wantAll(t, w.ply("pull", "--platform", "linux/arm64", ref), "Downloaded newer image")
	if got := arch(ref); got != "arm64" {
		t.Errorf("after pull --platform linux/arm64 the name means %s", got)
	}
	w.content(t, top, 31, 4000)
	out := w.fail(1, "pull", "--platform", "linux/s390x", ref)
	wantAll(t, out, "no matching manifest for linux/s390x in the manifest list entries")
	if got := arch(ref); got != "arm64" {
		t.Errorf("after the failed pull the name means %s", got)
	}
	wantAll(t, w.ply("pull", ref), "Downloaded newer image")
	if got := arch(ref); got != arch(top) || got != "amd64" {
		t.Errorf("names mean %s and %s", got, arch(top))
	}
	file := filepath.Join(w.dir, "multi.tar")
	w.ply("save", "-o", file, ref)
	w.ply("rmi", ref)
	w.fail(1, "image", "inspect", top)
	// The other platform's image is still here, without a name, and has the index too.
	w.ply("load", "-i", file)
	if got := w.ply("image", "inspect", "--format", "{{.RepoDigests}}", ref); got != "["+top+"]" {
		t.Errorf("after save and load the digests are %s, want %s", got, top)
	}
	w.content(t, top, 30, 4000)
	wantAll(t, w.ply("pull", ref), "Image is up to date")

	// Without an index there is no choice, but a platform that was asked for must be the image's, here or not.
	f.AddManifest("multi", "arm", images[1].ManifestType, images[1].Manifest)
	arm := f.Addr() + "/multi:arm"
	for range 2 {
		wantAll(t, w.fail(1, "pull", "--platform", "linux/amd64", arm), "does not match the specified platform: wanted linux/amd64, actual: linux/arm64")
		w.ply("pull", arm)
	}
	wantAll(t, w.ply("pull", "--platform", "linux/arm64", arm), "Image is up to date")
}

// An image made here has the format of its base or, without a base, the format of the configuration. The size that push prints is
// that of the manifest.
func TestTransferMadeHere(t *testing.T) {
	w := prepareWorld(t)
	if err := os.WriteFile(filepath.Join(w.dir, "daemon.json"), []byte(`{"image-format": "docker"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w.startPlyd()
	addr := w.registry("")
	f := remotetest.StartFake(t, false)
	f.Add("base", "1", remotetest.Make(t, oci.FormatOCI, noise(40, 1000)))
	derive := func(base, name string) {
		id := w.ply("create", base, "/none")
		w.ply("cp", "/etc/hostname", id+":/added")
		w.ply("commit", id, name)
		w.ply("rm", id)
	}
	w.ply("pull", f.Addr()+"/base:1")
	derive(f.Addr()+"/base:1", addr+"/mhk/oci:1")
	w.busybox()
	derive("busybox", addr+"/mhk/ubuntu:1.3")

	w.ply("push", addr+"/mhk/oci:1")
	if mediaType, _ := served(t, addr, "mhk/oci", "1"); mediaType != oci.MediaTypeOCIManifest {
		t.Errorf("an image over an OCI base was pushed as %s", mediaType)
	}
	out := w.ply("push", addr+"/mhk/ubuntu:1.3")
	mediaType, data := served(t, addr, "mhk/ubuntu", "1.3")
	if mediaType != oci.MediaTypeDockerManifest {
		t.Errorf("with image-format docker an imported image was pushed as %s", mediaType)
	}
	wantAll(t, out, "1.3: digest: "+string(oci.DigestOf(data))+" size: "+strconv.Itoa(len(data)))
	// Docker prints 741 for an image of two layers when the sizes of config, base and change have 4, 8 and 8 digits.
	digits := 0
	for _, m := range regexp.MustCompile(`"size": (\d+)`).FindAllStringSubmatch(string(data), -1) {
		digits += len(m[1])
	}
	if got := len(data) - digits + 4 + 8 + 8; got != 741 {
		t.Errorf("the manifest would have %d bytes with those sizes, want 741:\n%s", got, data)
	}
	var m oci.Manifest
	if err := json.Unmarshal(data, &m); err != nil || len(m.Layers) != 2 {
		t.Errorf("%v: %d layers", err, len(m.Layers))
	}
}

// A registry that predates OCI gets docker's format.
func TestTransferRefusesOCI(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, noise(50, 1000), remotetest.LayerSpec{Files: []remotetest.File{{Name: "b", Data: []byte("b")}}})
	f.Add("new", "1", img)
	w.ply("pull", f.Addr()+"/new:1")
	f.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") && r.Header.Get("Content-Type") != oci.MediaTypeDockerManifest {
			remotetest.Refuse(rw, http.StatusUnsupportedMediaType, "MANIFEST_INVALID", "manifest invalid")
			return true
		}
		return false
	}
	old := f.Addr() + "/old:1"
	w.ply("tag", f.Addr()+"/new:1", old)
	w.ply("push", old)
	mediaType, data := f.Manifest("old", "1")
	if mediaType != oci.MediaTypeDockerManifest {
		t.Errorf("the registry has %s", mediaType)
	}
	w.ply("rmi", old, f.Addr()+"/new:1")
	w.ply("pull", old)
	if got := w.ply("images", "-q", "--no-trunc", "--digests", "--format", "{{.Digest}} {{.ID}}"); got != string(oci.DigestOf(data))+" "+string(img.ID()) {
		t.Errorf("pulled back: %s, want ID %s", got, img.ID())
	}
}

// A manifest that names another blob for a layer that is already here has no influence on pushes of other images.
func TestTransferDistrustsManifests(t *testing.T) {
	w := newWorld(t)
	from, to := remotetest.StartFake(t, false), remotetest.StartFake(t, false)
	good := remotetest.Make(t, oci.FormatOCI, noise(60, 1000))
	from.Add("good", "1", good)
	lie := remotetest.Make(t, oci.FormatOCI, noise(61, 1000))
	m, err := oci.DecodeManifest(good.Manifest, good.ManifestType)
	if err != nil {
		t.Fatal(err)
	}
	m.Layers[0] = lie.Layers[0].Descriptor
	if lie.Manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	lie.Config = good.Config
	from.Add("lie", "1", lie)
	to.AddBlob("team/lie", lie.Layers[0].Blob)
	w.ply("pull", from.Addr()+"/good:1")
	wantAll(t, w.ply("pull", from.Addr()+"/lie:1"), "Already exists")
	w.ply("tag", from.Addr()+"/lie:1", to.Addr()+"/team/lie:1")
	w.ply("push", to.Addr()+"/team/lie:1")
	id := w.ply("create", from.Addr()+"/good:1", "/none")
	w.ply("commit", id, to.Addr()+"/team/mine:1")
	w.ply("push", to.Addr()+"/team/mine:1")
	if _, data := to.Manifest("team/mine", "1"); strings.Contains(string(data), string(lie.Layers[0].Digest)) {
		t.Errorf("the lie went into another image's manifest:\n%s", data)
	}
}
