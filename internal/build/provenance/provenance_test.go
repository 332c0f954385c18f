package provenance

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/build/ops"
	"ply/internal/oci"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func sample() Build {
	image := &ops.Vertex{Digest: oci.DigestOf([]byte("1")), Op: &ops.Image{Ref: "docker.io/library/busybox:latest"}, Platform: oci.Platform{OS: "linux", Architecture: "amd64"}}
	git := &ops.Vertex{Digest: oci.DigestOf([]byte("2")), Op: &ops.Git{Remote: "https://u:canary@example.com/r.git", Ref: "main", Subdir: "d"}}
	run := &ops.Vertex{
		Digest: oci.DigestOf([]byte("3")), Inputs: []ops.Edge{{Vertex: image}, {Vertex: git}}, Locations: []ops.Location{{Start: 3, End: 4}},
		Op: &ops.Exec{
			Args: []string{"/bin/sh", "-c", "make TOKEN=longcanary"}, Env: []string{"PATH=/bin", "MY_SECRET=canary", "PUBLIC_KEY=shown"}, Dir: "/", User: "u", Network: ops.NetworkNone,
			Mounts: []ops.Mount{
				{Kind: ops.MountBind, Input: 0, Target: "/"}, {Kind: ops.MountCache, Input: -1, Output: -1, Target: "/c", CacheID: "id"},
				{Kind: ops.MountSecret, Input: -1, Output: -1, Target: "/s", SecretID: "mine", Optional: true}, {Kind: ops.MountSSH, Input: -1, Output: -1, Target: "/ssh", SecretID: "default"},
			},
			SecretEnv: []ops.SecretEnv{{ID: "env", Name: "E"}},
		},
	}
	file := &ops.Vertex{Digest: oci.DigestOf([]byte("4")), Inputs: []ops.Edge{{Vertex: run}}, Op: &ops.Files{Actions: []ops.Action{
		{Base: 0, From: -1, Output: -1, Do: &ops.MakeFile{Path: "/f", Mode: 0o644, Data: []byte("canary")}}, {Base: 1, From: -1, Output: 0, Do: &ops.MakeDir{Path: "/d", Mode: 0o755}},
	}}}
	return Build{
		Args: map[string]string{
			"context": "https://u:canary@example.com/r.git#main", "filename": "Dockerfile.x", "build-arg:A": "plain", "build-arg:NPM_TOKEN": "longcanary", "label:l": "v", "platform": "linux/amd64",
			"attest:provenance": "", "vcs:source": "https://canary@example.com/r", "target": "t",
		},
		Graph:     &ops.Graph{Vertices: []*ops.Vertex{image, git, run, file}, Root: ops.Edge{Vertex: file}, Files: []ops.File{{Name: "Dockerfile.x", Language: "Dockerfile", Data: []byte("FROM busybox\n")}}},
		Materials: []Material{{URI: "pkg:docker/busybox@latest?platform=linux%2Famd64", Digest: map[string]string{"sha256": "aa"}}, {URI: Redact("https://u:canary@example.com/r.git") + "#main", Digest: map[string]string{"sha1": "bb"}}},
		ID:        "id", Started: time.Unix(1700000000, 0).UTC(), Finished: time.Unix(1700000009, 0).UTC(),
	}
}

func TestPredicateGolden(t *testing.T) {
	for name, o := range map[string]Options{
		"v1-max": {Version: "v1", Max: true, Reproducible: true, BuilderID: "b"}, "v1-min": {Version: "v1", Complete: true},
		"v02-max": {Version: "v0.2", Max: true}, "v02-min": {Version: "v0.2"},
	} {
		typ, data, err := Predicate(sample(), o)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "canary") {
			t.Errorf("%s has a secret: %s", name, data)
		}
		var v any
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		pretty, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got := strings.ReplaceAll(typ+"\n"+string(pretty)+"\n", oci.HostPlatform().String(), "HOST")
		path := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(path); err != nil || string(want) != got {
			t.Errorf("%s: %v, got\n%s", name, err, got)
		}
	}
}

// An argument that is an address, such as that of a proxy, is in a predicate without its credentials, also where a step repeats it.
func TestArgumentsHaveNoCredentials(t *testing.T) {
	b := sample()
	b.Args["build-arg:HTTP_PROXY"] = "http://u:canary@proxy:3128/?a&b"
	b.Args["build-arg:REPO"] = "https://canary@example.com/r.git"
	run := b.Graph.Vertices[2].Op.(*ops.Exec)
	run.Args = []string{"/bin/sh", "-c", "git clone https://canary@example.com/r.git"}
	run.Env = append(run.Env, "REPO=https://canary@example.com/r.git", "HTTP_PROXY=http://u:canary@proxy:3128/?a&b")
	for _, version := range []string{"v1", "v0.2"} {
		_, data, err := Predicate(b, Options{Version: version, Max: true})
		if err != nil || strings.Contains(string(data), "canary") {
			t.Errorf("%v: %s", err, data)
		}
		var v any
		if err := json.Unmarshal(data, &v); err != nil || !strings.Contains(string(data), "https://xxxxx@example.com/r.git") || !strings.Contains(string(data), "@proxy:3128") {
			t.Errorf("%v: %s", err, data)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"https://u:p@h/x": "https://xxxxx:xxxxx@h/x", "https://token@h/x": "https://xxxxx@h/x", "ssh://git@h/x": "ssh://git@h/x", "plain": "plain", "https://h/x#main": "https://h/x#main",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestIsSecret(t *testing.T) {
	for name, want := range map[string]bool{
		"TOKEN": true, "NPM_TOKEN": true, "api_key": true, "DB_PASSWORD": true, "AWS_SECRET_ACCESS_KEY": true, "PUBLIC_KEY": false, "KEYBOARD": false, "VERSION": false, "MONKEY": false, "CREDENTIALS": true,
	} {
		if got := IsSecret(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
