package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtime "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/errs"
)

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

const yamlFile = `cdiVersion: "0.6.0"
kind: example.com/camera
containerEdits:
  env: ["CAMERAS=yes"]
devices:
- name: front
  containerEdits:
    deviceNodes: [{path: /dev/front, hostPath: /dev/null}]
    mounts: [{hostPath: /etc/hostname, containerPath: /etc/camera, options: [ro, bind]}, {hostPath: /etc/hostname, containerPath: /mine/}]
    hooks: [{hookName: createContainer, path: /bin/true, args: [true, x]}]
- name: back
  containerEdits:
    env: ["BACK=1"]
`

func spec() *runtime.Spec {
	return &runtime.Spec{Process: &runtime.Process{}, Linux: &runtime.Linux{Resources: &runtime.LinuxResources{}}}
}

func none(string) bool { return false }

func TestInject(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "camera.yaml", yamlFile)
	write(t, dir, "notes.txt", "not read")
	d := Read([]string{filepath.Join(dir, "absent"), dir})
	if p := d.Problems(); p != nil {
		t.Fatal(p)
	}
	if diff := cmp.Diff([]string{"example.com/camera=back", "example.com/camera=front"}, d.Names()); diff != "" {
		t.Fatal(diff)
	}
	if !d.Has("example.com/camera") || d.Has("example.com/cam") {
		t.Error("Has is wrong")
	}
	for range 2 { // what was injected once does not change what is injected next
		s := spec()
		if err := d.Inject(s, []string{"example.com/camera=front", "example.com/camera=back"}, func(p string) bool { return p == "/mine" }); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"CAMERAS=yes", "BACK=1"}, s.Process.Env); diff != "" {
			t.Error(diff)
		}
		want := []runtime.Mount{{Destination: "/etc/camera", Source: "/etc/hostname", Options: []string{"ro", "bind"}}}
		if diff := cmp.Diff(want, s.Mounts); diff != "" {
			t.Error(diff)
		}
		if n := s.Linux.Devices; len(n) != 1 || n[0].Path != "/dev/front" || n[0].Type != "c" || n[0].Major != 1 || n[0].Minor != 3 {
			t.Errorf("devices %+v", n)
		}
		if r := s.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow || *r[0].Major != 1 || *r[0].Minor != 3 || r[0].Access != "rwm" {
			t.Errorf("rules %+v", r)
		}
		if h := s.Hooks.CreateContainer; len(h) != 1 || h[0].Path != "/bin/true" || !slices.Equal(h[0].Args, []string{"true", "x"}) {
			t.Errorf("hooks %+v", s.Hooks)
		}
	}
	s := spec()
	err := d.Inject(s, []string{"example.com/camera=front", "example.com/camera=left", "x"}, none)
	if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "unresolvable CDI devices example.com/camera=left, x") {
		t.Error(err)
	}
	if diff := cmp.Diff(spec(), s); diff != "" {
		t.Errorf("an error changed the spec: %s", diff)
	}
	if err := d.Inject(s, nil, none); err != nil {
		t.Error(err)
	}
	write(t, dir, "gone.json", `{"cdiVersion":"0.3.0","kind":"example.com/x","devices":[{"name":"y","containerEdits":{"deviceNodes":[{"path":"/dev/absent-here"}]}}]}`)
	if err := Read([]string{dir}).Inject(s, []string{"example.com/x=y"}, none); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "/dev/absent-here") {
		t.Error(err)
	}
}

// The file in the later directory counts. In one directory no file counts more than another.
func TestSeveralFiles(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	file := func(value string, names ...string) string {
		var devices []string
		for _, n := range names {
			devices = append(devices, `{"name":"`+n+`","containerEdits":{"env":["FROM=`+value+`"]}}`)
		}
		return `{"cdiVersion":"0.5.0","kind":"a.b/c","devices":[` + strings.Join(devices, ",") + `]}`
	}
	write(t, first, "one.json", file("first", "x", "only"))
	write(t, second, "two.json", file("second", "x"))
	d := Read([]string{first, second})
	for name, want := range map[string]string{"a.b/c=x": "FROM=second", "a.b/c=only": "FROM=first"} {
		s := spec()
		if err := d.Inject(s, []string{name}, none); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{want}, s.Process.Env); diff != "" {
			t.Error(diff)
		}
	}
	write(t, second, "three.json", file("third", "x"))
	write(t, second, "tour.json", file("third", "x", "fine"))
	d = Read([]string{first, second})
	if diff := cmp.Diff([]string{"a.b/c=fine", "a.b/c=only"}, d.Names()); diff != "" {
		t.Error(diff)
	}
	if len(d.Problems()) != 2 {
		t.Errorf("problems %v, want one for each file after the first", d.Problems())
	}
}

// A bad file takes no others with it, and is neither read without end nor waited for.
func TestBadFiles(t *testing.T) {
	const good = `"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"env":["A=b"]}}]`
	for name, tc := range map[string]struct{ text, want string }{
		"empty":               {"", "EOF"},
		"null":                {"null", "empty"},
		"no JSON":             {"{", "did not find"},
		"unknown field":       {`{` + good + `,"more":1}`, "more"},
		"version":             {`{"cdiVersion":"99.0.0","kind":"a.b/c","devices":[]}`, "version"},
		"too old":             {`{"cdiVersion":"0.3.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"additionalGids":[5]}}]}`, "0.7.0"},
		"kind":                {`{"cdiVersion":"0.6.0","kind":"camera","devices":[{"name":"x","containerEdits":{"env":["A=b"]}}]}`, "vendor"},
		"no devices":          {`{"cdiVersion":"0.6.0","kind":"a.b/c"}`, "no devices"},
		"name":                {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x y","containerEdits":{"env":["A=b"]}}]}`, "x y"},
		"twice":               {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"env":["A=b"]}},{"name":"x","containerEdits":{"env":["A=b"]}}]}`, "twice"},
		"null node":           {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"deviceNodes":[null]}}]}`, "null"},
		"null hook":           {`{"cdiVersion":"0.6.0","kind":"a.b/c","containerEdits":{"hooks":[null]},"devices":[{"name":"x","containerEdits":{"env":["A=b"]}}]}`, "null"},
		"null mount":          {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"mounts":[null]}}]}`, "null"},
		"null interface":      {`{"cdiVersion":"1.1.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"netDevices":[null]}}]}`, "null"},
		"variable":            {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"env":["A"]}}]}`, "environment"},
		"hook name":           {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"hooks":[{"hookName":"never","path":"/x"}]}}]}`, "never"},
		"relative hook":       {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"hooks":[{"hookName":"prestart","path":"x"}]}}]}`, "absolute"},
		"relative mount":      {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"mounts":[{"hostPath":"/x","containerPath":"y"}]}}]}`, "absolute"},
		"mount at the root":   {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"mounts":[{"hostPath":"/x","containerPath":"/y/.."}]}}]}`, "a mount at /"},
		"relative node":       {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"deviceNodes":[{"path":"../x"}]}}]}`, "absolute"},
		"NUL":                 {`{"cdiVersion":"0.6.0","kind":"a.b/c","devices":[{"name":"x","containerEdits":{"deviceNodes":[{"path":"/x\u0000"}]}}]}`, "absolute"},
		"aliases of aliases":  {"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nkind: *e\n", ""},
		"larger than allowed": {strings.Repeat(" ", maxFile) + "{" + good + "}", "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			bad := write(t, dir, "bad.yaml", tc.text)
			write(t, dir, "good.json", `{`+strings.ReplaceAll(good, "a.b/c", "good.com/c")+`}`)
			d := Read([]string{dir})
			if diff := cmp.Diff([]string{"good.com/c=x"}, d.Names()); diff != "" {
				t.Error(diff)
			}
			if p := d.Problems(); len(p) != 1 || p[0].Path != bad || !strings.Contains(p[0].Err.Error(), tc.want) {
				t.Errorf("problems %v, want one with %q", p, tc.want)
			}
		})
	}
}

func TestNoFiles(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "zero.yaml")); err != nil {
		t.Fatal(err)
	}
	file := write(t, t.TempDir(), "file", "")
	d := Read([]string{dir, file})
	var paths []string
	for _, p := range d.Problems() {
		paths = append(paths, filepath.Base(p.Path))
	}
	if diff := cmp.Diff([]string{"pipe.json", "zero.yaml", "file"}, paths); diff != "" || d.Names() != nil {
		t.Error(d.Names(), diff)
	}
	many := t.TempDir()
	for i := range maxFiles + 1 {
		write(t, many, strings.Repeat("x", 1+i%200)+strings.Repeat("y", i/200), "")
	}
	if p := Read([]string{many}).Problems(); len(p) != 1 || !strings.Contains(p[0].Err.Error(), "more than") {
		t.Error(p)
	}
}
