package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"ply/internal/errs"
)

var update = flag.Bool("update", false, "rewrite the table of settings in the documentation")

// The documentation has the table of the settings that there are.
func TestTable(t *testing.T) {
	name := filepath.Join("..", "..", "..", "docs", "registry.md")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), "<!-- settings -->\n")
	old, after, ok2 := strings.Cut(rest, "<!-- end of settings -->\n")
	if !ok || !ok2 {
		t.Fatal("the table of settings is not marked")
	}
	if old == Table() {
		return
	}
	if !*update {
		t.Fatalf("the table differs (run with -update):\n%s", cmp.Diff(old, Table()))
	}
	if err := os.WriteFile(name, []byte(before+"<!-- settings -->\n"+Table()+"<!-- end of settings -->\n"+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func load(args []string, env ...string) (*Config, []string, error) {
	return Load(pflag.NewFlagSet("x", pflag.ContinueOnError), args, env)
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// sample returns a text that a setting accepts and that is not its default.
func sample(s setting) string {
	switch s.isSet(Defaults()).Type() {
	case "bool":
		return "true"
	case "duration":
		return "7h"
	case "size":
		return "20G"
	case "list":
		switch s.flag {
		case "replicate":
			return "a/**=http://127.0.0.1:1,b=https://x.example/copies"
		case "webhook":
			return "http://127.0.0.1:1/x,https://x.example"
		case "quota":
			return "team/**=10G,x=5M"
		case "immutable":
			return "team/**:v*,x"
		case "retention":
			return "team/**:pr-*=10/30d,x=3"
		case "webhook-actions":
			return "push,pull"
		}
		if s.flag == "proxy" {
			return "docker.io,x=http://127.0.0.1:1"
		}
		return "a.example.com,127.0.0.1"
	}
	switch s.flag {
	case "audit-max":
		return "5000"
	case "oidc-issuer":
		return "https://id.example.com"
	case "mirror", "traces":
		return "http://127.0.0.1:1"
	case "addr", "metrics-addr":
		return "127.0.0.1:1234"
	case "url":
		return "https://x.example.com"
	case "log-level":
		return "debug"
	case "log-format":
		return "json"
	}
	return "/some/where"
}

// Every setting can be given by its flag, its variable, the variable of the reference registry, and its key.
func TestEverySettingEveryWay(t *testing.T) {
	for _, s := range settings {
		want := sample(s)
		extra := []string{}
		if strings.HasPrefix(s.flag, "tls-c") {
			extra = append(extra, "--tls-key=/key")
		} else if strings.HasPrefix(s.flag, "tls-k") {
			extra = append(extra, "--tls-cert=/cert")
		}
		if strings.HasPrefix(s.flag, "oidc-") {
			extra = append(extra, "--oidc-issuer=https://x.example.com", "--oidc-client-id=c", "--url=https://r.example.com")
			extra = slices.DeleteFunc(extra, func(e string) bool { return strings.HasPrefix(e, "--"+s.flag+"=") })
		}
		if strings.HasPrefix(s.flag, "s3-") || s.flag == "spool" {
			extra = append(extra, "--s3-bucket=b", "--s3-endpoint=http://s3", "--s3-access-key=k", "--s3-secret-key=s")
			extra = slices.DeleteFunc(extra, func(e string) bool { return strings.HasPrefix(e, "--"+s.flag+"=") })
		}
		check := func(how string, c *Config, err error) {
			t.Helper()
			if err != nil {
				t.Errorf("%s by its %s: %v", s.flag, how, err)
			} else if got := s.isSet(c).String(); got != want {
				t.Errorf("%s by its %s = %q, want %q", s.flag, how, got, want)
			}
		}
		c, _, err := load(append(extra, "--"+s.flag+"="+want))
		check("flag", c, err)
		c, _, err = load(extra, s.env()+"="+want)
		check("variable", c, err)
		for _, key := range s.keys {
			c, _, err = load(extra, referenceEnv(key)+"="+want)
			check("reference variable", c, err)
			text, indent := "", ""
			for part := range strings.SplitSeq(key, ".") {
				text += indent + part + ":\n"
				indent += "  "
			}
			c, _, err = load(append(extra, "--config", write(t, strings.TrimSuffix(text, "\n")+" "+want+"\n")))
			check("key", c, err)
		}
		if got := s.isSet(Defaults()).String(); got == want {
			t.Errorf("%s: %q is its default, so the test shows nothing", s.flag, want)
		}
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "http:\n  addr: :1\nstorage:\n  filesystem:\n    rootdirectory: /file\n  delete:\n    enabled: false\nlog:\n  level: warn\n")
	c, _, err := load([]string{"--addr", ":3", file}, "PLY_REGISTRY_ADDR=:2", "PLY_REGISTRY_ROOT=/env", "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=/reference", "REGISTRY_PORT=tcp://10.0.0.1:5000")
	if err != nil || c.Addr != ":3" || c.Root != "/env" || c.LogLevel != "warn" || !c.NoDelete || c.Drain != 30*time.Second {
		t.Errorf("%+v, %v", c, err)
	}
	c, _, err = load([]string{"--no-delete=false", file})
	if err != nil || c.NoDelete {
		t.Errorf("a flag over the file: %+v, %v", c, err)
	}
}

// The file of the reference registry's image is understood.
func TestReferenceFile(t *testing.T) {
	c, warnings, err := load([]string{write(t, `version: 0.1
log:
  fields:
    service: registry
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
http:
  addr: :5000
  secret: asecret
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
`)})
	if err != nil || c.Root != "/var/lib/registry" || c.Addr != ":5000" {
		t.Fatalf("%+v, %v", c, err)
	}
	if all := strings.Join(warnings, "\n"); !strings.Contains(all, "line 12: http.secret is ignored") || len(warnings) != 5 {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		args []string
		want string
	}{
		"an unknown key":          {"auth:\n  silly:\n    realm: x\n", nil, "line 3: the key auth.silly.realm is not supported"},
		"a back end that is not":  {"storage:\n  azure:\n    container: x\n", nil, "the key storage.azure.container is not supported"},
		"encryption":              {"storage:\n  s3:\n    bucket: x\n    encrypt: true\n", nil, "storage.s3.encrypt is not supported"},
		"no bucket":               {"", []string{"--s3-endpoint", "http://x"}, "s3-bucket"},
		"no server":               {"", []string{"--s3-bucket", "x"}, "s3-endpoint or s3-region"},
		"half a key":              {"", []string{"--s3-bucket", "x", "--s3-region", "y", "--s3-access-key", "z"}, "go together"},
		"a map for a value":       {"http:\n  addr:\n    x: y\n", nil, "http.addr.x is not supported"},
		"a list for a value":      {"http:\n  addr: [a, b]\n", nil, "want a string"},
		"no duration":             {"gc:\n  interval: often\n", nil, "line 2: gc.interval"},
		"no document":             {"just text", nil, "want keys and values"},
		"no YAML":                 {"a: [", nil, "yaml"},
		"an alias":                {"a: &x\n  b: 1\nc: *x\n", nil, "aliases"},
		"no address":              {"", []string{"--addr", "x"}, "addr"},
		"half a certificate":      {"", []string{"--tls-cert", "x"}, "go together"},
		"two certificates":        {"", []string{"--tls-cert", "x", "--tls-key", "y", "--tls-self-signed", "z"}, "exclude"},
		"a level that is not":     {"", []string{"--log-level", "loud"}, "log-level"},
		"no grace":                {"", []string{"--gc-grace", "1s"}, "gc-grace"},
		"an address with a login": {"", []string{"--url", "https://me@x"}, "url"},
		"no collector":            {"", []string{"--traces", "127.0.0.1:4318"}, "traces"},
		"two files":               {"", []string{"a", "b"}, "unexpected argument"},
	} {
		args := c.args
		if c.file != "" {
			args = append(args, "--config", write(t, c.file))
		}
		if _, _, err := load(args); err == nil || !strings.Contains(err.Error(), c.want) || c.file != "" && !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, _, err := load([]string{"--config", "/does/not/exist"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// The settings of stores reach the server, and a region alone names Amazon's server.
func TestStores(t *testing.T) {
	c, _, err := load([]string{write(t, `storage:
  redirect: {disable: false}
  s3: {region: eu-central-1, bucket: images, rootdirectory: /registry, secure: true, chunksize: 5242880}
`)}, "PLY_REGISTRY_DATABASE=postgres://db/registry", "REGISTRY_STORAGE_S3_ACCESSKEY=key", "PLY_REGISTRY_S3_SECRET_KEY=secret")
	if err != nil {
		t.Fatal(err)
	}
	o := c.Server(nil)
	if o.Database != "postgres://db/registry" || !o.Redirect || o.S3 == nil || o.S3.Endpoint != "https://s3.eu-central-1.amazonaws.com" ||
		o.S3.Bucket != "images" || o.S3.Prefix != "/registry" || o.S3.AccessKey != "key" || o.S3.SecretKey != "secret" {
		t.Errorf("%+v, %+v", o, o.S3)
	}
	if c, _, err = load(nil); err != nil || c.Server(nil).S3 != nil || c.Server(nil).Database != "" {
		t.Errorf("by default: %+v, %v", c.Server(nil), err)
	}
}

// The image uses the volume that it is given, and reads one file of settings by each of its names.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	before, beforeMount := imagePlaces, isMount
	t.Cleanup(func() { imagePlaces, isMount = before, beforeMount })
	at := func(name string) string { return filepath.Join(dir, name) }
	imagePlaces = places{roots: []string{at("lib"), at("tmp")}, files: []string{at("own.yml"), at("new.yml"), at("old.yml")}}
	const image = imageVariable + "=1"
	for _, c := range []struct {
		mounts []string
		want   string
	}{
		{nil, "lib"}, {[]string{"lib"}, "lib"}, {[]string{"tmp"}, "tmp"}, {[]string{"lib", "tmp"}, "lib"},
	} {
		isMount = func(path string) bool { return slices.Contains(c.mounts, filepath.Base(path)) }
		if got, _, err := load(nil, image); err != nil || got.Root != at(c.want) {
			t.Errorf("with the mounts %q: root %s, want %s (%v)", c.mounts, got.Root, c.want, err)
		}
		if got, _, err := load(nil); err != nil || got.Root != DefaultRoot {
			t.Errorf("outside of the image: root %s, %v", got.Root, err)
		}
		if got, _, err := load([]string{"--root", "/other"}, image); err != nil || got.Root != "/other" {
			t.Errorf("a root that was named: %s, %v", got.Root, err)
		}
	}
	put := func(name, level string) {
		t.Helper()
		if err := os.WriteFile(at(name), []byte("log: {level: "+level+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(level string, args ...string) {
		t.Helper()
		if got, _, err := load(args, image); err != nil || got.LogLevel != level {
			t.Errorf("%q: level %s, want %s (%v)", args, got.LogLevel, level, err)
		}
	}
	want("info")
	if _, _, err := load([]string{at("new.yml")}, image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was named, and none is there: %v", err)
	}
	put("old.yml", "error")
	want("error")
	want("error", at("new.yml"))
	put("new.yml", "warn")
	want("warn")
	want("error", at("old.yml"))
	if _, _, err := load([]string{at("other.yml")}, image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another file, which is not there: %v", err)
	}
	if isMount = beforeMount; !isMount("/proc") || isMount(dir) || isMount(at("none")) {
		t.Error("mounts are not told from directories")
	}
}
