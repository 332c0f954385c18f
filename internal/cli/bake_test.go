package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// `ply bake --print` prints what buildx prints for the same files, flags and environment. The cases are in testdata/bake: lines "env NAME=VALUE" and "bake ARGUMENTS", the
// files, and what buildx printed, or "error" where it refused. -update records the answers of the buildx that test/setup/clients installs; at night they are compared again.
func TestBakePrintsWhatBuildxPrints(t *testing.T) {
	cases, err := filepath.Glob("testdata/bake/*.txtar")
	if err != nil || len(cases) < 4 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	buildx := filepath.Join(cache, "ply-clients", "docker-buildx")
	live := *update || os.Getenv("PLY_NIGHTLY") != ""
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			file, err := filepath.Abs(file)
			if err != nil {
				t.Fatal(err)
			}
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir(t.TempDir())
			t.Setenv("HOME", t.TempDir())
			want := map[string]string{}
			var kept []txtar.File
			for _, f := range a.Files {
				if n, ok := strings.CutPrefix(f.Name, "want/"); ok {
					want[n] = string(f.Data)
					continue
				}
				kept = append(kept, f)
				if err := errors.Join(os.MkdirAll(filepath.Dir(f.Name), 0o755), os.WriteFile(f.Name, f.Data, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			n := 0
			for line := range strings.Lines(string(a.Comment)) {
				verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
				switch verb {
				case "env":
					k, v, _ := strings.Cut(rest, "=")
					t.Setenv(k, v)
				case "bake":
					n++
					name := fmt.Sprint(n)
					args := append([]string{"bake", "--print"}, strings.Fields(rest)...)
					if live {
						cmd := exec.Command(buildx, args...)
						var out bytes.Buffer
						cmd.Stdout = &out
						err := cmd.Run()
						if ee := (*exec.ExitError)(nil); errors.As(err, &ee) {
							out.Reset()
							out.WriteString("error\n")
						} else if err != nil {
							t.Fatalf("test/setup/clients docker-buildx installs it: %v", err)
						}
						if !*update && want[name] != out.String() {
							t.Errorf("buildx bake %s: the record is\n%sbuildx prints\n%s", rest, want[name], out.String())
						}
						want[name] = out.String()
						kept = append(kept, txtar.File{Name: "want/" + name, Data: out.Bytes()})
					}
					var stdout, stderr bytes.Buffer
					code := Run(t.Context(), invocation(strings.NewReader(""), &stdout, &stderr), args)
					out := stdout.String()
					if code != 0 {
						out = "error\n"
					}
					if out != want[name] {
						t.Errorf("bake %s prints\n%swant\n%s%s", rest, out, want[name], stderr.String())
					}
					if code == 0 && !json.Valid([]byte(out)) {
						t.Errorf("bake %s prints no JSON", rest)
					}
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(&txtar.Archive{Comment: a.Comment, Files: kept}), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
