package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"ply/internal/errs"
)

var hexA = strings.Repeat("a", 64)
var dA = "sha256:" + hexA

func TestParseDigest(t *testing.T) {
	if d, err := ParseDigest(dA); err != nil || d.Hex() != hexA || d.Short() != hexA[:12] {
		t.Fatalf("ParseDigest(%q) = %v, %v", dA, d, err)
	}
	for _, bad := range []string{
		"", "sha256:", "sha256:" + hexA[1:], "sha256:" + hexA + "a", "sha256:" + strings.ToUpper(hexA), "md5:" + hexA, "sha512:" + hexA,
		"sha256:../../etc/passwd", "sha256:" + hexA[:62] + "/.", " " + dA, dA + "\x00", "SHA256:" + hexA, hexA, "sha256:" + strings.Repeat("a", 10<<20),
	} {
		if d, err := ParseDigest(bad); !errors.Is(err, errs.Invalid) || d != "" {
			t.Errorf("ParseDigest(%.40q) = %q, %v; want class Invalid", bad, d, err)
		}
		var v struct{ D Digest }
		b, _ := json.Marshal(map[string]string{"D": bad})
		if err := json.Unmarshal(b, &v); err == nil {
			t.Errorf("JSON decoding accepts %.40q as a digest", bad)
		}
	}
}

// The ChainID of two layers is that of the image-spec's formula.
func TestChainID(t *testing.T) {
	c := Chain{DiffID(dA), DiffID("sha256:" + strings.Repeat("b", 64))}
	want := ChainID(DigestOf([]byte(dA + " sha256:" + strings.Repeat("b", 64))))
	if got := c.ID(); got != want {
		t.Errorf("ID() = %s, want %s", got, want)
	}
	if ids := c.IDs(); ids[0] != ChainID(dA) || ids[1] != want {
		t.Errorf("IDs() = %v", ids)
	}
	if (Chain)(nil).ID() != "" || c.Parent().ID() != ChainID(dA) || c.Top() != c[1] {
		t.Error("empty chain, Parent or Top is wrong")
	}
}

func TestParseReference(t *testing.T) {
	for _, c := range []struct{ in, full, familiar, domain, path, tag string }{
		{"mysql", "docker.io/library/mysql:latest", "mysql:latest", "docker.io", "library/mysql", "latest"},
		{"wangbm/hello:v0.1", "docker.io/wangbm/hello:v0.1", "wangbm/hello:v0.1", "docker.io", "wangbm/hello", "v0.1"},
		{"172.28.109.11:5000/mhk/ubuntu:1.3", "172.28.109.11:5000/mhk/ubuntu:1.3", "172.28.109.11:5000/mhk/ubuntu:1.3", "172.28.109.11:5000", "mhk/ubuntu", "1.3"},
		{"localhost/x", "localhost/x:latest", "localhost/x:latest", "localhost", "x", "latest"},
		{"[::1]:5000/x:y", "[::1]:5000/x:y", "[::1]:5000/x:y", "[::1]:5000", "x", "y"},
		{"x@" + dA, "docker.io/library/x@" + dA, "x@" + dA, "docker.io", "library/x", ""},
	} {
		r, err := ParseReference(c.in)
		if err != nil {
			t.Errorf("ParseReference(%q): %v", c.in, err)
			continue
		}
		r = r.WithDefaultTag()
		if r.String() != c.full || r.Familiar() != c.familiar || r.Domain() != c.domain || r.Path() != c.path || r.Tag() != c.tag {
			t.Errorf("ParseReference(%q) = %s %s %s %s %s", c.in, r, r.Familiar(), r.Domain(), r.Path(), r.Tag())
		}
	}
	for _, bad := range []string{"", ":", ":5000/x", "x:", "x/", "/x", "X", "x@y@z", hexA, "-v", "a b", "x@sha256:abc", "x//y", "x:" + strings.Repeat("t", 129), strings.Repeat("a", 4096), "x:tag@md5:" + strings.Repeat("a", 32), "x@sha512:" + strings.Repeat("a", 128)} {
		if r, err := ParseReference(bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("ParseReference(%.40q) = %v, %v; want class Invalid", bad, r, err)
		}
	}
}

func manifest(extra string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":3}]%s}`,
		MediaTypeOCIManifest, MediaTypeOCIConfig, dA, MediaTypeOCILayerGzip, dA, extra)
}

func TestDecodeManifest(t *testing.T) {
	m, err := DecodeManifest([]byte(manifest(`,"unknown":{"Layers":1}`)), MediaTypeOCIManifest+"; charset=utf-8")
	if err != nil || len(m.Layers) != 1 || m.Config.Size != 2 {
		t.Fatalf("DecodeManifest = %+v, %v", m, err)
	}
	idx := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":7}]}`, MediaTypeOCIManifest, dA)
	if i, err := DecodeIndex([]byte(idx), ""); err != nil || i.MediaType != MediaTypeOCIIndex {
		t.Errorf("DecodeIndex without a media type = %+v, %v", i, err)
	}
	// Some programs leave the version out.
	for name, text := range map[string]string{"manifest": manifest(""), "index": idx} {
		text = strings.Replace(text, `"schemaVersion":2,`, "", 1)
		if got, err := SniffManifest([]byte(text), ""); err != nil || IsIndex(got) != (name == "index") {
			t.Errorf("%s without a schemaVersion: %q, %v", name, got, err)
		}
	}
	deep := strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70)
	for name, c := range map[string]struct{ data, contentType string }{
		"image and index at once":    {manifest(`,"manifests":[]`), ""},
		"served as something else":   {manifest(""), MediaTypeDockerManifest},
		"served as an index":         {manifest(""), MediaTypeOCIIndex},
		"an index":                   {idx, ""},
		"duplicate key":              {manifest(`,"layers":[]`), ""},
		"key in another case":        {manifest(`,"Layers":[]`), ""},
		"nested key in another case": {strings.Replace(manifest(""), `"size":3`, `"Size":3`, 1), ""},
		"trailing data":              {manifest("") + "{}", ""},
		"too deep":                   {manifest(`,"x":` + deep), ""},
		"negative size":              {strings.Replace(manifest(""), `"size":3`, `"size":-3`, 1), ""},
		"bad digest":                 {strings.Replace(manifest(""), dA, "sha256:../x", 1), ""},
		"no digest":                  {strings.Replace(manifest(""), fmt.Sprintf(`"digest":%q,`, dA), "", 1), ""},
		"schema 1":                   {`{"schemaVersion":1,"fsLayers":[]}`, ""},
		"schema 3":                   {strings.Replace(manifest(""), `"schemaVersion":2`, `"schemaVersion":3`, 1), ""},
		"byte order mark":            {"\xef\xbb\xbf" + manifest(""), ""},
		"nothing":                    {"", ""},
		"null":                       {"null", ""},
		"too many layers":            {strings.Replace(manifest(""), `"layers":[`, `"layers":[`+strings.Repeat(fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":1},`, dA), 500), 1), ""},
		"too long":                   {manifest(`,"x":"` + strings.Repeat("y", MaxManifest) + `"`), ""},
	} {
		if m, err := DecodeManifest([]byte(c.data), c.contentType); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: DecodeManifest = %+v, %v; want class Invalid", name, m, err)
		}
	}
}

func TestDecodeConfig(t *testing.T) {
	ok := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":[%q]},"history":[{"created_by":"x"},{"empty_layer":true}]}`, dA)
	c, err := DecodeConfig([]byte(ok))
	if err != nil || c.Config.Cmd[0] != "sh" || len(c.RootFS.DiffIDs) != 1 {
		t.Fatalf("DecodeConfig = %+v, %v", c, err)
	}
	if _, err := DecodeConfig([]byte(strings.Replace(ok, `{"created_by":"x"},`, "", 1))); err != nil {
		t.Errorf("a history of another length: %v; real images have it", err)
	}
	for name, data := range map[string]string{
		"no rootfs":   `{"architecture":"amd64","os":"linux"}`,
		"bad diff id": strings.Replace(ok, dA, "sha256:zz", 1),
		"wrong type":  strings.Replace(ok, `["sh"]`, `7`, 1),
		"NUL in Env":  strings.Replace(ok, `"Cmd":["sh"]`, `"Env":["A=\u0000"]`, 1),
	} {
		if c, err := DecodeConfig([]byte(data)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: DecodeConfig = %+v, %v; want class Invalid", name, c, err)
		}
	}
}

// JSON null is not a digest, although it decodes into one without an error.
func TestNullIsNoDigest(t *testing.T) {
	if _, err := DecodeConfig([]byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[null]}}`)); !errors.Is(err, errs.Invalid) {
		t.Errorf("config: %v, want class Invalid", err)
	}
	if _, err := DecodeManifest([]byte(strings.ReplaceAll(manifest(""), `"`+dA+`"`, "null")), ""); !errors.Is(err, errs.Invalid) {
		t.Errorf("manifest: %v, want class Invalid", err)
	}
}

// An index is not decoded as a manifest, nor a manifest as an index.
func TestManifestAndIndexAreNotMixedUp(t *testing.T) {
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":7}]}`, MediaTypeOCIManifest, dA)
	if _, err := DecodeManifest([]byte(index), ""); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "is an index") {
		t.Errorf("DecodeManifest of an index: %v", err)
	}
	if _, err := DecodeIndex([]byte(manifest("")), ""); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "is an image manifest") {
		t.Errorf("DecodeIndex of a manifest: %v", err)
	}
}

// Each limit accepts its value and refuses the next one.
func TestLimits(t *testing.T) {
	layer := func(size int64) string { return fmt.Sprintf(`{"mediaType":"x","digest":%q,"size":%d}`, dA, size) }
	many := func(n int) string { return strings.TrimSuffix(strings.Repeat(layer(1)+",", n), ",") }
	image := func(configSize int64, layers string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[%s]}`, MediaTypeOCIConfig, dA, configSize, layers)
	}
	index := func(manifests string) string { return fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s]}`, manifests) }
	config := func(layers int) string {
		ids := strings.TrimSuffix(strings.Repeat(fmt.Sprintf("%q,", dA), layers), ",")
		return fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%s]}}`, ids)
	}
	pad := func(data string, n int) string { return data + strings.Repeat(" ", n-len(data)) }
	nested := func(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }
	values := func(n int) string { return "[" + strings.Repeat("0,", n-2) + "0]" } // the array is a value too
	members := func(n int) string {
		var b strings.Builder
		for i := range n - 1 {
			fmt.Fprintf(&b, `,"%x":{}`, i)
		}
		return "{" + b.String()[1:] + "}"
	}
	decodeImage := func(s string) error { _, err := DecodeManifest([]byte(s), ""); return err }
	decodeIndex := func(s string) error { _, err := DecodeIndex([]byte(s), ""); return err }
	decodeConfig := func(s string) error { _, err := DecodeConfig([]byte(s)); return err }
	decodeAny := func(s string) error { var v any; return DecodeJSON([]byte(s), &v) }
	for _, c := range []struct {
		name   string
		decode func(string) error
		at     string // exactly the limit
		above  string
	}{
		{"length of a manifest", decodeImage, pad(image(1, layer(1)), MaxManifest), pad(image(1, layer(1)), MaxManifest+1)},
		{"length of an index", decodeIndex, pad(index(layer(1)), MaxManifest), pad(index(layer(1)), MaxManifest+1)},
		{"length of a config", decodeConfig, pad(config(1), MaxConfig), pad(config(1), MaxConfig+1)},
		{"layers of a manifest", decodeImage, image(1, many(MaxLayers)), image(1, many(MaxLayers+1))},
		{"layers of a config", decodeConfig, config(MaxLayers), config(MaxLayers + 1)},
		{"manifests of an index", decodeIndex, index(many(MaxIndexChildren)), index(many(MaxIndexChildren + 1))},
		{"size of a layer", decodeImage, image(1, layer(MaxLayerSize)), image(1, layer(MaxLayerSize+1))},
		{"size of a config", decodeImage, image(MaxConfig, layer(1)), image(MaxConfig+1, layer(1))},
		{"size of a manifest in an index", decodeIndex, index(layer(MaxManifest)), index(layer(MaxManifest + 1))},
		{"least size of a layer", decodeImage, image(1, layer(0)), image(1, layer(-1))},
		{"least size of a config", decodeImage, image(0, layer(1)), image(-1, layer(1))},
		{"least size of a manifest in an index", decodeIndex, index(layer(0)), index(layer(-1))},
		{"values", decodeAny, values(MaxJSONValues), values(MaxJSONValues + 1)},
		{"members", decodeAny, members(MaxJSONValues), members(MaxJSONValues + 1)},
		{"depth", decodeAny, nested(MaxJSONDepth + 1), nested(MaxJSONDepth + 2)},
	} {
		if err := c.decode(c.at); err != nil {
			t.Errorf("%s: at the limit: %v", c.name, err)
		}
		if err := c.decode(c.above); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: above the limit: %v, want class Invalid", c.name, err)
		}
	}
}

// Two bytes of a document can make its decoder allocate hundreds.
func TestManyValuesCostNoMemory(t *testing.T) {
	fill := func(limit int, before, value, after string) []byte {
		n := (limit - len(before) - len(after)) / (len(value) + 1)
		return []byte(before + strings.Repeat(value+",", n-1) + value + after)
	}
	for name, decode := range map[string]func() error{
		"layers": func() error {
			_, err := DecodeManifest(fill(MaxManifest, `{"schemaVersion":2,"layers":[`, "{}", "]}"), "")
			return err
		},
		"manifests": func() error {
			_, err := DecodeIndex(fill(MaxManifest, `{"schemaVersion":2,"manifests":[`, "{}", "]}"), "")
			return err
		},
		"history": func() error { _, err := DecodeConfig(fill(MaxConfig, `{"history":[`, "{}", "]}")); return err },
		"diff_ids": func() error {
			_, err := DecodeConfig(fill(MaxConfig, `{"rootfs":{"diff_ids":[`, `""`, "]}}"))
			return err
		},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := decode()
		runtime.ReadMemStats(&after)
		if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown > 100 || !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: allocated %d MiB, %v, want class Invalid", name, grown, err)
		}
	}
}

// The limits are part of what ply accepts from registries and archives; a change is deliberate.
func TestLimitsDoNotChangeUnnoticed(t *testing.T) {
	got := []int64{MaxManifest, MaxConfig, MaxJSONDepth, MaxJSONValues, MaxIndexChildren, MaxIndexDepth, MaxLayers, MaxLayerSize}
	if want := []int64{4 << 20, 8 << 20, 64, 200_000, 1000, 8, 500, 64 << 30}; !slices.Equal(got, want) {
		t.Errorf("limits %v, want %v", got, want)
	}
}

// A digest that is not well formed is refused everywhere in a manifest, an index and a config.
func TestDigestsAreChecked(t *testing.T) {
	for _, bad := range []string{"sha256:../../etc/passwd", "sha256:" + strings.ToUpper(hexA), "md5:" + hexA, ""} {
		config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, bad)
		if _, err := DecodeConfig([]byte(config)); !errors.Is(err, errs.Invalid) {
			t.Errorf("config with layer %q: %v, want class Invalid", bad, err)
		}
		index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":%q,"digest":%q,"size":7}]}`, MediaTypeOCIManifest, bad)
		if _, err := DecodeIndex([]byte(index), ""); !errors.Is(err, errs.Invalid) {
			t.Errorf("index with manifest %q: %v, want class Invalid", bad, err)
		}
		for i := range 2 { // the digest of the config, that of the layer
			parts := strings.SplitN(manifest(""), dA, 3)
			parts[i] += bad
			parts[1-i] += dA
			if _, err := DecodeManifest([]byte(strings.Join(parts, "")), ""); !errors.Is(err, errs.Invalid) {
				t.Errorf("manifest with digest %q: %v, want class Invalid", bad, err)
			}
		}
		var id ImageID
		var diff DiffID
		var digest Digest
		if id.UnmarshalText([]byte(bad)) == nil || diff.UnmarshalText([]byte(bad)) == nil || digest.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("UnmarshalText accepts %q", bad)
		}
	}
}

func TestChoose(t *testing.T) {
	entry := func(os, arch, variant string) Descriptor {
		return Descriptor{MediaType: MediaTypeOCIManifest, Digest: DigestOf([]byte(os + arch + variant)), Platform: &Platform{OS: os, Architecture: arch, Variant: variant}}
	}
	idx := &Index{Manifests: []Descriptor{
		entry("unknown", "unknown", ""), entry("windows", "amd64", ""), entry("linux", "arm", "v6"), entry("linux", "arm", "v7"), entry("linux", "arm64", "v8"), entry("linux", "amd64", ""),
	}}
	for want, got := range map[string]int{"linux/amd64": 5, "linux/arm64": 4, "linux/arm/v7": 3, "linux/arm/v6": 2, "linux/arm/v8": 3, "windows/amd64": 1} {
		p, err := ParsePlatform(want)
		if err != nil {
			t.Fatal(err)
		}
		d, err := idx.Choose(p)
		if err != nil || d.Digest != idx.Manifests[got].Digest {
			t.Errorf("Choose(%s) = %v, %v; want entry %d", want, d.Platform, err, got)
		}
	}
	if _, err := idx.Choose(Platform{OS: "linux", Architecture: "s390x"}); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("Choose of an absent platform: %v; want NotFound that lists what there is", err)
	}
	bare := &Index{Manifests: []Descriptor{{MediaType: MediaTypeOCIManifest, Digest: Digest(dA)}}}
	if d, err := bare.Choose(HostPlatform()); err != nil || d.Digest != Digest(dA) {
		t.Errorf("Choose without platforms = %v, %v", d, err)
	}
}

// What the strict decoder accepts, encoding/json accepts with the same meaning.
func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(manifest("")))
	f.Add([]byte(manifest(`,"manifests":[]`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(data, "")
		if err != nil {
			return
		}
		var loose map[string]json.RawMessage
		if err := json.Unmarshal(data, &loose); err != nil {
			t.Fatalf("accepted data that is not a JSON object: %v", err)
		}
		var layers []Descriptor
		if json.Unmarshal(loose["layers"], &layers); len(layers) != len(m.Layers) {
			t.Fatalf("another reader sees %d layers, not %d", len(layers), len(m.Layers))
		}
	})
}

func FuzzParseReference(f *testing.F) {
	f.Add("docker.io/library/x:latest")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q → %q → %q, %v", s, r, again, err)
		}
	})
}
