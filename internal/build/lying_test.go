package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"ply/internal/build"
	"ply/internal/build/cachetransfer"
	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
	"ply/internal/oci"
)

// blobs is a directory of a client with a cache.
type blobs struct {
	mu   sync.Mutex
	data map[oci.Digest][]byte
}

func (b *blobs) Open(_ context.Context, d oci.Digest) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, ok := b.data[d]
	if !ok {
		return nil, errs.New(errs.NotFound, "no blob %s", d)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (b *blobs) Write(_ context.Context, d oci.Descriptor, r io.Reader) error {
	data, err := io.ReadAll(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data[d.Digest] = data
	return err
}

// add stores a blob and returns its descriptor.
func (b *blobs) add(mediaType string, data []byte) oci.Descriptor {
	d := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestOf(data), Size: int64(len(data))}
	b.data[d.Digest] = data
	return d
}

// caching is a client with such a directory.
type caching struct {
	*client
	dir *blobs
}

func (c caching) CacheDir(context.Context, string) (cachetransfer.Dir, error) { return c.dir, nil }

// watching counts the copies that were executed, and those that were in a cache.
type watching struct {
	listener
	mu             sync.Mutex
	cached, copied int
	logs           strings.Builder
}

func (w *watching) Done(v *ops.Vertex, o solver.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := v.Op.(*ops.Files); ok {
		w.copied++
		if o.Cached {
			w.cached++
		}
	}
}

func (w *watching) Log(_ *ops.Vertex, _ bool, data []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs.Write(data)
}

// cachedBuild builds with caches in dir, and returns the files of the result.
func (w *world) cachedBuild(dir *blobs, change func(*build.Request)) (map[string]string, *build.Result, *watching, error) {
	w.t.Helper()
	context := w.t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM scratch\nCOPY a /a\nCOPY b /b\n", "a": "A", "b": "B"} {
		p := filepath.Join(context, name)
		if err := errors.Join(os.WriteFile(p, []byte(text), 0o644), os.Chtimes(p, time.Unix(1600000000, 0), time.Unix(1600000000, 0))); err != nil {
			w.t.Fatal(err)
		}
	}
	root, err := os.Open(context)
	if err != nil {
		w.t.Fatal(err)
	}
	c := caching{&client{t: w.t, dir: w.builder.Open(root), tars: map[int]*stream{}, files: map[string]string{}}, dir}
	defer c.client.dir.Close()
	req := build.Request{Front: dockerfile.Request{Options: map[string]string{"dockerfilekey": "context"}}, Client: c, Exports: exports("local")}
	change(&req)
	watch := &watching{}
	res, err := w.builder.Build(w.t.Context(), req, watch)
	return c.files, res, watch, err
}

// A cache that is not what it claims gives no file to a build: the step is executed, and the log says why. An honest one is used.
func TestLyingCaches(t *testing.T) {
	honest := &blobs{data: map[oci.Digest][]byte{}}
	want, res, _, err := newWorld(t).cachedBuild(honest, func(r *build.Request) {
		r.CacheTo = []build.CacheRef{{Type: "local", Attrs: map[string]string{"dest": "x", "mode": "max"}}}
	})
	if err != nil {
		t.Fatal(err)
	}
	var top oci.Descriptor
	var manifest struct {
		SchemaVersion int              `json:"schemaVersion"`
		MediaType     string           `json:"mediaType"`
		Config        oci.Descriptor   `json:"config"`
		Layers        []oci.Descriptor `json:"layers"`
	}
	if err := errors.Join(json.Unmarshal([]byte(res.Answers["cache.manifest"]), &top), json.Unmarshal(honest.data[top.Digest], &manifest)); err != nil || len(manifest.Layers) != 2 {
		t.Fatal(err, manifest)
	}
	evil := func() []byte { // a layer with another /a and /b
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, name := range []string{"a", "b"} {
			if err := errors.Join(tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 4}), func() error { _, err := io.WriteString(tw, "evil"); return err }()); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	zipped := func(data []byte) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(data); err != nil || z.Close() != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	// replaced puts a blob in the place of a layer, in the manifest and in the records.
	replaced := func(b *blobs, data []byte, change func(*oci.Descriptor)) oci.Digest {
		m := manifest
		m.Layers = append([]oci.Descriptor(nil), manifest.Layers...)
		config := string(b.data[m.Config.Digest])
		for i, old := range manifest.Layers {
			m.Layers[i] = b.add(old.MediaType, data)
			m.Layers[i].Annotations = maps.Clone(old.Annotations)
			change(&m.Layers[i])
			config = strings.ReplaceAll(config, string(old.Digest), string(m.Layers[i].Digest))
		}
		m.Config = b.add(m.Config.MediaType, []byte(config))
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b.add(m.MediaType, raw).Digest
	}
	layer := func(f func(data []byte) []byte) func(*blobs) oci.Digest {
		return func(b *blobs) oci.Digest {
			for _, l := range manifest.Layers {
				if data := f(bytes.Clone(b.data[l.Digest])); data != nil {
					b.data[l.Digest] = data
				} else {
					delete(b.data, l.Digest)
				}
			}
			return top.Digest
		}
	}
	loop := func(b *blobs) oci.Digest {
		list := []oci.Descriptor{top}
		for range 50 {
			raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": oci.MediaTypeOCIIndex, "manifests": list})
			if err != nil {
				t.Fatal(err)
			}
			list = []oci.Descriptor{b.add(oci.MediaTypeOCIIndex, raw)}
		}
		return list[0].Digest
	}
	for _, c := range []struct {
		name string
		lie  func(*blobs) oci.Digest // returns the digest of the manifest
		log  string                  // "" = the cache is used
	}{
		{"honest", func(*blobs) oci.Digest { return top.Digest }, ""},
		{"honest, with other files beside it", func(b *blobs) oci.Digest { b.add("", evil); return top.Digest }, ""},
		{"layer with other content", layer(func([]byte) []byte { return zipped(evil) }), "is not used"},
		{"layer with other content of the same size", layer(func(d []byte) []byte { d[len(d)-9] ^= 1; return d }), ""},
		{"layer that is cut", layer(func(d []byte) []byte { return d[:len(d)/2] }), "is not used"},
		{"layer that goes on", layer(func(d []byte) []byte { return append(d, 0) }), "is not used"},
		{"layer that is absent", layer(func([]byte) []byte { return nil }), "no blob"},
		{"layer with another diffID", func(b *blobs) oci.Digest { return replaced(b, zipped(evil), func(*oci.Descriptor) {}) }, "is not used"},
		{"layer that is no tar", func(b *blobs) oci.Digest {
			junk := bytes.Repeat([]byte("junk"), 1000)
			return replaced(b, zipped(junk), func(d *oci.Descriptor) { d.Annotations[cachetransfer.DiffID] = string(oci.DigestOf(junk)) })
		}, "is not used"},
		{"layer of another size", func(b *blobs) oci.Digest {
			return replaced(b, zipped(evil), func(d *oci.Descriptor) { d.Size = 5; d.Annotations[cachetransfer.DiffID] = string(oci.DigestOf(evil)) })
		}, "is not used"},
		{"layer of a negative size", func(b *blobs) oci.Digest {
			return replaced(b, zipped(evil), func(d *oci.Descriptor) { d.Size = -9; d.Annotations[cachetransfer.DiffID] = string(oci.DigestOf(evil)) })
		}, "is not used"},
		{"layer of the largest size", func(b *blobs) oci.Digest {
			return replaced(b, zipped(evil), func(d *oci.Descriptor) {
				d.Size = 1<<63 - 1
				d.Annotations[cachetransfer.DiffID] = string(oci.DigestOf(evil))
			})
		}, "is not used"},
		{"records with other content", func(b *blobs) oci.Digest {
			b.data[manifest.Config.Digest] = bytes.ReplaceAll(b.data[manifest.Config.Digest], []byte(`"layer":0`), []byte(`"layer":1`))
			return top.Digest
		}, "another digest"},
		{"manifest with other content", func(b *blobs) oci.Digest { b.data[top.Digest] = append(b.data[top.Digest], '\n'); return top.Digest }, "another digest"},
		{"indexes in each other", loop, "no build cache"},
		{"no manifest", func(*blobs) oci.Digest { return oci.DigestOf(nil) }, "no blob"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &blobs{data: maps.Clone(honest.data)}
			manifest := c.lie(b)
			w := newWorld(t)
			got, _, watch, err := w.cachedBuild(b, func(r *build.Request) {
				r.CacheFrom = []build.CacheRef{{Type: "local", Attrs: map[string]string{"src": "x", "digest": string(manifest)}}}
			})
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the result is\n%v\nwant\n%v", got, want)
			}
			switch logs := watch.logs.String(); {
			case c.log == "" && strings.HasPrefix(c.name, "honest") && watch.cached != watch.copied:
				t.Errorf("%d of %d steps were in the cache\n%s", watch.cached, watch.copied, logs)
			case c.log != "" && (watch.cached != 0 || !strings.Contains(logs, c.log)):
				t.Errorf("%d of %d steps were in the cache, and the log is %q, want %q", watch.cached, watch.copied, logs, c.log)
			}
		})
	}
}
