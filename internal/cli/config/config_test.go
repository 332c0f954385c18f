package config

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Writing the file keeps the keys that ply does not know, and makes the file readable by its owner only.
func TestFileKeepsUnknownKeys(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.json")
	if err := os.WriteFile(path, []byte(`{"plugins":{"x":{"y":"z"}},"psFormat":"{{.ID}}","auths":{"https://old:5000/v1/":{"auth":"YTpi"}}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := f.Get(context.Background(), "old:5000"); err != nil || c.Username != "a" || c.Password != "b" {
		t.Errorf("key with a path: %+v %v", c, err)
	}
	plain, err := f.Store(context.Background(), Credentials{Server: "h:5000", Username: "mhk", Password: "p:w"})
	if err != nil || !plain {
		t.Fatal(plain, err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v: only the owner may read a file with passwords", st.Mode(), err)
	}
	g, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := g.Get(context.Background(), "h:5000"); c.Username != "mhk" || c.Password != "p:w" {
		t.Errorf("got %+v", c)
	}
	var all map[string]json.RawMessage
	b, _ := os.ReadFile(path)
	if err := json.Unmarshal(b, &all); err != nil || all["plugins"] == nil || g.Format("ps") != "{{.ID}}" {
		t.Errorf("lost: %s %v", b, err)
	}
	if found, err := g.Erase(context.Background(), "h:5000"); !found || err != nil {
		t.Error(found, err)
	}
	if found, err := g.Erase(context.Background(), "h:5000"); found || err != nil {
		t.Error(found, err)
	}
	if b, _ := os.ReadFile(path); strings.Contains(string(b), "h:5000") {
		t.Errorf("still there: %s", b)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".config.json*"))
	if len(left) > 0 {
		t.Errorf("temporary files remain: %v", left)
	}
}

// Secrets go to a helper and come from it; none are written to the file.
func TestHelper(t *testing.T) {
	dir := t.TempDir()
	script := `#!/bin/sh
case $1 in
store) cat > ` + dir + `/secret ;;
get) read key; if [ -f ` + dir + `/secret ] && [ "$key" = h:5000 ]; then cat ` + dir + `/secret; else echo credentials not found in native keychain; exit 1; fi ;;
erase) rm ` + dir + `/secret ;;
esac`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-mine"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credHelpers":{"h:5000":"mine"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if c, err := f.Get(ctx, "h:5000"); err != nil || !c.Empty() {
		t.Errorf("unknown: %+v %v", c, err)
	}
	for _, want := range []Credentials{{Server: "h:5000", Username: "u", Password: "p"}, {Server: "h:5000", IdentityToken: "tok"}} {
		if plain, err := f.Store(ctx, want); err != nil || plain {
			t.Fatal(plain, err)
		}
		if c, err := f.Get(ctx, "h:5000"); err != nil || c != want {
			t.Errorf("got %+v %v, want %+v", c, err, want)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "config.json")); strings.Contains(string(b), "tok") {
		t.Errorf("secret in the file: %s", b)
	}
	if found, err := f.Erase(ctx, "h:5000"); !found || err != nil {
		t.Error(found, err)
	}
}

// A damaged file is an error, and so are damaged entries when they are used.
func TestDamagedFiles(t *testing.T) {
	for _, text := range []string{"{", `{"auths":[]}`, `[]`} {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600)
		f, err := Load(dir)
		if err == nil || f == nil {
			t.Errorf("%q: %v %v", text, f, err)
		}
	}
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths":{"h":{"auth":"!!"},"i":{"auth":"bm9jb2xvbg=="}},"credHelpers":{"j":"../evil"},"proxies":{"default":{"httpProxy":"http://p"}}}`), 0o600)
	f, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"h", "i", "j"} {
		if _, err := f.Get(context.Background(), key); err == nil {
			t.Errorf("%s: no error", key)
		}
	}
	if env := f.ProxyEnv("x"); env["HTTP_PROXY"] != "http://p" || env["http_proxy"] != "http://p" || len(env) != 2 {
		t.Errorf("proxies %v", env)
	}
}

// The names of Docker Hub have one key.
func TestKey(t *testing.T) {
	for in, want := range map[string]string{"docker.io": Hub, "": Hub, "index.docker.io": Hub, "h:5000": "h:5000"} {
		if got := Key(in); got != want {
			t.Errorf("Key(%q) = %q", in, got)
		}
	}
}
