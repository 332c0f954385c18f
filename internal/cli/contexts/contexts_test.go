package contexts

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ply/internal/errs"
)

// What is stored is read again, with the fields that only docker's client knows, and TLS material that is no longer wanted is gone.
func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := Open(dir)
	if list, damaged := s.List(); len(list)+len(damaged) > 0 {
		t.Errorf("%v, %v in a new store", list, damaged)
	}
	meta := s.MetadataPath("near")
	if err := os.MkdirAll(meta, 0o755); err != nil {
		t.Fatal(err)
	}
	doc := `{"Name":"near","Metadata":{"Description":"old","Team":"blue"},"Endpoints":{"docker":{"Host":"unix:///a","SkipTLSVerify":true,"More":1},"kubernetes":{"Host":"k"}}}`
	if err := os.WriteFile(filepath.Join(meta, "meta.json"), []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := s.Get("near")
	if err != nil || c.Description != "old" || c.Endpoint != (Endpoint{"unix:///a", true}) || len(c.TLS) != 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	c.Description, c.Endpoint = "", Endpoint{Host: "tcp://h:1"}
	c.TLS = map[string][]byte{CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key")}
	if err := s.Put(c); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(meta, "meta.json"))
	want := `{"Name":"near","Metadata":{"Team":"blue"},"Endpoints":{"docker":{"Host":"tcp://h:1","More":1,"SkipTLSVerify":false},"kubernetes":{"Host":"k"}}}`
	if err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
	if fi, err := os.Stat(filepath.Join(s.TLSPath("near"), "docker", Key)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", fi, err)
	}
	c.TLS = map[string][]byte{CA: []byte("other")}
	if err := s.Put(c); err != nil {
		t.Fatal(err)
	}
	if c, err := s.Get("near"); err != nil || !slices.Equal(slices.Collect(maps.Keys(c.TLS)), []string{CA}) || string(c.TLS[CA]) != "other" {
		t.Errorf("%+v, %v", c, err)
	}
	if list, damaged := s.List(); len(list) != 1 || len(damaged) > 0 {
		t.Errorf("%v, %v", list, damaged)
	}
	if err := s.Remove("near"); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("near"); !errors.Is(err, errs.NotFound) {
		t.Errorf("after the removal: %v", err)
	}
	if err := s.Remove("near"); !errors.Is(err, errs.NotFound) {
		t.Errorf("second removal: %v", err)
	}
	if _, err := os.Stat(s.TLSPath("near")); err == nil {
		t.Error("the files for TLS stay")
	}
}

// A name leads to no other place, and a document of another context is not taken for it.
func TestHostileStore(t *testing.T) {
	s := Open(t.TempDir())
	for _, name := range []string{"", "default", "../x", "a/b", ".hidden", "-flag", "x", "a b", strings.Repeat("a", 256)} {
		if err := s.Put(&Context{Name: name}); !errors.Is(err, errs.Invalid) {
			t.Errorf("put %q: %v", name, err)
		}
		if _, err := s.Get(name); !errors.Is(err, errs.Invalid) {
			t.Errorf("get %q: %v", name, err)
		}
	}
	for name, doc := range map[string]string{"other": `{"Name":"near"}`, "cut": `{"Name":`, "typed": `{"Name":"typed","Endpoints":{"docker":7}}`, "long": strings.Repeat(" ", maxFile+1)} {
		if err := os.MkdirAll(s.MetadataPath(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.MetadataPath(name), "meta.json"), []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
		if c, err := s.Get(name); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if list, damaged := s.List(); len(list) > 0 || len(damaged) != 4 {
		t.Errorf("%v, %v", list, damaged)
	}
}

// An archive has what a context is; both forms that docker reads are read, and one that leads elsewhere, lacks the document or is too long is refused.
func TestArchive(t *testing.T) {
	from := &Context{Name: "near", Description: "d", Endpoint: Endpoint{Host: "tcp://h:1"}, TLS: map[string][]byte{CA: []byte("ca"), Key: []byte("key")}}
	var b bytes.Buffer
	if err := Export(&b, from); err != nil {
		t.Fatal(err)
	}
	exported := b.Bytes()
	c, err := Import(bytes.NewReader(exported), "far")
	if err != nil || c.Name != "far" || c.Description != "d" || c.Endpoint != from.Endpoint || !maps.EqualFunc(c.TLS, from.TLS, bytes.Equal) {
		t.Errorf("%+v, %v", c, err)
	}
	archive := func(files ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i < len(files); i += 2 {
			if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(files[i+1])); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	var z bytes.Buffer
	zw := zip.NewWriter(&z)
	for name, text := range map[string]string{"meta.json": `{"Name":"x","Endpoints":{"docker":{"Host":"unix:///z"}}}`, "tls/docker/ca.pem": "ca"} {
		w, err := zw.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := Import(&z, "zipped"); err != nil || c.Endpoint.Host != "unix:///z" || string(c.TLS[CA]) != "ca" {
		t.Errorf("zip: %+v, %v", c, err)
	}
	good := `{"Name":"x"}`
	for name, b := range map[string][]byte{
		"no document": archive("tls/docker/ca.pem", "ca"), "not an archive": []byte("text"), "cut": exported[:540], "empty": nil,
		"above": archive("meta.json", good, "../x", "1"), "absolute": archive("meta.json", good, "/etc/x", "1"), "too long": archive("meta.json", good+strings.Repeat(" ", maxFile)),
		"no JSON": archive("meta.json", "{"),
	} {
		if c, err := Import(bytes.NewReader(b), "name"); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if _, err := Import(bytes.NewReader(exported), "default"); !errors.Is(err, errs.Invalid) {
		t.Errorf("reserved name: %v", err)
	}
}
