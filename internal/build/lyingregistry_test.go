package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"ply/internal/build"
	"ply/internal/build/cachetransfer"
	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// cacheManifest is the manifest of a cache.
type cacheManifest struct {
	SchemaVersion int              `json:"schemaVersion"`
	MediaType     string           `json:"mediaType"`
	Config        oci.Descriptor   `json:"config"`
	Layers        []oci.Descriptor `json:"layers"`
}

// zippedTar is a layer with other content in /a and /b.
func zippedTar(t *testing.T) (packed []byte, diff oci.DiffID) {
	t.Helper()
	var b, z bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"a", "b"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 4}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "evil"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	g := gzip.NewWriter(&z)
	if _, err := g.Write(b.Bytes()); err != nil || g.Close() != nil {
		t.Fatal(err)
	}
	return z.Bytes(), oci.DiffID(oci.DigestOf(b.Bytes()))
}

// A registry with a cache that is not what it claims, or that answers with something else, gives no file to a build: the step is executed, and the log says why.
// An honest one is used.
func TestLyingRegistries(t *testing.T) {
	const repo = "cache"
	from := func(ref string) func(*build.Request) {
		return func(r *build.Request) {
			r.CacheFrom = []build.CacheRef{{Type: "registry", Attrs: map[string]string{"ref": ref}}}
		}
	}
	honest := remotetest.StartFake(t, false)
	want, _, _, err := newWorld(t).cachedBuild(nil, func(r *build.Request) {
		r.CacheTo = []build.CacheRef{{Type: "registry", Attrs: map[string]string{"ref": honest.Addr() + "/" + repo + ":1", "mode": "max"}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	mediaType, raw := honest.Manifest(repo, "1")
	var m cacheManifest
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Layers) != 2 || string(want["a"]) == string(want["b"]) {
		t.Fatal(err, string(raw), want)
	}
	config := honest.Blob(repo, m.Config.Digest)
	evil, evilDiff := zippedTar(t)
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	// mine is what a registry serves.
	type mine struct {
		*remotetest.Fake
		manifest cacheManifest
		config   []byte
		sent     atomic.Int64 // by an answer without an end
	}
	// put stores the manifest and the config of the cache as they were changed.
	put := func(s *mine) {
		s.manifest.Config.Digest, s.manifest.Config.Size = oci.DigestOf(s.config), int64(len(s.config))
		s.AddBlob(repo, s.config)
		s.AddManifest(repo, "1", mediaType, encode(s.manifest))
	}
	// replaced puts a blob in the place of each layer, in the manifest and in the records.
	replaced := func(blob []byte, change func(*oci.Descriptor)) func(*mine) {
		return func(s *mine) {
			s.AddBlob(repo, blob)
			for i := range s.manifest.Layers {
				l := &s.manifest.Layers[i]
				old := l.Digest
				l.Digest, l.Size = oci.DigestOf(blob), int64(len(blob))
				change(l)
				s.config = bytes.ReplaceAll(s.config, []byte(old), []byte(l.Digest))
			}
			put(s)
		}
	}
	none := func(*oci.Descriptor) {}
	// answer sends something in the place of the layers, or of the config or manifest.
	answer := func(what string, f func(s *mine, w http.ResponseWriter, r *http.Request)) func(*mine) {
		return func(s *mine) {
			s.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				is := "layer"
				switch {
				case strings.Contains(r.URL.Path, "/manifests/"):
					is = "manifest"
				case !strings.Contains(r.URL.Path, "/blobs/"):
					is = ""
				case strings.HasSuffix(r.URL.Path, string(s.manifest.Config.Digest)):
					is = "config"
				}
				if is != what {
					return false
				}
				f(s, w, r)
				return true
			}
		}
	}
	content := func(s *mine, r *http.Request) []byte {
		return s.Blob(repo, oci.Digest(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]))
	}
	endless := func(s *mine, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		for range 1 << 20 {
			n, err := w.Write(make([]byte, 1<<10))
			if s.sent.Add(int64(n)); err != nil {
				return
			}
		}
	}
	redirect := func(to string) func(*mine, http.ResponseWriter, *http.Request) {
		return func(_ *mine, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.ReplaceAll(to, "PATH", r.URL.Path), http.StatusTemporaryRedirect)
		}
	}
	const fenced = "http://169.254.169.254/latest/meta-data/"
	for _, c := range []struct {
		name string
		lie  func(*mine)
		log  string
	}{
		{"honest", func(*mine) {}, ""},
		{"honest, written anew", put, ""},
		{"honest, with layers at another server", answer("layer", redirect(honest.URL+"PATH")), ""},
		{"honest, with the config at another server", answer("config", redirect(honest.URL+"PATH")), ""},

		{"layer with other content", answer("layer", func(_ *mine, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(evil) }), "is not used"},
		{"layer with one bit that differs", answer("layer", func(s *mine, w http.ResponseWriter, r *http.Request) {
			b := slices.Clone(content(s, r))
			b[len(b)-9] ^= 1
			_, _ = w.Write(b)
		}), "is not used"},
		{"layer that is cut", answer("layer", func(s *mine, w http.ResponseWriter, r *http.Request) {
			b := content(s, r)
			_, _ = w.Write(b[:len(b)/2])
		}), "is not used"},
		{"layer that goes on", answer("layer", func(s *mine, w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(append(slices.Clone(content(s, r)), 0))
		}), "is not used"},
		{"layer without an end", answer("layer", endless), "is not used"},
		{"layer that is absent", answer("layer", func(_ *mine, w http.ResponseWriter, _ *http.Request) {
			remotetest.Refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "no such blob")
		}), "no such blob"},
		{"layer at a fenced address", answer("layer", redirect(fenced)), "no registry may lead to"},
		{"layer from itself", answer("layer", redirect("PATH")), "is not used"},
		{"layer that is a page", answer("layer", func(_ *mine, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<html>")
		}), "is not used"},
		{"layer with another diffID", replaced(evil, none), "is not used"},
		{"layers that are exchanged", func(s *mine) {
			a, b := &s.manifest.Layers[0], &s.manifest.Layers[1]
			a.Annotations, b.Annotations = b.Annotations, a.Annotations
			put(s)
		}, "is not used"},
		{"layer that is no tar", func(s *mine) {
			junk := bytes.Repeat([]byte("junk"), 1000)
			replaced(junk, func(d *oci.Descriptor) { d.Annotations[cachetransfer.DiffID] = string(oci.DigestOf(junk)) })(s)
		}, "is not used"},
		{"layer of a smaller size", replaced(evil, func(d *oci.Descriptor) { d.Size = 5; d.Annotations[cachetransfer.DiffID] = string(evilDiff) }), "is not used"},
		{"layer of a larger size", replaced(evil, func(d *oci.Descriptor) { d.Size++; d.Annotations[cachetransfer.DiffID] = string(evilDiff) }), "is not used"},
		{"layer of a negative size", replaced(evil, func(d *oci.Descriptor) { d.Size = -9; d.Annotations[cachetransfer.DiffID] = string(evilDiff) }), "is not used"},
		{"layer of the largest size", replaced(evil, func(d *oci.Descriptor) {
			d.Size = 1<<63 - 1
			d.Annotations[cachetransfer.DiffID] = string(evilDiff)
		}), "is not used"},
		{"layer without a digest", func(s *mine) {
			text := string(encode(s.manifest))
			for _, l := range s.manifest.Layers {
				text = strings.ReplaceAll(text, `"digest":"`+string(l.Digest)+`",`, "")
				s.config = bytes.ReplaceAll(s.config, []byte(`"blob":"`+l.Digest+`",`), nil)
				s.config = bytes.ReplaceAll(s.config, []byte(`"blob":"`+l.Digest+`"`), nil)
			}
			text = strings.ReplaceAll(text, string(s.manifest.Config.Digest), string(oci.DigestOf(s.config)))
			text = strings.ReplaceAll(text, fmt.Sprintf(`"size":%d`, s.manifest.Config.Size), fmt.Sprintf(`"size":%d`, len(s.config)))
			s.AddBlob(repo, s.config)
			s.AddManifest(repo, "1", mediaType, []byte(text))
		}, "no digest"},

		{"records with other content", answer("config", func(s *mine, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.ReplaceAll(s.config, []byte(`"layer":0`), []byte(`"layer":1`)))
		}), "has digest"},
		{"records that are cut", answer("config", func(s *mine, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(s.config[:9]) }), "bytes"},
		{"records without an end", answer("config", endless), "has digest"},
		{"records at a fenced address", answer("config", redirect(fenced)), "no registry may lead to"},
		{"records that are too large", func(s *mine) {
			s.config = append(s.config, bytes.Repeat([]byte(" "), cachetransfer.MaxConfig)...)
			put(s)
		}, "limit"},
		{"records of a negative size", func(s *mine) {
			s.manifest.Config.Size = -1
			s.AddManifest(repo, "1", mediaType, encode(s.manifest))
		}, "has digest"},
		{"records without a digest", func(s *mine) {
			s.AddManifest(repo, "1", mediaType, bytes.ReplaceAll(encode(s.manifest), []byte(`"digest":"`+s.manifest.Config.Digest+`",`), nil))
		}, "no digest"},
		{"records of a layer that is not there", func(s *mine) {
			s.config = bytes.ReplaceAll(s.config, []byte(`"layer":1`), []byte(`"layer":7`))
			put(s)
		}, "there is no layer 7"},
		{"records that say nothing", func(s *mine) { s.config = []byte("null"); put(s) }, ""},

		{"manifest without an end", answer("manifest", endless), "is longer than"},
		{"manifest with another digest", answer("manifest", func(_ *mine, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			w.Header().Set("Docker-Content-Digest", string(oci.DigestOf(nil)))
			_, _ = w.Write(raw)
		}), "has digest"},
		{"manifest that is cut", func(s *mine) { s.AddManifest(repo, "1", mediaType, raw[:len(raw)-20]) }, "WARNING"},
		{"manifest and index at once", func(s *mine) {
			s.AddManifest(repo, "1", mediaType, bytes.Replace(raw, []byte(`"layers"`), []byte(`"manifests":[],"layers"`), 1))
		}, "at once"},
		{"manifest at a fenced address", answer("manifest", redirect(fenced)), "no registry may lead to"},
		{"index with a manifest of another size", func(s *mine) {
			s.AddManifest(repo, string(oci.DigestOf(raw)), mediaType, raw)
			s.AddManifest(repo, "1", oci.MediaTypeOCIIndex, encode(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeOCIIndex,
				"manifests": []oci.Descriptor{{MediaType: mediaType, Digest: oci.DigestOf(raw), Size: 7}}}))
		}, "the index says 7"},
		{"no manifest", answer("manifest", func(_ *mine, w http.ResponseWriter, _ *http.Request) {
			remotetest.Refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "no such manifest")
		}), "no such manifest"},
		{"password asked for by another host", answer("manifest", func(_ *mine, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+fenced+`",service="s"`)
			w.WriteHeader(http.StatusUnauthorized)
		}), "WARNING"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &mine{Fake: remotetest.StartFake(t, false), manifest: m, config: slices.Clone(config)}
			s.manifest.Layers = slices.Clone(m.Layers)
			for i, l := range s.manifest.Layers {
				s.AddBlob(repo, honest.Blob(repo, l.Digest))
				s.manifest.Layers[i].Annotations = maps.Clone(l.Annotations)
			}
			put(s)
			c.lie(s)
			w := newWorld(t)
			got, _, watch, err := w.cachedBuild(nil, from(s.Addr()+"/"+repo+":1"))
			if err != nil {
				t.Fatal(err)
			}
			logs := watch.logs.String()
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the result is\n%v\nwant\n%v", got, want)
			}
			switch {
			case strings.HasPrefix(c.name, "honest") && watch.cached != watch.copied:
				t.Errorf("%d of %d steps were in the cache\n%s", watch.cached, watch.copied, logs)
			case !strings.HasPrefix(c.name, "honest") && watch.cached != 0:
				t.Errorf("%d of %d steps were in the cache\n%s", watch.cached, watch.copied, logs)
			case !strings.Contains(logs, c.log):
				t.Errorf("the log is %q, want %q", logs, c.log)
			}
			if n := s.sent.Load(); n > 64<<20 {
				t.Errorf("%d bytes of an answer without an end were read", n)
			}
			if _, err := w.store.Layers.Stat(t.Context(), oci.Chain{evilDiff}); err == nil {
				t.Error("a layer that the cache lied about is in the store")
			}
		})
	}
}
