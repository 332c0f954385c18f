package archive_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ply/internal/image/imagetest"
	"ply/internal/transfer/archive"
	"ply/test/private"
)

// run returns the standard output of a program.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out.Bytes(), stderr.Bytes())
	}
	return out.String()
}

func writeFile(t *testing.T, data []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Fatalf("needs Debian's %s as the other side", program)
	}
}

// skopeo reads a saved archive as a Docker archive and as an OCI archive, with the same config and layers.
func TestSkopeoReadsSavedArchives(t *testing.T) {
	needs(t, "skopeo")
	s := newSide(t, archive.Options{})
	four(t, s)
	want := s.image(t, "ubuntu:14.04")
	for _, c := range []struct{ format, source string }{
		{"hybrid", "docker-archive:%s:ubuntu:14.04"}, {"hybrid", "oci-archive:%s:14.04"}, {"docker", "docker-archive:%s:ubuntu:14.04"}, {"oci", "oci-archive:%s:14.04"},
	} {
		t.Run(c.format+" "+c.source[:3], func(t *testing.T) {
			file := writeFile(t, s.save(t, c.format, "base:1", "ubuntu:14.04"))
			source := fmt.Sprintf(c.source, file)
			if got := run(t, "skopeo", "inspect", "--raw", "--config", source); got != string(want.Raw) {
				t.Errorf("config %s\nwant   %s", got, want.Raw)
			}
			// skopeo copy compares the digest of every layer with the config.
			out := filepath.Join(t.TempDir(), "out")
			run(t, "skopeo", "--insecure-policy", "copy", source, "dir:"+out)
		})
	}
}

// Load of an archive that skopeo wrote keeps the manifest and its compressed layers.
func TestLoadFromSkopeo(t *testing.T) {
	needs(t, "skopeo")
	s := newSide(t, archive.Options{})
	four(t, s)
	file := writeFile(t, s.save(t, "docker", "ubuntu:14.04"))
	for _, c := range []struct {
		dest, line string
		manifest   bool
	}{
		{"oci-archive:%s:other/name:v1", "Loaded other/name:v1", true},
		{"oci-archive:%s:v1", "Loaded sha256:", true},
		{"docker-archive:%s:other/name:v1", "Loaded other/name:v1", false},
	} {
		t.Run(c.dest, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out.tar")
			run(t, "skopeo", "--insecure-policy", "copy", "docker-archive:"+file, fmt.Sprintf(c.dest, out))
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			d := newSide(t, archive.Options{})
			lines := d.load(t, data)
			if len(lines) != 1 || !strings.HasPrefix(lines[0], c.line) {
				t.Error(lines)
			}
			// skopeo writes another config when it converts the format, so the ID differs.
			img := d.image(t, strings.TrimPrefix(lines[0], "Loaded "))
			if diff := cmp.Diff(s.image(t, "ubuntu:14.04").Chain, img.Chain); diff != "" {
				t.Error(diff)
			}
			if (img.Manifest != nil) != c.manifest {
				t.Errorf("manifest %v", img.Manifest)
			}
			if c.manifest {
				// Saved again, the archive has the same manifest and compressed layers, and skopeo can read it.
				again := writeFile(t, d.save(t, "", string(img.ID)))
				raw := run(t, "skopeo", "inspect", "--raw", "oci-archive:"+again)
				stored, err := d.Store.Blobs.Bytes(img.Manifest.Digest, 1<<20)
				if err != nil || raw != string(stored) {
					t.Errorf("manifest %s\nwant %s, %v", raw, stored, err)
				}
				run(t, "skopeo", "--insecure-policy", "copy", "oci-archive:"+again, "dir:"+filepath.Join(t.TempDir(), "o"))
				run(t, "skopeo", "--insecure-policy", "copy", "docker-archive:"+again, "dir:"+filepath.Join(t.TempDir(), "d"))
			}
		})
	}
}

// dockerd starts Debian's Docker with directories of its own. It returns the command line of the client for it.
func dockerd(t *testing.T) []string {
	t.Helper()
	needs(t, "dockerd")
	client := "/usr/bin/docker"
	if _, err := os.Stat(client); err != nil {
		t.Fatal("needs Debian's docker.io client")
	}
	dir, err := os.MkdirTemp("", "ply-dockerd-") // a short path, because the length of the socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	host := "unix://" + dir + "/sock"
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dockerd", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "-H", host, "--pidfile", dir+"/pid",
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs", "--config-file", dir+"/none.json")
	if err := os.WriteFile(dir+"/none.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		_ = log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(dir + "/log")
			t.Logf("dockerd:\n%s", b[max(0, len(b)-3000):])
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if exec.Command(client, "-H", host, "version").Run() == nil {
			return []string{client, "-H", host}
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(dir + "/log")
			t.Fatalf("dockerd does not answer:\n%s", b)
		}
	}
}

// Docker 20.10 loads what Save wrote, and Load reads what Docker 20.10 saved.
func TestDocker20(t *testing.T) {
	docker := dockerd(t)
	do := func(t *testing.T, args ...string) string {
		t.Helper()
		return run(t, docker[0], append(docker[1:], args...)...)
	}
	s := newSide(t, archive.Options{})
	four(t, s)
	want := s.image(t, "ubuntu:14.04")
	for _, format := range []string{"hybrid", "docker", "legacy"} {
		t.Run("reads our "+format, func(t *testing.T) {
			file := writeFile(t, s.save(t, format, "base:1", "ubuntu:14.04"))
			out := do(t, "load", "-i", file)
			if !strings.Contains(out, "Loaded image: ubuntu:14.04") && format != "legacy" {
				t.Errorf("said %q", out)
			}
			var got []struct {
				ID     string `json:"Id"`
				RootFS struct{ Layers []string }
			}
			if err := json.Unmarshal([]byte(do(t, "image", "inspect", "ubuntu:14.04")), &got); err != nil {
				t.Fatal(err)
			}
			if format != "legacy" && got[0].ID != string(want.ID) {
				t.Errorf("ID %s, want %s", got[0].ID, want.ID)
			}
			for i, l := range got[0].RootFS.Layers {
				if l != string(want.Chain[i]) {
					t.Errorf("layer %d is %s, want %s", i, l, want.Chain[i])
				}
			}
			t.Run("and we its answer", func(t *testing.T) {
				back := filepath.Join(t.TempDir(), "back.tar")
				do(t, "save", "-o", back, "ubuntu:14.04", "base:1")
				data, err := os.ReadFile(back)
				if err != nil {
					t.Fatal(err)
				}
				d := newSide(t, archive.Options{})
				d.load(t, data)
				if img := d.image(t, "ubuntu:14.04"); string(img.ID) != got[0].ID {
					t.Errorf("ID %s, want %s", img.ID, got[0].ID)
				}
				// The archive that Docker wrote has the oldest layout too.
				names, items := list(t, data)
				kept := names[:0:0]
				for _, n := range names {
					if n != "manifest.json" && !strings.HasSuffix(n, ".json") || strings.HasSuffix(n, "/json") {
						kept = append(kept, n)
					}
				}
				old := newSide(t, archive.Options{})
				old.load(t, rebuild(t, kept, items))
				if diff := cmp.Diff(want.Chain, old.image(t, "ubuntu:14.04").Chain); diff != "" {
					t.Error(diff)
				}
			})
			do(t, "rmi", "ubuntu:14.04", "base:1")
		})
	}
	t.Run("an image without layers", func(t *testing.T) {
		s.Image(imagetest.Spec{Name: "nothing", Empty: []string{"LABEL a=b"}, Labels: map[string]string{"a": "b"}})
		do(t, "load", "-i", writeFile(t, s.save(t, "", "nothing")))
	})
}

// Published images keep their manifests byte for byte when they are loaded and saved. They are in the directory PLY_TEST_IMAGES, or
// beside the source tree; without them, the test is skipped.
func TestSharedImages(t *testing.T) {
	dir := os.Getenv("PLY_TEST_IMAGES")
	if dir == "" {
		root, err := private.Root()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(root, "..", "shared", "images")
	}
	files, err := filepath.Glob(dir + "/*-oci.tar")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("no published images in " + dir)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			s, d := newSide(t, archive.Options{}), newDroppingSide(t)
			lines := s.load(t, data)
			name := strings.TrimPrefix(lines[0], "Loaded ")
			img := s.image(t, name)
			if img.Manifest == nil {
				t.Fatal("lost its manifest")
			}
			d.load(t, s.save(t, "", name))
			if got := d.image(t, name); got.ID != img.ID || got.Manifest == nil || got.Manifest.Digest != img.Manifest.Digest {
				t.Errorf("%+v", got.Manifest)
			}
			// Without the compressed layers, the archive has the manifest too.
			e := newSide(t, archive.Options{})
			e.load(t, d.save(t, "", name))
			if got := e.image(t, name); got.Manifest == nil || got.Manifest.Digest != img.Manifest.Digest {
				t.Errorf("%+v", got.Manifest)
			}
		})
	}
}
