package export

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/oci"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// What registries get is bytes: the documents are held byte for byte.
func TestAssembleGolden(t *testing.T) {
	amd := Built{Platform: oci.Platform{OS: "linux", Architecture: "amd64"}, Config: []byte(`{"os":"linux","architecture":"amd64"}`), Chain: oci.Chain{oci.DiffID(oci.DigestOf([]byte("tar")))}}
	arm := Built{Platform: oci.Platform{OS: "linux", Architecture: "arm64"}, Config: []byte(`{"os":"linux","architecture":"arm64"}`), Chain: amd.Chain}
	attested := amd
	attested.Predicates = []Predicate{{Type: "https://spdx.dev/Document", File: "sbom.spdx.json", Data: []byte(`{"spdxVersion":"SPDX-2.3"}`)}, {Type: "https://slsa.dev/provenance/v1", File: "provenance.json", Data: []byte(`{}`)}}
	layer := []oci.Descriptor{{MediaType: oci.MediaTypeOCILayerGzip, Digest: oci.DigestOf([]byte("gz")), Size: 2, Annotations: map[string]string{"dropped": "x"}}}
	docker := []oci.Descriptor{{MediaType: oci.MediaTypeDockerLayerGzip, Digest: oci.DigestOf([]byte("gz")), Size: 2}}
	notes := map[string]string{"name": "example.com/app:1", "annotation.a": "1", "annotation-manifest[linux/amd64].b": "2", "annotation-manifest-descriptor.c": "3"}
	for _, tt := range []struct {
		name   string
		attrs  map[string]string
		images []Built
		layers [][]oci.Descriptor
		index  bool
	}{
		{"single", map[string]string{"name": "example.com/app:1"}, []Built{amd}, [][]oci.Descriptor{layer}, false},
		{"annotated", notes, []Built{amd}, [][]oci.Descriptor{layer}, false},
		{"docker", map[string]string{"oci-mediatypes": "false"}, []Built{amd, arm}, [][]oci.Descriptor{docker, docker}, true},
		{"platforms", map[string]string{"annotation-index.a": "1", "annotation-index-descriptor.b": "2", "annotation-manifest-descriptor[linux/arm64].c": "3"}, []Built{amd, arm}, [][]oci.Descriptor{layer, layer}, true},
		{"attested", map[string]string{"name": "example.com/app:1,example.com/other"}, []Built{attested}, [][]oci.Descriptor{layer}, false},
		{"attested-config", map[string]string{"name": "example.com/app:1", "oci-artifact": "false"}, []Built{attested, arm}, [][]oci.Descriptor{layer, layer}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, err := Parse("image", tt.attrs, nil)
			if err != nil {
				t.Fatal(err)
			}
			c, err := o.Assemble(tt.images, tt.layers, tt.index)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			show := func(what string, d Document) {
				fmt.Fprintf(&b, "== %s %s %s %d %v\n%s\n", what, d.MediaType, d.Digest, d.Size, d.Annotations, d.Data)
			}
			show("root", c.Root)
			for _, m := range c.Manifests() {
				show("manifest", m)
			}
			for _, d := range c.Blobs {
				show("blob", d)
			}
			for _, l := range c.Layers {
				fmt.Fprintf(&b, "== layer %s %s\n", l.MediaType, l.Digest)
			}
			path := filepath.Join("testdata", tt.name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil || string(want) != b.String() {
				t.Errorf("%v: got\n%s\nwant\n%s", err, b.String(), want)
			}
			// Our own strict decoders read what is written.
			if c.IsIndex() {
				x, err := oci.DecodeIndex(c.Root.Data, c.Root.MediaType)
				if err != nil {
					t.Fatal(err)
				}
				if d, err := x.Choose(amd.Platform); err != nil || d.Digest != c.Images[0].Digest {
					t.Errorf("Choose: %v, %v", d, err)
				}
			}
			for _, m := range c.Images {
				if _, err := oci.DecodeManifest(m.Data, m.MediaType); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestAssembleErrors(t *testing.T) {
	b := Built{Platform: oci.Platform{OS: "linux", Architecture: "amd64"}, Config: []byte(`{}`)}
	attested := b
	attested.Predicates = []Predicate{{Type: "x", Data: []byte("{}")}}
	for _, tt := range []struct {
		attrs map[string]string
		image Built
		want  string
	}{
		{map[string]string{"annotation-index.a": "1"}, b, "index annotations"},
		{map[string]string{"annotation-manifest[linux/s390x].a": "1"}, b, "no platform linux/s390x"},
		{map[string]string{"oci-mediatypes": "false"}, attested, "oci-mediatypes=false"},
	} {
		o, err := Parse("image", tt.attrs, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Assemble([]Built{tt.image}, [][]oci.Descriptor{{}}, false); err == nil || !strings.Contains(err.Error(), tt.want) || !isInvalid(err) {
			t.Errorf("%v: %v, want %q", tt.attrs, err, tt.want)
		}
	}
}

func isInvalid(err error) bool { return errors.Is(err, errs.Invalid) }
