package registry

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

func TestPullFormats(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	plain, zstd := files(2, 3000), files(3, 4000)
	plain.Codec, zstd.Codec = compress.None, compress.Zstd
	cases := map[string]*remotetest.Image{
		"docker":       remotetest.Make(t, oci.FormatDocker, files(1, 10, 200_000), plain),
		"oci":          remotetest.Make(t, oci.FormatOCI, files(1, 10, 200_000), plain, zstd),
		"no-layers":    remotetest.Make(t, oci.FormatOCI),
		"twice":        remotetest.Make(t, oci.FormatDocker, files(5, 100), files(6, 100), files(5, 100)),
		"large-ranged": remotetest.Make(t, oci.FormatOCI, files(7, 20<<20)),
	}
	for name, img := range cases {
		t.Run(name, func(t *testing.T) {
			remotetest.Put(t, "http://"+reg.Addr, "a/"+name, "1", img, "", "")
			w := newWorld(t, Options{})
			l := w.mustPull(reg.Addr + "/a/" + name + ":1")
			w.holds(reg.Addr+"/a/"+name+":1", img)
			w.holds(reg.Addr+"/a/"+name+"@"+string(img.Digest()), img)
			if !l.has("Digest: "+string(img.Digest())) || !l.has("Status: Downloaded newer image for "+reg.Addr+"/a/"+name+":1") {
				t.Errorf("progress:\n%s", l.text())
			}
		})
	}
}

func TestPullLines(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	base := files(1, 1000)
	first := remotetest.Make(t, oci.FormatDocker, base)
	second := remotetest.Make(t, oci.FormatDocker, base, files(2, 500_000))
	reg.Add("library/mysql", "latest", first)
	reg.Add("library/mysql", "2", second)
	w := newWorld(t, Options{Mirrors: []string{reg.URL}})

	w.mustPull("mysql")
	got := strings.Split(w.mustPull("mysql:2").text(), "\n")
	a, b := first.Layers[0].Digest.Short(), second.Layers[1].Digest.Short()
	want := []string{
		"2: Pulling from library/mysql", a + ": Already exists", b + ": Pulling fs layer",
		b + ": Downloading", b + ": Verifying Checksum", b + ": Download complete", b + ": Extracting", b + ": Pull complete",
		"Digest: " + string(second.Digest()), "Status: Downloaded newer image for mysql:2",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	w.holds("mysql:2", second)

	reg.Forget()
	got = strings.Split(w.mustPull("mysql:2").text(), "\n")
	want = []string{"2: Pulling from library/mysql", "Digest: " + string(second.Digest()), "Status: Image is up to date for mysql:2"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if n := len(reg.Log("")); n != 1 {
		t.Errorf("pull of what is there made %d requests: %v", n, reg.Log(""))
	}

	name := "mysql@" + string(first.Digest())
	got = strings.Split(w.mustPull(name).text(), "\n")
	want = []string{
		ref(t, name).String() + ": Pulling from library/mysql",
		"Digest: " + string(first.Digest()), "Status: Image is up to date for " + name,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPullIndex(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	host, other := oci.HostPlatform(), oci.Platform{OS: "linux", Architecture: "s390x"}
	mine, theirs := remotetest.MakeFor(t, oci.FormatOCI, host, files(1, 100)), remotetest.MakeFor(t, oci.FormatOCI, other, files(2, 100))
	base := "http://" + reg.Addr
	remotetest.Put(t, base, "multi", "x", mine, "", "")
	remotetest.Put(t, base, "multi", "y", theirs, "", "")
	data, mediaType := remotetest.MakeIndex(t, []oci.Platform{other, host}, []*remotetest.Image{theirs, mine})
	remotetest.PutManifest(t, base, "multi", "latest", mediaType, data)
	w := newWorld(t, Options{})
	l := w.mustPull(reg.Addr + "/multi")
	w.holds(reg.Addr+"/multi:latest", mine)
	top := oci.DigestOf(data)
	if !l.has("Digest: " + string(top)) {
		t.Errorf("digest line is not the index's:\n%s", l.text())
	}
	w.holds(reg.Addr+"/multi@"+string(top), mine)
	if l := w.mustPull(reg.Addr + "/multi"); !l.has("Status: Image is up to date for " + reg.Addr + "/multi:latest") {
		t.Errorf("second pull:\n%s", l.text())
	}

	l, err := w.pull(reg.Addr+"/multi", transfer.PullOptions{Platform: "linux/s390x"})
	if err != nil {
		t.Fatal(err)
	}
	w.holds(reg.Addr+"/multi:latest", theirs)
	if !l.has("Status: Downloaded newer image for " + reg.Addr + "/multi:latest") {
		t.Errorf("pull for another platform:\n%s", l.text())
	}
	w.mustPull(reg.Addr + "/multi")
	w.holds(reg.Addr+"/multi:latest", mine)

	_, err = w.pull(reg.Addr+"/multi", transfer.PullOptions{Platform: "linux/riscv64"})
	wantClass(t, err, errs.NotFound, "no matching manifest for linux/riscv64")
	_, err = w.pull(reg.Addr+"/multi:y", transfer.PullOptions{Platform: "linux/riscv64"})
	wantClass(t, err, errs.NotFound, "does not match the specified platform: wanted linux/riscv64, actual: linux/s390x")
}

func TestPullAllTags(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	a, b := remotetest.Make(t, oci.FormatOCI, files(1, 100)), remotetest.Make(t, oci.FormatOCI, files(1, 100), files(2, 100))
	remotetest.Put(t, "http://"+reg.Addr, "r", "a", a, "", "")
	remotetest.Put(t, "http://"+reg.Addr, "r", "b", b, "", "")
	w := newWorld(t, Options{})
	l, err := w.pull(reg.Addr+"/r", transfer.PullOptions{AllTags: true})
	if err != nil {
		t.Fatal(err)
	}
	w.holds(reg.Addr+"/r:a", a)
	w.holds(reg.Addr+"/r:b", b)
	if !l.has("a: Pulling from r") || !l.has("b: Pulling from r") || !l.has("Status: Downloaded newer image for "+reg.Addr+"/r") {
		t.Errorf("progress:\n%s", l.text())
	}
}

func TestPullHealsDamage(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, files(1, 1000), files(2, 2000))
	reg.Add("r", "1", img)
	w := newWorld(t, Options{}, store.Options{Retain: store.RetainNever})
	name := reg.Addr() + "/r:1"
	w.mustPull(name)
	path := w.driver.path(img.Layers[0].DiffID)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[700] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	w.mustPull(name)
	w.holds(name, img)
	for _, d := range []oci.Digest{img.Digest(), oci.Digest(img.ID())} {
		p := w.root + "/blobs/sha256/" + d.Hex()
		if err := os.WriteFile(p, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.mustPull(name)
		w.holds(name, img)
	}
}

func TestPullErrors(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	img := remotetest.Make(t, oci.FormatOCI, files(1, 1000))
	remotetest.Put(t, "http://"+reg.Addr, "r", "1", img, "", "")
	w := newWorld(t, Options{})
	l, err := w.pull(reg.Addr+"/r:nope", transfer.PullOptions{})
	if l.text() != "" {
		t.Errorf("progress before the error: %s", l.text())
	}
	wantClass(t, err, errs.NotFound, "manifest for "+reg.Addr+"/r:nope not found: manifest unknown: manifest unknown")
	_, err = w.pull(reg.Addr+"/none", transfer.PullOptions{})
	wantClass(t, err, errs.NotFound, reg.Addr+"/none")
	_, err = w.pull(remotetest.FreeAddr(t)+"/none", transfer.PullOptions{})
	wantClass(t, err, errs.Unavailable, "connection refused")
	_, err = w.pull("nowhere.invalid/none", transfer.PullOptions{})
	wantClass(t, err, errs.Unavailable, "lookup nowhere.invalid", "no such host")
}

// TestPullHostile: a registry that serves what is not what it says. Nothing must be visible afterwards.
func TestPullHostile(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(1, 5000), files(2, 5000))
	other := remotetest.Make(t, oci.FormatOCI, files(3, 5000), files(4, 5000))
	swap := func(old, new string) []byte { return []byte(strings.ReplaceAll(string(img.Manifest), old, new)) }
	l0, l1 := img.Layers[0], img.Layers[1]
	cases := map[string]struct {
		manifest []byte
		hook     func(f *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool
		want     string
	}{
		"both image and index": {manifest: []byte(strings.Replace(string(img.Manifest), `"layers"`, `"manifests": [], "layers"`, 1)), want: "an image and an index at once"},
		"duplicate key":        {manifest: []byte(strings.Replace(string(img.Manifest), `"layers"`, `"layers": [], "layers"`, 1)), want: "manifest"},
		"truncated":            {manifest: img.Manifest[:len(img.Manifest)-20], want: "manifest"},
		"layer missing":        {manifest: swap(string(l0.Digest), string(oci.DigestOf([]byte("x")))), want: "blob unknown"},
		"layers exchanged": {manifest: []byte(strings.NewReplacer(string(l0.Digest), string(l1.Digest), string(l1.Digest), string(l0.Digest),
			": "+itoa(int(l0.Size)), ": "+itoa(int(l1.Size)), ": "+itoa(int(l1.Size)), ": "+itoa(int(l0.Size))).Replace(string(img.Manifest))), want: "digest"},
		"config of another": {manifest: swap(string(oci.DigestOf(img.Config)), string(oci.DigestOf(other.Config))), want: "digest"},
		"bad digest":        {manifest: swap(string(l0.Digest), "sha256:../../../../etc/passwd"), want: "invalid digest"},
		"wrong digest header": {hook: func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodGet {
				w.Header().Set("Docker-Content-Digest", string(other.Digest()))
				w.Header().Set("Content-Type", img.ManifestType)
				_, _ = w.Write(img.Manifest)
				return true
			}
			return false
		}, want: "has digest"},
		"endless manifest": {hook: func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", img.ManifestType)
				for range 6 << 10 {
					if _, err := w.Write(make([]byte, 1024)); err != nil {
						break
					}
				}
				return true
			}
			return false
		}, want: "is longer than"},
		"content type of an index": {hook: func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", oci.MediaTypeOCIIndex)
				_, _ = w.Write(img.Manifest)
				return true
			}
			return false
		}, want: "manifest"},
		"wrong bytes": {hook: func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, string(l1.Digest)) {
				b := append([]byte(nil), l1.Blob...)
				b[len(b)/2] ^= 4
				_, _ = w.Write(b)
				return true
			}
			return false
		}, want: "content has digest"},
		"truncated layer": {hook: func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, string(l1.Digest)) {
				_, _ = w.Write(l1.Blob[:1000])
				return true
			}
			return false
		}, want: "bytes, the manifest says"},
		"longer layer": {hook: func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, string(l1.Digest)) {
				w.Header().Set("Content-Length", itoa(len(l1.Blob)+4))
				_, _ = w.Write(append(append([]byte(nil), l1.Blob...), "more"...))
				return true
			}
			return false
		}, want: "bytes, the manifest says"},
		"wrong config": {hook: func(_ *remotetest.Fake, w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, string(oci.DigestOf(img.Config))) {
				_, _ = w.Write([]byte(strings.Replace(string(img.Config), "linux", "Linux", 1)))
				return true
			}
			return false
		}, want: "has digest"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			reg := remotetest.StartFake(t, false)
			reg.Add("r", "1", img)
			reg.AddBlob("r", other.Config)
			if c.manifest != nil {
				reg.AddManifest("r", "1", img.ManifestType, c.manifest)
			}
			if c.hook != nil {
				reg.Hook = func(w http.ResponseWriter, r *http.Request) bool { return c.hook(reg, w, r) }
			}
			w := newWorld(t, Options{})
			_, err := w.pull(reg.Addr()+"/r:1", transfer.PullOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("pull: %v, want %q", err, c.want)
			}
			w.lacks(reg.Addr() + "/r:1")
		})
	}
}

// TestPullTruncatedGzip: the digest is right, the data is not whole.
func TestPullTruncatedGzip(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(1, 50_000))
	l := img.Layers[0]
	short := l.Blob[:len(l.Blob)-100]
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	reg.AddBlob("r", short)
	man := strings.Replace(string(img.Manifest), string(l.Digest), string(oci.DigestOf(short)), 1)
	man = strings.Replace(man, itoa(int(l.Size)), itoa(len(short)), 1)
	reg.AddManifest("r", "1", img.ManifestType, []byte(man))
	w := newWorld(t, Options{})
	_, err := w.pull(reg.Addr()+"/r:1", transfer.PullOptions{})
	wantClass(t, err, errs.Invalid, "gzip data: unexpected EOF")
	w.lacks(reg.Addr() + "/r:1")
}

func TestPullDiffIDMismatch(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, files(1, 50_000))
	cfg := strings.Replace(string(img.Config), string(img.Layers[0].DiffID), string(oci.DigestOf([]byte("x"))), 1)
	man := strings.Replace(string(img.Manifest), string(oci.DigestOf(img.Config)), string(oci.DigestOf([]byte(cfg))), 1)
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	reg.AddBlob("r", []byte(cfg))
	reg.AddManifest("r", "1", img.ManifestType, []byte(man))
	w := newWorld(t, Options{})
	_, err := w.pull(reg.Addr()+"/r:1", transfer.PullOptions{})
	wantClass(t, err, errs.Invalid, "digest", string(img.Layers[0].DiffID))
	w.lacks(reg.Addr() + "/r:1")
}
