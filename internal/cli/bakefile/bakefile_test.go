package bakefile

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden file")

const sample = `
repo = "example.org/${TEAM}"
variable "TAG" { default = "dev" }
variable "TEAM" { default = "team" }
variable "COUNT" { default = 2 }
variable "DEBUG" { default = false }
variable "CHECKED" {
  default = "ok"
  validation {
    condition = CHECKED != "bad"
    error_message = "CHECKED must not be bad"
  }
}
function "name" {
  params = [n]
  result = "${repo}/${n}:${TAG}"
}
group "default" { targets = ["app", "matrix"] }
target "base" {
  args = { A = "1", FROM_ENV = null }
  labels = { "org.example.count" = COUNT + 1 }
  platforms = ["linux/amd64"]
}
target "app" {
  inherits = ["base"]
  context = "./app"
  contexts = { deps = "target:deps" }
  args = { B = upper("b"), DEBUG = DEBUG ? "yes" : "no" }
  tags = [name("app"), "${repo}/app:latest"]
  output = [{ type = "local", dest = "out,dir" }, "type=registry"]
  cache-from = ["type=registry,ref=x"]
}
target "deps" { dockerfile-inline = "FROM scratch\n" }
target "matrix" {
  name = "m-${v}-${sanitize(os)}"
  matrix = { v = ["1", "2"], os = ["a.b"] }
  args = { V = v }
}
`

const more = `{"target": {"app": {"tags": ["second:${TAG}"], "args": {"C": "3"}}}, "variable": {"TAG": {"default": "json"}}}`

func parse(t *testing.T, env map[string]string, texts ...string) (*Bake, error) {
	t.Helper()
	var files []File
	for i, text := range texts {
		name := fmt.Sprintf("%d.hcl", i)
		if strings.HasPrefix(text, "{") {
			name = fmt.Sprintf("%d.json", i)
		}
		files = append(files, File{name, []byte(text)})
	}
	return Parse(files, Options{Lookup: func(k string) (string, bool) { v, ok := env[k]; return v, ok }})
}

// Variables, functions, inheritance, groups, matrices, several files, the environment and overrides give what buildx prints for them.
func TestSelect(t *testing.T) {
	var got strings.Builder
	for _, c := range []struct {
		env   map[string]string
		files []string
		names []string
		set   []string
	}{
		{nil, []string{sample}, nil, nil},
		{map[string]string{"TAG": "1.2", "COUNT": "40", "DEBUG": "1"}, []string{sample, more}, []string{"app"}, nil},
		{nil, []string{sample}, []string{"m-2-a_b"}, []string{"*.tags=a", "*.tags=b", "m-*.args.V=set", "*.platform=linux/arm64", "*.no-cache=true", "m-2-a_b.labels.x=y"}},
	} {
		b, err := parse(t, c.env, c.files...)
		if err != nil {
			t.Fatal(err)
		}
		if b, err = b.Select(c.names, c.set); err != nil {
			t.Fatal(err)
		}
		data, err := json.MarshalIndent(b, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got.Write(append(data, '\n'))
	}
	file := filepath.Join("testdata", "select.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

// What is wrong in a file is an error with its place, and nothing in it goes round forever.
func TestErrors(t *testing.T) {
	for text, want := range map[string]string{
		`target "a" {`:                    "0.hcl:1,",
		`target "a" { tags = "x" }`:       "want a list",
		`target "a" { args = ["x"] }`:     "want a map",
		`target "a" { tags = [missing] }`: "missing",
		"variable \"a\" { default = b }\nvariable \"b\" { default = a }":     "cycle",
		`variable "a" { default = a }`:                                       "cycle",
		`variable "a" { type = nothing(string) }`:                            "0.hcl:1,",
		`target "a" { matrix = { v = ["1", "2"] } }`:                         "needs a name",
		`target "a" { name = "b" }`:                                          "together with a matrix",
		"target \"a\" {\n name = \"x\"\n matrix = { v = [\"1\", \"2\"] }\n}": "twice",
		`target "a" {
  name = "x"
  matrix = { a = range(100), b = range(100) }
}`: "more than 4096 targets",
		"\x00":          "0.hcl:1",
		`{"target": []`: "0.json",
	} {
		_, err := parse(t, nil, text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := parse(t, map[string]string{"CHECKED": "bad"}, sample); err == nil || !strings.Contains(err.Error(), "must not be bad") {
		t.Errorf("validation: %v", err)
	}
	if _, err := parse(t, map[string]string{"COUNT": "many"}, sample); err == nil || !strings.Contains(err.Error(), "COUNT") {
		t.Errorf("a number from the environment: %v", err)
	}
	b, err := parse(t, nil, "target \"a\" { inherits = [\"b\"] }\ntarget \"b\" { inherits = [\"a\"] }\ngroup \"g\" { targets = [\"g\", \"h\"] }\ngroup \"h\" { targets = [\"g\"] }\ntarget \"c\" {}")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, set, want string }{
		{"none", "", "failed to find target none"}, {"", "", "default"}, {"c", "x.tags=1", "matching 'x'"}, {"c", "c.nothing=1", "unknown key"}, {"c", "c", "expected"},
		{"c", "c.pull=maybe", "boolean"}, {"c", "c.args=1", "args.<name>=<value>"},
	} {
		var names, set []string
		if c.name != "" {
			names = []string{c.name}
		}
		if c.set != "" {
			set = []string{c.set}
		}
		if _, err := b.Select(names, set); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.name, c.set, err, c.want)
		}
	}
	if g, err := b.Select([]string{"g"}, nil); err != nil || len(g.Targets) != 0 {
		t.Errorf("groups in a circle: %v", err)
	}
	if _, err := Parse([]File{{"x.hcl", make([]byte, MaxSize+1)}}, Options{}); err == nil {
		t.Error("a file without bounds was read")
	}
}

// A name that the format does not have is a warning with its place.
func TestUnknownNames(t *testing.T) {
	b, err := parse(t, nil, "target \"a\" {\n unknown = 1\n}\ngroup \"g\" { members = [] }\nthing \"x\" {}")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`0.hcl:5: unknown block "thing"`, `0.hcl:2: a target has no attribute "unknown"`, `0.hcl:4: a group has no attribute "members"`}
	if !slices.Equal(b.Warnings, want) {
		t.Errorf("warnings %q, want %q", b.Warnings, want)
	}
}

// No text makes the parser panic.
func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add(more)
	f.Fuzz(func(t *testing.T, text string) {
		b, err := Parse([]File{{"x", []byte(text)}}, Options{})
		if err == nil {
			_, _ = b.Select(nil, nil)
		}
	})
}
