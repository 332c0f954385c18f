package builder

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"ply/internal/cli/bakefile"
	"ply/internal/cli/command"
	"ply/internal/cli/terminal"
	"ply/internal/errs"
)

// allowed reports whether bake may do what the target "t" of a file does: by the file, and by the plan of its build.
func allowed(t *testing.T, text string, allow ...string) error {
	t.Helper()
	name := "docker-bake.hcl"
	if strings.HasPrefix(text, "services:") {
		name = "compose.yaml"
	}
	all, err := bakefile.Parse([]bakefile.File{{Name: name, Data: []byte(text)}}, bakefile.Options{ReadFile: readBounded})
	if err != nil {
		t.Fatal(err)
	}
	b, err := all.Select([]string{"t"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &bakeFlags{progress: "quiet", allow: allow}
	a, err := f.access()
	if err != nil {
		t.Fatal(err)
	}
	normal(b.Targets["t"])
	if err := a.targets(b); err != nil {
		return err
	}
	r := &baking{inv: &command.Invocation{Streams: terminal.Streams{Out: io.Discard, Err: io.Discard}}, f: f, bake: b, access: a}
	bf, source, err := r.flags(b.Targets["t"], b.Targets["t"].Contexts)
	if err != nil {
		t.Fatal(err)
	}
	p, err := bf.plan(t.Context(), r.inv, source, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	return a.plan(p)
}

// A bake file reaches no file outside of the working directory without --allow, however it names it.
func TestBakeFilesStayInTheWorkingDirectory(t *testing.T) {
	top := t.TempDir()
	t.Setenv("HOME", top)
	t.Setenv("SSH_AUTH_SOCK", "agent.sock")
	for _, d := range []string{"outside/deep", "wd/x:", "wd/sub", "wd/l=nk"} {
		if err := os.MkdirAll(top+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"outside/secret", "outside/Dockerfile", "wd/Dockerfile", "wd/mine", "wd/sub/other", "outside/env", "wd/env"} {
		if err := os.WriteFile(top+"/"+f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(top + "/wd")
	for name, to := range map[string]string{"target:link": "../outside", "link": "../outside/deep", "input:file": "../outside/Dockerfile", "k=v": "../outside", "sub/sub": "../../outside",
		"dangling": "../outside/absent/x", "relay": "dangling/y", "loop": "loop"} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	outside := top + "/outside"
	for attrs, missing := range map[string]string{
		`secret = ["id=a,src=../outside/secret"]`:                        "fs.read=" + outside + "/secret",
		`secret = ["id=../outside/secret"]`:                              "fs.read=" + outside + "/secret",
		`secret = ["id=a,src=x://../../outside/secret"]`:                 "fs.read=" + outside + "/secret",
		`secret = ["id=a,src=link/../secret"]`:                           "fs.read=" + outside + "/secret",
		`contexts = { a = "oci-layout://../outside" }`:                   "fs.read=" + outside,
		`contexts = { a = "x://../../outside" }`:                         "fs.read=" + outside,
		`contexts = { a = "link/.." }`:                                   "fs.read=" + outside,
		`contexts = { "a=k" = "v" }`:                                     "fs.read=" + outside,
		`context = "target:link"`:                                        "fs.read=" + outside,
		`dockerfile = "input:file"`:                                      "fs.read=" + outside + "/Dockerfile",
		"context = \"sub\"\ndockerfile = \"sub/Dockerfile\"":             "fs.read=" + outside + "/Dockerfile",
		`output = [{ type = "local", Dest = "../outside" }]`:             "fs.write=" + outside,
		`output = [{ type = "local", "dest=k" = "v" }]`:                  "fs.write=" + outside,
		`output = ["type=local,dest=target:link/new"]`:                   "fs.write=" + outside + "/new",
		`output = ["type=local,dest=dangling"]`:                          "fs.write=" + outside + "/absent/x",
		`output = ["type=tar,dest=relay/../z"]`:                          "fs.write=" + outside + "/absent/x/z",
		`cache-to = [{ type = "local", Dest = "../outside" }]`:           "fs.write=" + outside,
		`ssh = ["default="]`:                                             "ssh",
		`ssh = [{ id = "default", paths = ["mine,../outside/secret"] }]`: "fs.read=" + outside + "/secret",
		`ssh = [{ id = "default=../outside/secret" }]`:                   "fs.read=" + outside + "/secret",
	} {
		text := "target \"t\" {\n" + attrs + "\n}"
		if err := allowed(t, text); !errors.Is(err, errs.Forbidden) || !strings.Contains(err.Error()+" ", "--allow "+missing+" ") {
			t.Errorf("%s: %v, want that it asks for --allow %s", attrs, err, missing)
		}
	}
	for file, missing := range map[string]string{"../outside/env": "fs.read=" + outside + "/env", "./env": ""} {
		err := allowed(t, "services: {t: {env_file: "+file+", build: {context: ., args: [KEY]}}}")
		if missing == "" && err != nil || missing != "" && (!errors.Is(err, errs.Forbidden) || !strings.Contains(err.Error()+" ", "--allow "+missing+" ")) {
			t.Errorf("env_file %s: %v, want that it asks for --allow %s", file, err, missing)
		}
	}
	for _, attrs := range []string{
		``,
		`secret = ["id=a,src=mine", "id=b,env=HOME"]`,
		`contexts = { a = "docker-image://busybox", b = "sub", c = "cwd://sub" }`,
		`output = ["type=local,dest=out/new", "type=docker"]`,
		`cache-to = ["type=local,dest=cache"]`,
	} {
		if err := allowed(t, "target \"t\" {\n"+attrs+"\n}"); err != nil {
			t.Errorf("%s: %v", attrs, err)
		}
	}
}

// A link that appears after a plan was checked, such as one in the output of another target, leads a build nowhere else.
func TestBakeChecksWhatItOpens(t *testing.T) {
	top := t.TempDir()
	for _, d := range []string{"outside", "wd/in"} {
		if err := os.MkdirAll(top+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"outside/f", "wd/in/f"} {
		if err := os.WriteFile(top+"/"+f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(top + "/wd")
	made := t.TempDir()
	a, err := (&bakeFlags{}).access()
	if err != nil {
		t.Fatal(err)
	}
	p := &plan{remove: []string{made}}
	opened := func(name string, write bool) error {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return a.opened(p, f, write)
	}
	if err := errors.Join(opened("in", true), opened("in/f", false), opened(".", true), opened(made, false)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(os.RemoveAll("in"), os.Symlink("../outside", "in")); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]bool{"in": true, "in/f": false, made: true, top: false, "/": false} {
		if err := opened(name, write); !errors.Is(err, errs.Forbidden) {
			t.Errorf("%s, to write %v: %v", name, write, err)
		}
	}
}
