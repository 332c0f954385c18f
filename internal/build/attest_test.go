package build_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"ply/internal/errs"
	"ply/internal/image"
	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

type statement struct {
	Type          string `json:"_type"`
	PredicateType string `json:"predicateType"`
	Subject       []struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	Predicate json.RawMessage `json:"predicate"`
}

// attestations reads what a registry has about an image, by the way that clients go: index, manifest of the attestations, blobs.
func attestations(t *testing.T, name string) (image oci.Digest, all map[string]statement) {
	t.Helper()
	x, err := oci.DecodeIndex([]byte(skopeo(t, "inspect", "--tls-verify=false", "--raw", "docker://"+name)), "")
	if err != nil {
		t.Fatal(err)
	}
	repo := name[:strings.LastIndex(name, ":")]
	all = map[string]statement{}
	for _, d := range x.Manifests {
		if d.Annotations["vnd.docker.reference.type"] == "" {
			image = d.Digest
			continue
		}
		if d.Annotations["vnd.docker.reference.digest"] != string(image) || d.Platform.OS != "unknown" {
			t.Errorf("descriptor of the attestations: %+v", d)
		}
		raw := skopeo(t, "inspect", "--tls-verify=false", "--raw", "docker://"+repo+"@"+string(d.Digest))
		var m oci.Manifest
		if err := json.Unmarshal([]byte(raw), &m); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			host, path, _ := strings.Cut(repo, "/")
			data, err := exec.CommandContext(t.Context(), "curl", "-sf", "http://"+host+"/v2/"+path+"/blobs/"+string(l.Digest)).Output()
			if err != nil || oci.DigestOf(data) != l.Digest {
				t.Fatalf("blob %s: %v", l.Digest, err)
			}
			var s statement
			if err := json.Unmarshal(data, &s); err != nil || s.PredicateType != l.Annotations["in-toto.io/predicate-type"] || s.Type != "https://in-toto.io/Statement/v1" {
				t.Errorf("statement %+v of %+v: %v", s, l, err)
			}
			for _, sub := range s.Subject {
				if sub.Digest["sha256"] != image.Hex() {
					t.Errorf("subject %+v, the image is %s", sub, image)
				}
			}
			all[s.PredicateType] = s
		}
	}
	return image, all
}

const dpkgStatus = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nSource: bash (5)\nVersion: 5.2-1\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"

func TestAttestations(t *testing.T) {
	w := newWorld(t)
	reg := remotetest.Start(t, remotetest.Options{})
	name := reg.Addr + "/attested:1"
	in := input{
		file:    "FROM scratch\nARG API_TOKEN\nARG PLAIN\nCOPY status /var/lib/dpkg/status\nCOPY os-release /etc/os-release\nCOPY os-release /$PLAIN\n",
		context: map[string]string{"status": dpkgStatus, "os-release": "ID=debian\nVERSION_ID=\"13\"\n"},
		options: map[string]string{
			"attest:provenance": "mode=max", "attest:sbom": "", "build-arg:API_TOKEN": "hunter2canary", "build-arg:PLAIN": "plainvalue", "label:l": "v",
			"context:extra": "https://user:pass2canary@example.com/repo.git", "vcs:source": "https://tok3canary@example.com/r.git", "vcs:revision": "abc",
		},
		exports: exports("registry", "name="+name),
	}
	res, _ := w.must(in)
	image, all := attestations(t, name)
	if len(all) != 2 {
		t.Fatalf("predicates: %v", slices.Collect(maps.Keys(all)))
	}
	p := string(all["https://slsa.dev/provenance/v1"].Predicate)
	for _, want := range []string{`"plainvalue"`, `"label:l":"v"`, `"llbDefinition"`, `"copy":`, `"filename":"Dockerfile"`, `"locals":[{"name":"context"}]`, `"revision":"abc"`, `"resolvedDependencies":false`, `"request":false`} {
		if !strings.Contains(p, want) {
			t.Errorf("provenance without %s: %s", want, p)
		}
	}
	if strings.Contains(p, "canary") {
		t.Errorf("the provenance has a secret: %s", p)
	}
	b := string(all["https://spdx.dev/Document"].Predicate)
	if !strings.Contains(b, `"pkg:deb/debian/bash@5.2-1?arch=amd64\u0026distro=debian-13"`) || strings.Contains(b, "gone") {
		t.Errorf("SBOM: %s", b)
	}
	if res.Answers["containerimage.digest"] == string(image) {
		t.Error("the answer is not the digest of the index")
	}
	min, err := base64.StdEncoding.DecodeString(res.Answers["buildx.build.provenance"])
	if err != nil || !strings.Contains(string(min), "buildDefinition") || strings.Contains(string(min), "build-arg") || strings.Contains(string(min), "canary") {
		t.Errorf("metadata: %s, %v", min, err)
	}

	in.options = map[string]string{"attest:provenance": "mode=min,version=v0.2,builder-id=https://example.com/b"}
	w.must(in)
	_, all = attestations(t, name)
	p = string(all["https://slsa.dev/provenance/v0.2"].Predicate)
	if len(all) != 1 || !strings.Contains(p, `"builder":{"id":"https://example.com/b"}`) || strings.Contains(p, "llbDefinition") || !strings.Contains(p, `"buildType":"https://mobyproject.org/buildkit@v1"`) {
		t.Errorf("version 0.2: %v %s", slices.Collect(maps.Keys(all)), p)
	}
}

// Attestations that are meant for registries are not in files; the others are, with the files as subjects.
func TestAttestationsInFiles(t *testing.T) {
	w := newWorld(t)
	in := input{file: sample, context: sampleFiles, options: map[string]string{"attest:provenance": "inline-only=true", "attest:sbom": ""}, exports: exports("local", "attestation-prefix=x-")}
	_, c := w.must(in)
	if c.files["x-sbom.spdx.json"] == "" || c.files["x-provenance.json"] != "" || !strings.Contains(c.files["x-sbom.spdx.json"], `"name": "dir/a"`) {
		t.Errorf("files: %v", c.files)
	}
	in.options = map[string]string{"attest:provenance": "", "platform": "linux/amd64,linux/arm64"}
	in.exports = exports("local")
	if _, c = w.must(in); c.files["linux_arm64/provenance.json"] == "" || c.files["linux_amd64/provenance.json"] == "" {
		t.Errorf("platforms: %v", c.files)
	}
	_, _, err := w.build(input{file: "FROM scratch\nCOPY a /provenance.json\n", context: sampleFiles, options: map[string]string{"attest:provenance": ""}, exports: exports("local")})
	if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "provenance.json") {
		t.Errorf("a file of that name: %v", err)
	}
}

// The store keeps an index with its attestations through a collection, and forgets them with the last name.
func TestAttestationsInStore(t *testing.T) {
	w := newWorld(t)
	w.must(input{file: sample, context: sampleFiles, tags: []string{"app:1"}, options: map[string]string{"attest:provenance": "mode=min", "attest:sbom": ""}, exports: exports("image")})
	x, err := w.images.Index("app:1")
	if err != nil || x == nil || len(x.Artifacts) != 1 || len(x.Blobs) != 3 {
		t.Fatalf("index: %+v, %v", x, err)
	}
	if _, err := w.store.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(slices.Clone(x.Blobs), x.Digest, x.Artifacts[0].Digest) {
		if _, err := w.store.Blobs.Stat(d); err != nil {
			t.Errorf("%s was collected: %v", d, err)
		}
	}
	reg := remotetest.Start(t, remotetest.Options{})
	name, err := oci.ParseReference(reg.Addr + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.images.Tag(t.Context(), "app:1", name); err != nil {
		t.Fatal(err)
	}
	if err := w.pusher.Push(t.Context(), name, transfer.PushOptions{}, transfer.Discard); err != nil {
		t.Fatal(err)
	}
	if _, all := attestations(t, name.String()); len(all) != 2 {
		t.Errorf("pushed: %v", slices.Collect(maps.Keys(all)))
	}
	if _, err := w.images.Remove(t.Context(), name.String(), image.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	// A build that takes the name away forgets the index.
	w.must(input{file: sample, context: map[string]string{"a": "2", "b": "3"}, tags: []string{"app:1"}})
	if x, err := w.images.Index("app:1"); err != nil || x != nil {
		t.Errorf("the index of the older image: %v, %v", x, err)
	}
}

func TestAttestationErrors(t *testing.T) {
	w := newWorld(t)
	for option, want := range map[string]string{
		"attest:provenance=mode=most": "most", "attest:provenance=version=v3": "v3", "attest:provenance=modes=x": "modes", "attest:provenance=capture-usage=true": "capture-usage",
		"attest:provenance=complete-materials=true": "incomplete", "attest:sbom=generator=example.com/x": "generator", "attest:vsa=": "vsa", "build-arg:BUILDKIT_ATTEST_SBOM=generator=x": "generator",
	} {
		k, v, _ := strings.Cut(option, "=")
		_, _, err := w.build(input{file: sample, context: sampleFiles, options: map[string]string{k: v}, exports: exports("cacheonly")})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", option, err, want)
		}
	}
}
