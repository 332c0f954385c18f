package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var drivers = []string{"erofs", "overlay2"}

// TestCases builds every case on every driver.
func TestCases(t *testing.T) {
	cases := readCases(t)
	if len(cases) < 150 && !*update {
		t.Errorf("%d cases, want at least 150", len(cases))
	}
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			e := startPly(t, driver)
			t.Run("case", func(t *testing.T) {
				for _, c := range cases {
					t.Run(c.name, func(t *testing.T) {
						t.Parallel()
						c.check(t, e)
					})
				}
			})
			left(t, e)
		})
	}
}

// left checks that builds leave no container, besides those named, and no damage.
func left(t *testing.T, e *engine, names ...string) {
	t.Helper()
	for _, name := range strings.Fields(e.ply(t, "ps", "-a", "--format", "{{.Names}}")) {
		if !slices.Contains(names, name) {
			t.Errorf("container left: %s", name)
		}
	}
	e.ply(t, "system", "check")
}

// buildCase is a directory of testdata.
type buildCase struct {
	name string
	dir  string
}

// special are the files of a case that are not in its context.
var special = []string{"want", "args", "setup", "before", "classic", "buildkit", "buildah"}

func readCases(t *testing.T) (list []buildCase) {
	t.Helper()
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, buildCase{e.Name(), filepath.Join("testdata", e.Name())})
	}
	return list
}

// file returns a special file; "" when there is none.
func (c *buildCase) file(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// context copies the context into a directory of its own.
func (c *buildCase) context(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "context.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	err = filepath.WalkDir(c.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.dir, p)
		if err != nil || rel == "." || slices.Contains(special, rel) {
			return err
		}
		to := filepath.Join(dir, rel)
		if d.IsDir() {
			if err := os.Mkdir(to, 0o755); err != nil {
				return err
			}
			return os.Chmod(to, 0o755)
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		if err := os.WriteFile(to, data, mode); err != nil {
			return err
		}
		return os.Chmod(to, mode)
	})
	if err != nil {
		t.Fatal(err)
	}
	// BuildKit takes a file of another context with the same name, size and time for the same one, so the times differ by nanoseconds. buildah rounds them.
	h := fnv.New32()
	h.Write([]byte(c.name))
	script := fmt.Sprintf("set -eu; umask 022\n%s\nfind . -exec touch -h -d '2020-01-02T03:04:05.%09dZ' {} +\n", c.file(t, "setup"), h.Sum32()%4e8)
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("setup: %v: %s", err, out)
	}
	return dir
}

// build builds the case with an engine, and returns the output and the exit code.
func (c *buildCase) build(t *testing.T, e *engine) (tag, out string, code int) {
	t.Helper()
	dir := c.context(t)
	tag = strings.ToLower("case-" + c.name)
	for line := range strings.Lines(c.file(t, "before")) {
		words := strings.Fields(line)
		args := slices.Concat(e.cli[1:], []string{"build", "-q", "-t", words[0]}, e.flags, words[1:], []string{"."})
		if out, code := e.try(dir, e.cli[0], args...); code != 0 {
			return tag, "before: " + out, code
		}
	}
	args := slices.Concat(e.cli[1:], []string{"build", "-t", tag}, e.flags)
	source := "."
	for line := range strings.Lines(c.file(t, "args")) {
		word := strings.TrimSuffix(line, "\n")
		if s, ok := strings.CutPrefix(word, "context "); ok {
			source = s
			continue
		}
		args = append(args, word)
	}
	args = append(args, source)
	out, code = e.try(dir, e.cli[0], args...)
	return tag, out, code
}

// check builds the case and compares the result with want.
func (c *buildCase) check(t *testing.T, e *engine) {
	want := c.file(t, "want")
	tag, out, code := c.build(t, e)
	if lines, failed := strings.CutPrefix(want, "error "); failed {
		texts := strings.Split(strings.TrimSpace(lines), "\n")
		if strconv.Itoa(code) != texts[0] {
			t.Errorf("exit code %d, want %s\n%s", code, texts[0], out)
		}
		for _, text := range texts[1:] {
			if !strings.Contains(out, text) {
				t.Errorf("the output lacks %q:\n%s", text, out)
			}
		}
		if _, code := e.try("", e.cli[0], "image", "inspect", tag); code == 0 {
			t.Errorf("the build failed and made the image %s", tag)
		}
		return
	}
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	got, layers, err := e.describe(tag)
	if err != nil {
		t.Fatal(err)
	}
	// What a container shows is what the layers have.
	shown, err := e.shown(tag)
	if err != nil {
		t.Fatal(err)
	}
	if layers["/etc"] == nil {
		delete(shown, "/etc") // made for the container's /etc/hosts
	}
	for _, tr := range []tree{layers, shown} {
		for p := range tr {
			if ofContainers(p) {
				delete(tr, p)
			}
		}
	}
	if a, b := layers.lines(nil), shown.lines(nil); !slices.Equal(a, b) {
		t.Errorf("a container does not show what the layers have:\n%s", difference(a, b))
	}
	if *update && got != want {
		if err := os.WriteFile(filepath.Join(c.dir, "want"), []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("%s", difference(strings.Split(want, "\n"), strings.Split(got, "\n")))
	}
}

// describe returns the text of an image: what its files differ in from the base image, its config and its history. It also returns the tree.
func (e *engine) describe(image string) (string, tree, error) {
	raw, layers, err := e.save(image)
	if err != nil {
		return "", nil, err
	}
	tr, err := lay(layers)
	if err != nil {
		return "", nil, err
	}
	base := e.base
	if tr["/bin/busybox"] == nil {
		base = nil
	}
	var b strings.Builder
	b.WriteString("files\n")
	for _, line := range tr.lines(base) {
		b.WriteString("  " + line + "\n")
	}
	var c struct {
		Architecture, OS, Variant, Author string
		Config                            map[string]any
		History                           []struct {
			Created    time.Time
			CreatedBy  string `json:"created_by"`
			Author     string
			Comment    string
			EmptyLayer bool `json:"empty_layer"`
		}
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return "", nil, err
	}
	b.WriteString("config\n")
	if c.Architecture != "amd64" || c.OS != "linux" {
		fmt.Fprintf(&b, "  platform %s/%s%s\n", c.OS, c.Architecture, c.Variant)
	}
	if c.Author != "" {
		fmt.Fprintf(&b, "  Author %q\n", c.Author)
	}
	for _, key := range slices.Sorted(maps.Keys(c.Config)) {
		v := c.Config[key]
		if r := reflect.ValueOf(v); v == nil || r.IsZero() || r.Kind() == reflect.Map && r.Len() == 0 || r.Kind() == reflect.Slice && r.Len() == 0 {
			continue
		}
		var text bytes.Buffer
		enc := json.NewEncoder(&text)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return "", nil, err
		}
		fmt.Fprintf(&b, "  %s %s", key, text.String())
	}
	b.WriteString("history\n")
	n := 0
	for _, h := range c.History {
		mark := "layer"
		if h.EmptyLayer {
			mark = "empty"
		} else {
			n++
		}
		fmt.Fprintf(&b, "  %s %q", mark, h.CreatedBy)
		if h.Author != "" {
			fmt.Fprintf(&b, " author %q", h.Author)
		}
		if h.Comment != "" {
			fmt.Fprintf(&b, " comment %q", h.Comment)
		}
		b.WriteString("\n")
	}
	if n != len(layers) {
		fmt.Fprintf(&b, "  the history has %d layers, the image %d\n", n, len(layers))
	}
	return b.String(), tr, nil
}

// difference returns the lines that only one of two texts has.
func difference(want, got []string) string {
	var b strings.Builder
	for _, l := range want {
		if !slices.Contains(got, l) {
			b.WriteString("-" + l + "\n")
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			b.WriteString("+" + l + "\n")
		}
	}
	if b.Len() == 0 {
		return "the same lines in another order:\n" + strings.Join(got, "\n")
	}
	return b.String()
}
