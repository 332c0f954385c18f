package dockerfile_test

import (
	"context"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client/llb"
	"github.com/rogpeppe/go-internal/txtar"

	"ply/internal/build/dockerfile"
	"ply/internal/oci"
)

var update = flag.Bool("update", false, "write the golden files")

// read parses a case: its comment has options as "name=value" and images as "image REF CONFIG"; files are the context, except those
// below "local:NAME/".
func read(t *testing.T, name string) (*txtar.Archive, dockerfile.Request, *solver) {
	t.Helper()
	ar, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &solver{locals: map[string]map[string]string{"context": {}, "dockerfile": {}}, images: map[string]string{
		"docker.io/library/alpine:latest": "", "docker.io/library/busybox:latest": "", "docker.io/library/golang:1.22": "",
		"docker.io/library/onbuild:latest": onbuild, "docker.io/library/full:latest": full,
	}}
	req := dockerfile.Request{Options: map[string]string{}, SessionID: "session", Platforms: []oci.Platform{{OS: "linux", Architecture: "amd64"}}}
	input, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("x"))).Marshal(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := input.ToPB().MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	req.Inputs = map[string][]byte{"in": raw}
	crlf, bom := false, false
	for line := range strings.SplitSeq(strings.TrimSpace(string(ar.Comment)), "\n") {
		switch k, v, ok := strings.Cut(line, "="); {
		case strings.HasPrefix(line, "#") || line == "":
		case strings.HasPrefix(line, "image "):
			f := strings.SplitN(line, " ", 3)
			s.images[f[1]] = strings.Join(f[2:], "")
		case line == "crlf":
			crlf = true
		case line == "bom":
			bom = true
		case k == "host":
			p, err := oci.ParsePlatform(v)
			if err != nil {
				t.Fatal(err)
			}
			req.Platforms = []oci.Platform{p}
		case ok:
			req.Options[k] = v
		default:
			t.Fatalf("%s: bad line %q", name, line)
		}
	}
	for _, f := range ar.Files {
		local, rest := "context", f.Name
		if r, ok := strings.CutPrefix(f.Name, "local:"); ok {
			local, rest, _ = strings.Cut(r, "::")
		}
		if s.locals[local] == nil {
			s.locals[local] = map[string]string{}
		}
		text := string(f.Data)
		if rest == "Dockerfile" && crlf {
			text = strings.ReplaceAll(text, "\n", "\r\n")
		}
		if rest == "Dockerfile" && bom {
			text = "\xef\xbb\xbf" + text
		}
		if f.Name != "want" {
			s.locals[local][rest] = text
		}
	}
	s.locals["dockerfile"] = s.locals["context"]
	return ar, req, s
}

const (
	onbuild = `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin","V=1"],"OnBuild":["COPY . /src","RUN make $V","ENV FROM_TRIGGER=$V"]},"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000001"]},"history":[{"created_by":"base"}]}`
	full    = `{"architecture":"amd64","os":"linux","author":"someone","config":{"User":"app","Env":["PATH=/usr/bin:/bin","HOME=/home/app"],"Entrypoint":["/entry"],"Cmd":["serve"],"WorkingDir":"/srv/app","Labels":{"a":"1"},"ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"StopSignal":"SIGINT","Shell":["/bin/bash","-c"],"Healthcheck":{"Test":["NONE"]}},"rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000001"]},"history":[{"created_by":"one"},{"created_by":"two","empty_layer":true}]}`
)

// The language: each file of testdata is a Dockerfile with its context and options, and what the front end makes of it.
func TestLanguage(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			ar, req, s := read(t, name)
			before := maps.Clone(req.Options)
			out, err := dockerfile.Build(context.Background(), req, s)
			got := dump(out, s.warnings)
			if err != nil {
				got += "error " + dockerfile.Format(err) + "\n"
			}
			if d := cmp.Diff(before, req.Options); d != "" {
				t.Errorf("Build changed the options:\n%s", d)
			}
			want := ""
			for i, f := range ar.Files {
				if f.Name == "want" {
					want = string(f.Data)
					ar.Files = ar.Files[:i]
					break
				}
			}
			if *update {
				ar.Files = append(ar.Files, txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(name, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// Each step says what the front end says: a Dockerfile that ends with the step gives its config, and as much history.
func TestStepsAgreeWithTheFrontEnd(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			_, req, s := read(t, name)
			for _, files := range s.locals {
				for f, data := range files {
					if strings.HasPrefix(data, "FROM ") || strings.Contains(data, "\nFROM ") {
						files[f] = data + "\nUSER last\n" // Build takes the config of the last step from the front end
					}
				}
			}
			out, err := dockerfile.Build(context.Background(), req, s)
			if err != nil || len(out.Images) == 0 {
				t.Skip("no image")
			}
			text := strings.SplitAfter(string(out.File.Data), "\n")
			for n, img := range out.Images {
				configs := slices.Collect(img.Configs())
				if len(configs) != len(img.Steps) {
					t.Fatalf("%d configs of %d steps", len(configs), len(img.Steps))
				}
				for i, st := range img.Steps {
					if wrong := misplaced(st); wrong != "" {
						t.Error(wrong)
					}
					if i == 0 || i+1 < len(img.Steps) && img.Steps[i+1].Trigger || st.End < img.Steps[i-1].End {
						continue // triggers belong to one line
					}
					_, req, s := read(t, name)
					delete(req.Options, "target")
					for _, files := range s.locals {
						for f, data := range files {
							if data != "" && strings.HasSuffix(strings.ToLower(f), "dockerfile") || f == "context" || f == "sub/Other" {
								files[f] = strings.Join(text[:st.End], "")
							}
						}
					}
					short, err := dockerfile.Build(context.Background(), req, s)
					if err != nil {
						t.Fatalf("up to line %d: %v", st.End, err)
					}
					var c oci.Config
					if err := json.Unmarshal(short.Images[n].Config, &c); err != nil {
						t.Fatal(err)
					}
					labels := maps.Clone(configs[i].Labels)
					for k, v := range req.Options {
						if l, ok := strings.CutPrefix(k, "label:"); ok {
							if labels == nil {
								labels = map[string]string{}
							}
							labels[l] = v
						}
					}
					configs[i].Labels = labels
					if d := cmp.Diff(asJSON(t, c.Config), asJSON(t, configs[i])); d != "" {
						t.Errorf("after line %d:\n%s", st.End, d)
					}
					if c.Author != st.Author || len(c.History) != st.History {
						t.Errorf("after line %d: author %q, %d entries of history; the step has %q, %d", st.End, c.Author, len(c.History), st.Author, st.History)
					}
					checked++
				}
			}
		})
	}
	if checked < 100 {
		t.Errorf("only %d steps checked", checked)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
