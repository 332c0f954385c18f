package pull_test

import (
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/compress"
	"ply/internal/errs"
	"ply/internal/oci"
	"ply/internal/store"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

func TestPullFormats(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	plain, zstd := transfertest.Files(2, 3000), transfertest.Files(3, 4000)
	plain.Codec, zstd.Codec = compress.None, compress.Zstd
	cases := map[string]*remotetest.Image{
		"docker":       remotetest.Make(t, oci.FormatDocker, transfertest.Files(1, 10, 200_000), plain),
		"oci":          remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 10, 200_000), plain, zstd),
		"no-layers":    remotetest.Make(t, oci.FormatOCI),
		"twice":        remotetest.Make(t, oci.FormatDocker, transfertest.Files(5, 100), transfertest.Files(6, 100), transfertest.Files(5, 100)),
		"large-ranged": remotetest.Make(t, oci.FormatOCI, transfertest.Files(7, 20<<20)),
	}
	for name, img := range cases {
		t.Run(name, func(t *testing.T) {
			remotetest.Put(t, "http://"+reg.Addr, "a/"+name, "1", img, "", "")
			w := transfertest.New(t, transfertest.Options{})
			l := w.MustPull(reg.Addr + "/a/" + name + ":1")
			w.Holds(reg.Addr+"/a/"+name+":1", img)
			w.Holds(reg.Addr+"/a/"+name+"@"+string(img.Digest()), img)
			if !l.Has(transfer.Resolved, string(img.Digest())) || !l.Has(transfer.Downloaded, reg.Addr+"/a/"+name+":1") {
				t.Errorf("progress:\n%s", l.Text())
			}
		})
	}
}

func TestPullProgress(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	base := transfertest.Files(1, 1000)
	first := remotetest.Make(t, oci.FormatDocker, base)
	second := remotetest.Make(t, oci.FormatDocker, base, transfertest.Files(2, 500_000))
	reg.Add("library/mysql", "latest", first)
	reg.Add("library/mysql", "2", second)
	w := transfertest.New(t, transfertest.Options{Remote: remote.Options{Mirrors: []string{reg.URL}}})

	w.MustPull("mysql")
	got := strings.Split(w.MustPull("mysql:2").Text(), "\n")
	a, b := first.Layers[0].Digest.Short(), second.Layers[1].Digest.Short()
	want := []string{
		"PullStarted mysql:2", "LayerExists " + a, "LayerQueued " + b,
		"LayerDownloading " + b, "LayerVerifying " + b, "LayerDownloaded " + b, "LayerExtracting " + b, "LayerPulled " + b,
		"Resolved " + string(second.Digest()), "Downloaded mysql:2",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	w.Holds("mysql:2", second)

	reg.Forget()
	got = strings.Split(w.MustPull("mysql:2").Text(), "\n")
	want = []string{"PullStarted mysql:2", "Resolved " + string(second.Digest()), "UpToDate mysql:2"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if n := len(reg.Log("")); n != 1 {
		t.Errorf("pull of what is there made %d requests: %v", n, reg.Log(""))
	}

	name := "mysql@" + string(first.Digest())
	got = strings.Split(w.MustPull(name).Text(), "\n")
	want = []string{
		"PullStarted " + name,
		"Resolved " + string(first.Digest()), "UpToDate " + name,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPullIndex(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	host, other := oci.HostPlatform(), oci.Platform{OS: "linux", Architecture: "s390x"}
	mine, theirs := remotetest.MakeFor(t, oci.FormatOCI, host, transfertest.Files(1, 100)), remotetest.MakeFor(t, oci.FormatOCI, other, transfertest.Files(2, 100))
	base := "http://" + reg.Addr
	remotetest.Put(t, base, "multi", "x", mine, "", "")
	remotetest.Put(t, base, "multi", "y", theirs, "", "")
	data, mediaType := remotetest.MakeIndex(t, []oci.Platform{other, host}, []*remotetest.Image{theirs, mine})
	remotetest.PutManifest(t, base, "multi", "latest", mediaType, data)
	w := transfertest.New(t, transfertest.Options{})
	l := w.MustPull(reg.Addr + "/multi")
	w.Holds(reg.Addr+"/multi:latest", mine)
	top := oci.DigestOf(data)
	if !l.Has(transfer.Resolved, string(top)) {
		t.Errorf("digest line is not the index's:\n%s", l.Text())
	}
	w.Holds(reg.Addr+"/multi@"+string(top), mine)
	if l := w.MustPull(reg.Addr + "/multi"); !l.Has(transfer.UpToDate, reg.Addr+"/multi:latest") {
		t.Errorf("second pull:\n%s", l.Text())
	}

	l, err := w.Pull(reg.Addr+"/multi", transfer.PullOptions{Platform: "linux/s390x"})
	if err != nil {
		t.Fatal(err)
	}
	w.Holds(reg.Addr+"/multi:latest", theirs)
	if !l.Has(transfer.Downloaded, reg.Addr+"/multi:latest") {
		t.Errorf("pull for another platform:\n%s", l.Text())
	}
	w.MustPull(reg.Addr + "/multi")
	w.Holds(reg.Addr+"/multi:latest", mine)

	_, err = w.Pull(reg.Addr+"/multi", transfer.PullOptions{Platform: "linux/riscv64"})
	transfertest.WantClass(t, err, errs.NotFound, "no matching manifest for linux/riscv64")
	_, err = w.Pull(reg.Addr+"/multi:y", transfer.PullOptions{Platform: "linux/riscv64"})
	transfertest.WantClass(t, err, errs.NotFound, "does not match the specified platform: wanted linux/riscv64, actual: linux/s390x")
}

func TestPullAllTags(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	a, b := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100)), remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 100), transfertest.Files(2, 100))
	remotetest.Put(t, "http://"+reg.Addr, "r", "a", a, "", "")
	remotetest.Put(t, "http://"+reg.Addr, "r", "b", b, "", "")
	w := transfertest.New(t, transfertest.Options{})
	l, err := w.Pull(reg.Addr+"/r", transfer.PullOptions{AllTags: true})
	if err != nil {
		t.Fatal(err)
	}
	w.Holds(reg.Addr+"/r:a", a)
	w.Holds(reg.Addr+"/r:b", b)
	if !l.Has(transfer.PullStarted, reg.Addr+"/r:a") || !l.Has(transfer.PullStarted, reg.Addr+"/r:b") || !l.Has(transfer.Downloaded, reg.Addr+"/r") {
		t.Errorf("progress:\n%s", l.Text())
	}
}

func TestPullHealsDamage(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 1000), transfertest.Files(2, 2000))
	reg.Add("r", "1", img)
	w := transfertest.New(t, transfertest.Options{Store: store.Options{Retain: store.RetainNever}})
	name := reg.Addr() + "/r:1"
	w.MustPull(name)
	path := w.Driver.Path(img.Layers[0].DiffID)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[700] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	w.MustPull(name)
	w.Holds(name, img)
	for _, d := range []oci.Digest{img.Digest(), oci.Digest(img.ID())} {
		p := w.Root + "/blobs/sha256/" + d.Hex()
		if err := os.WriteFile(p, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		w.MustPull(name)
		w.Holds(name, img)
	}
}

func TestPullErrors(t *testing.T) {
	reg := remotetest.Start(t, remotetest.Options{})
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 1000))
	remotetest.Put(t, "http://"+reg.Addr, "r", "1", img, "", "")
	w := transfertest.New(t, transfertest.Options{})
	l, err := w.Pull(reg.Addr+"/r:nope", transfer.PullOptions{})
	if l.Text() != "" {
		t.Errorf("progress before the error: %s", l.Text())
	}
	transfertest.WantClass(t, err, errs.NotFound, "manifest for "+reg.Addr+"/r:nope not found: manifest unknown: manifest unknown")
	_, err = w.Pull(reg.Addr+"/none", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.NotFound, reg.Addr+"/none")
	_, err = w.Pull(remotetest.FreeAddr(t)+"/none", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Unavailable, "connection refused")
	_, err = w.Pull("nowhere.invalid/none", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Unavailable, "lookup nowhere.invalid", "no such host")
}

// The registry sends content that does not match its digest, size or type. The pull fails, and nothing of the image is visible.
func TestHostileContent(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 5000), transfertest.Files(2, 5000))
	other := remotetest.Make(t, oci.FormatOCI, transfertest.Files(3, 5000), transfertest.Files(4, 5000))
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
			": "+strconv.Itoa(int(l0.Size)), ": "+strconv.Itoa(int(l1.Size)), ": "+strconv.Itoa(int(l1.Size)), ": "+strconv.Itoa(int(l0.Size))).Replace(string(img.Manifest))), want: "digest"},
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
				w.Header().Set("Content-Length", strconv.Itoa(len(l1.Blob)+4))
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
			w := transfertest.New(t, transfertest.Options{})
			_, err := w.Pull(reg.Addr()+"/r:1", transfer.PullOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("pull: %v, want %q", err, c.want)
			}
			w.Lacks(reg.Addr() + "/r:1")
		})
	}
}

// The digest of the blob is right, but its gzip data ends early.
func TestTruncatedGzip(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 50_000))
	l := img.Layers[0]
	short := l.Blob[:len(l.Blob)-100]
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	reg.AddBlob("r", short)
	man := strings.Replace(string(img.Manifest), string(l.Digest), string(oci.DigestOf(short)), 1)
	man = strings.Replace(man, strconv.Itoa(int(l.Size)), strconv.Itoa(len(short)), 1)
	reg.AddManifest("r", "1", img.ManifestType, []byte(man))
	w := transfertest.New(t, transfertest.Options{})
	_, err := w.Pull(reg.Addr()+"/r:1", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Invalid, "gzip data: unexpected EOF")
	w.Lacks(reg.Addr() + "/r:1")
}

func TestPullDiffIDMismatch(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 50_000))
	cfg := strings.Replace(string(img.Config), string(img.Layers[0].DiffID), string(oci.DigestOf([]byte("x"))), 1)
	man := strings.Replace(string(img.Manifest), string(oci.DigestOf(img.Config)), string(oci.DigestOf([]byte(cfg))), 1)
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	reg.AddBlob("r", []byte(cfg))
	reg.AddManifest("r", "1", img.ManifestType, []byte(man))
	w := transfertest.New(t, transfertest.Options{})
	_, err := w.Pull(reg.Addr()+"/r:1", transfer.PullOptions{})
	transfertest.WantClass(t, err, errs.Invalid, "digest", string(img.Layers[0].DiffID))
	w.Lacks(reg.Addr() + "/r:1")
}
