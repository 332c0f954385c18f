package cli

import (
	"archive/tar"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Build sends the files that .dockerignore does not exclude, and shows the stream of the engine.
func TestBuildContext(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM x\n", "a": "a", "b.log": "no", "keep.log": "yes", "sub/c.log": "no", "sub/d": "d", ".dockerignore": "**/*.log\n!keep.log\nDockerfile\n"} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, []byte(text), 0o644)
	}
	other := filepath.Join(t.TempDir(), "D")
	os.WriteFile(other, []byte("FROM y\n"), 0o644)
	var names []string
	var query map[string][]string
	answer := ""
	f := newFake(t, map[string]any{"POST /build": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		names, query = nil, r.URL.Query()
		tr := tar.NewReader(r.Body)
		for h, err := tr.Next(); err == nil; h, err = tr.Next() {
			names = append(names, h.Name)
		}
		slices.Sort(names)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer)
	})})
	answer = `{"stream":"Step 1/1 : FROM x\n"}{"stream":" ---> abc\n"}{"aux":{"ID":"sha256:abc"}}{"stream":"Successfully built abc\n"}`
	iid := filepath.Join(t.TempDir(), "iid")
	r := f.run("", "build", "-t", "n", "--build-arg", "A=1", "--iidfile", iid, dir)
	if r.code != 0 || r.out != "Step 1/1 : FROM x\n ---> abc\nSuccessfully built abc\n" {
		t.Errorf("%+v", r)
	}
	if want := []string{".dockerignore", "Dockerfile", "a", "keep.log", "sub/", "sub/d"}; !slices.Equal(names, want) {
		t.Errorf("context %q, want %q", names, want)
	}
	if b, _ := os.ReadFile(iid); string(b) != "sha256:abc" || query["t"][0] != "n:latest" || query["buildargs"][0] != `{"A":"1"}` || query["dockerfile"][0] != "Dockerfile" {
		t.Errorf("iid %s, query %v", b, query)
	}
	if r := f.run("", "build", "-q", "-f", other, dir); r.code != 0 || r.out != "sha256:abc\n" || !strings.HasPrefix(query["dockerfile"][0], ".dockerfile.") || !slices.Contains(names, query["dockerfile"][0]) {
		t.Errorf("%+v %v %v", r, names, query)
	}
	if r := f.run("FROM z\n", "build", "-"); r.code != 0 || !slices.Equal(names, []string{"Dockerfile"}) {
		t.Errorf("%+v %v", r, names)
	}
	answer = `{"stream":"Step 1/1 : RUN false\n"}{"errorDetail":{"code":7,"message":"the command returned 7"},"error":"the command returned 7"}`
	if r := f.run("", "build", "-q", dir); r.code != 7 || r.err != "Step 1/1 : RUN false\nthe command returned 7\n" {
		t.Errorf("%+v", r)
	}
	for _, bad := range [][]string{{"build", "/nonexistent"}, {"build", "-f", "/nonexistent", dir}, {"build", other}} {
		if r := f.run("", bad...); r.code != 1 || r.err == "" {
			t.Errorf("%v: %+v", bad, r)
		}
	}
}

// Nothing is built as if there was no policy when there is one, unless the user says so.
func TestBuildPolicy(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM x\n", "other": "FROM x\n", "Dockerfile.rego": "package docker\n", "docker-bake.hcl": `target "default" {}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	built := 0
	f := newFake(t, map[string]any{"POST /build": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		built++
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"aux":{"ID":"sha256:abc"}}`)
	})})
	t.Chdir(dir)
	for _, c := range []struct {
		env   string
		args  []string
		names string // what the error names; "" = it is built
	}{
		{args: []string{"build", "."}, names: "Dockerfile.rego"},
		{args: []string{"build", "-f", "Dockerfile", "."}, names: "Dockerfile.rego"},
		{args: []string{"bake"}, names: "Dockerfile.rego"},
		{args: []string{"build", "--policy", "disabled=true", "."}},
		{args: []string{"build", "-f", "other", "."}},
		{args: []string{"build", "-f", "other", "--policy", "filename=p.rego", "."}, names: "--policy filename=p.rego"},
		{args: []string{"build", "-f", "other", "--policy", "disabled=false", "."}, names: "--policy disabled=false"},
		{args: []string{"build", "-f", "other", "--policy", "disabled=true", "--policy", "filename=p.rego", "."}, names: "--policy"},
		{env: "p.json", args: []string{"build", "-f", "other", "."}, names: "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY=p.json"},
	} {
		t.Setenv("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", c.env)
		before := built
		r := f.run("", c.args...)
		if c.names == "" && (r.code != 0 || built == before) || c.names != "" && (r.code != 1 || built != before || !strings.Contains(r.err, c.names) || !strings.Contains(r.err, "buildx")) {
			t.Errorf("%v: %+v, built %v", c.args, r, built != before)
		}
	}
}
