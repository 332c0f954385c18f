package content

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"ply/internal/errs"
)

func TestParseDigest(t *testing.T) {
	for s, want := range map[string]bool{
		"sha256:" + strings.Repeat("0", 64):        true,
		"sha512:" + strings.Repeat("a", 128):       true,
		"sha256:" + strings.Repeat("0", 63):        false,
		"sha256:" + strings.Repeat("A", 64):        false,
		"sha512:" + strings.Repeat("a", 64):        false,
		"md5:" + strings.Repeat("a", 32):           false,
		":" + strings.Repeat("a", 64):              false,
		"sha256:../../" + strings.Repeat("0", 58):  false,
		"sha256:" + strings.Repeat("0", 64) + "\n": false,
		"baddigest": false, "": false,
	} {
		d, err := ParseDigest(s)
		if (err == nil) != want || err == nil && string(d) != s || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("ParseDigest(%q) = %q, %v; want ok = %v", s, d, err, want)
		}
	}
	if d := SHA512.Of([]byte("x")); d.Algorithm() != SHA512 || len(d.Hex()) != 128 {
		t.Errorf("SHA512.Of = %s", d)
	}
}

// The hand-written matchers accept exactly what the expressions of the specification accept.
func TestNamesAgreeWithTheSpecification(t *testing.T) {
	names := regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tags := regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	alphabet := "a0._-/Az%\n"
	var all func(prefix string, n int)
	all = func(prefix string, n int) {
		if _, err := ParseRepository(prefix); (err == nil) != names.MatchString(prefix) || strings.HasSuffix(prefix, "\n") && err == nil {
			t.Errorf("ParseRepository(%q): %v", prefix, err)
		}
		if _, err := ParseTag(prefix); (err == nil) != (tags.MatchString(prefix) && !strings.HasSuffix(prefix, "\n")) {
			t.Errorf("ParseTag(%q): %v", prefix, err)
		}
		for _, c := range alphabet[:min(n*100, len(alphabet))] {
			all(prefix+string(c), n-1)
		}
	}
	all("", 5)
	for _, s := range []string{strings.Repeat("a", 256), "а/b", "a//b", "/a", "a/", "..", "a/../b"} {
		if _, err := ParseRepository(s); !errors.Is(err, errs.Invalid) {
			t.Errorf("ParseRepository(%q): %v", clip(s), err)
		}
	}
	if _, err := ParseTag(strings.Repeat("a", 129)); !errors.Is(err, errs.Invalid) {
		t.Errorf("a tag of 129 bytes: %v", err)
	}
}

func TestParseManifest(t *testing.T) {
	const (
		img  = "application/vnd.oci.image.manifest.v1+json"
		idx  = "application/vnd.oci.image.index.v1+json"
		dock = "application/vnd.docker.distribution.manifest.v2+json"
	)
	desc := `{"mediaType":"application/x","size":2,"digest":"` + string(SHA256.Of([]byte("{}"))) + `"}`
	sha512 := `{"mediaType":"application/x","size":2,"digest":"` + string(SHA512.Of([]byte("{}"))) + `"}`
	for _, c := range []struct {
		name, doc, contentType, want string // want: the media type, "" = refused
	}{
		{"image", `{"schemaVersion":2,"config":` + desc + `,"layers":[]}`, img, img},
		{"a parameter on the content type", `{"schemaVersion":2,"config":` + desc + `,"layers":[]}`, img + "; charset=utf-8", img},
		{"no content type", `{"schemaVersion":2,"config":` + desc + `,"layers":[]}`, "", img},
		{"index without a content type", `{"schemaVersion":2,"manifests":[]}`, "", idx},
		{"schema 2 by its field", `{"schemaVersion":2,"mediaType":"` + dock + `","config":` + desc + `,"layers":[]}`, "application/json", dock},
		{"sha512", `{"schemaVersion":2,"config":` + sha512 + `,"layers":[]}`, img, img},
		{"unknown type", `{"anything":[1,2]}`, "application/vnd.example+json", "application/vnd.example+json"},
		{"unknown type with references", `{"blobs":[` + desc + `]}`, "application/vnd.oci.artifact.manifest.v1+json", "application/vnd.oci.artifact.manifest.v1+json"},
		{"image and index at once", `{"schemaVersion":2,"config":` + desc + `,"layers":[],"manifests":[]}`, img, ""},
		{"contradiction", `{"schemaVersion":2,"mediaType":"` + idx + `","config":` + desc + `,"layers":[]}`, img, ""},
		{"an index as an image", `{"schemaVersion":2,"manifests":[]}`, img, ""},
		{"schema 1", `{"schemaVersion":1,"fsLayers":[]}`, "application/vnd.docker.distribution.manifest.v1+json", ""},
		{"a key twice", `{"schemaVersion":2,"config":` + desc + `,"config":` + desc + `,"layers":[]}`, img, ""},
		{"a bad digest", `{"schemaVersion":2,"config":{"mediaType":"x","size":1,"digest":"sha256:../x"},"layers":[]}`, img, ""},
		{"a negative size", `{"schemaVersion":2,"config":` + strings.Replace(desc, `"size":2`, `"size":-2`, 1) + `,"layers":[]}`, img, ""},
		{"not an object", `[]`, img, ""},
		{"nothing", ``, img, ""},
		{"a control character in the type", `{}`, "a/b\x00", ""},
	} {
		m, err := ParseManifest([]byte(c.doc), c.contentType)
		if c.want == "" {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: %+v, %v; want errs.Invalid", c.name, m, err)
			}
			continue
		}
		if err != nil || m.MediaType != c.want {
			t.Errorf("%s: %+v, %v; want %s", c.name, m, err, c.want)
		}
	}
	m, err := ParseManifest([]byte(`{"schemaVersion":2,"config":`+desc+`,"layers":[`+desc+`],"subject":`+desc+`}`), img)
	if err != nil || len(m.Blobs) != 2 || m.Subject == nil || m.ArtifactType != "application/x" {
		t.Errorf("references: %+v, %v", m, err)
	}
}
