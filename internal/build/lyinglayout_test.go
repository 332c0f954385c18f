package build_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// layingOut is a client with an OCI layout.
type layingOut struct {
	*client
	layout *blobs
}

func (c layingOut) Layout(context.Context, string, string) (build.Blobs, error) { return c.layout, nil }

// An OCI layout whose blobs are not what their names say gives no image to a build. One that has more than is asked for is used.
func TestLyingLayouts(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, remotetest.LayerSpec{Files: []remotetest.File{{Name: "a", Data: []byte("A")}}}, remotetest.LayerSpec{Files: []remotetest.File{{Name: "b", Data: []byte("B")}}})
	other := remotetest.Make(t, oci.FormatOCI, remotetest.LayerSpec{Files: []remotetest.File{{Name: "a", Data: []byte("evil")}}}, remotetest.LayerSpec{Files: []remotetest.File{{Name: "b", Data: []byte("evil")}}})
	config := oci.DigestOf(img.Config)
	// made stores a manifest that differs.
	made := func(b *blobs, old, new string) oci.Digest {
		return b.add(img.ManifestType, bytes.ReplaceAll(img.Manifest, []byte(old), []byte(new))).Digest
	}
	layer := func(f func([]byte) []byte) func(*blobs) oci.Digest {
		return func(b *blobs) oci.Digest {
			for _, l := range img.Layers {
				b.data[l.Digest] = f(slices.Clone(l.Blob))
			}
			return img.Digest()
		}
	}
	for _, c := range []struct {
		name string
		lie  func(*blobs) oci.Digest // returns the digest of the manifest
		err  string                  // "" = the image is used
	}{
		{"honest", func(*blobs) oci.Digest { return img.Digest() }, ""},
		{"honest, by an index", func(b *blobs) oci.Digest {
			data, mediaType := remotetest.MakeIndex(t, []oci.Platform{oci.HostPlatform()}, []*remotetest.Image{img})
			return b.add(mediaType, data).Digest
		}, ""},
		{"honest, with another image beside it", func(b *blobs) oci.Digest {
			b.add("", other.Manifest)
			return img.Digest()
		}, ""},
		{"manifest of another image", func(b *blobs) oci.Digest { b.data[img.Digest()] = other.Manifest; return img.Digest() }, "other content"},
		{"manifest that goes on", func(b *blobs) oci.Digest {
			b.data[img.Digest()] = append(slices.Clone(img.Manifest), '\n')
			return img.Digest()
		}, "other content"},
		{"manifest that is too large", func(b *blobs) oci.Digest {
			return b.add("", append(slices.Clone(img.Manifest), bytes.Repeat([]byte(" "), oci.MaxManifest)...)).Digest
		}, "more than"},
		{"config of another image", func(b *blobs) oci.Digest { b.data[config] = other.Config; return img.Digest() }, "other content|digest|missed"},
		{"config that is named", func(b *blobs) oci.Digest {
			return made(b, string(config), string(b.add("", other.Config).Digest))
		}, "unpacks to"},
		{"layer of another image", func(b *blobs) oci.Digest {
			for i, l := range img.Layers {
				b.data[l.Digest] = other.Layers[i].Blob
			}
			return img.Digest()
		}, "other content|missed"},
		{"layer with one bit that differs", layer(func(d []byte) []byte { d[len(d)-9] ^= 1; return d }), "other content"},
		{"layer that is cut", layer(func(d []byte) []byte { return d[:len(d)/2] }), "other content|missed"},
		{"layer that is absent", func(b *blobs) oci.Digest { delete(b.data, img.Layers[0].Digest); return img.Digest() }, "no blob"},
		{"layer of a negative size", func(b *blobs) oci.Digest {
			return made(b, fmt.Sprint(`"size": `, img.Layers[0].Size), `"size": -1`)
		}, "size"},
		{"layers that are exchanged", func(b *blobs) oci.Digest {
			x, y := string(img.Layers[0].Digest), string(img.Layers[1].Digest)
			data := bytes.ReplaceAll(bytes.ReplaceAll(bytes.ReplaceAll(img.Manifest, []byte(x), []byte("-")), []byte(y), []byte(x)), []byte(`"-"`), []byte(`"`+y+`"`))
			return b.add("", data).Digest
		}, "other content|missed|unpacks to"},
		{"digest that no blob has", func(*blobs) oci.Digest { return oci.DigestOf(nil) }, "no blob"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := &blobs{data: map[oci.Digest][]byte{}}
			b.add("", img.Config)
			b.add("", img.Manifest)
			for _, l := range img.Layers {
				b.add("", l.Blob)
			}
			b.data = maps.Clone(b.data)
			manifest := c.lie(b)
			w := newWorld(t)
			root, err := os.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(root.Name()+"/Dockerfile", []byte("FROM base\nCOPY --from=base /b /c\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			l := layingOut{&client{t: t, dir: w.builder.Open(root), tars: map[int]*stream{}, files: map[string]string{}}, b}
			defer l.client.dir.Close()
			_, err = w.builder.Build(t.Context(), build.Request{Front: dockerfile.Request{Options: map[string]string{
				"dockerfilekey": "context", "context:base": "oci-layout://there@" + string(manifest),
			}}, Client: l, Exports: exports("local")}, listener{})
			if c.err == "" {
				if err != nil || len(l.files) == 0 {
					t.Errorf("%v, files %v", err, l.files)
				}
				return
			}
			if err == nil || !slices.ContainsFunc(strings.Split(c.err, "|"), func(s string) bool { return strings.Contains(err.Error(), s) }) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if list, err := w.images.List(t.Context(), image.ListOptions{}); err != nil || len(list) > 0 {
				t.Errorf("images are here: %v, %v", list, err)
			}
		})
	}
}
