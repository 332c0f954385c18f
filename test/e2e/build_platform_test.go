package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/host"
)

const binfmt = "/proc/sys/fs/binfmt_misc"

// emulate registers an emulator for arm64, unless one is registered, until the test ends.
func emulate(t *testing.T) {
	t.Helper()
	if runtime.GOARCH == "arm64" || host.Emulator("arm64") != "" {
		return
	}
	if _, err := os.Stat(filepath.Join(binfmt, "register")); errors.Is(err, os.ErrNotExist) {
		if err := unix.Mount("binfmt_misc", binfmt, "binfmt_misc", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(binfmt, 0); err != nil {
				t.Error(err)
			}
		})
	}
	const name = "ply-e2e-arm64"
	line := ":" + name + `:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:` +
		`\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F`
	if err := os.WriteFile(filepath.Join(binfmt, "register"), []byte(line), 0o200); err != nil {
		t.Fatal("the test needs Debian's qemu-user-static: ", err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(filepath.Join(binfmt, name), []byte("-1"), 0o200); err != nil {
			t.Error(err)
		}
	})
}

// A static program that writes its architecture into a file.
const archProgram = `package main

import ("os"; "runtime")

func main() {
	if err := os.WriteFile("/arch", []byte(runtime.GOARCH+" "+os.Getenv("SAID")+"\n"), 0o644); err != nil { panic(err) }
}
`

// Images for several platforms: from names that have several, with commands of a foreign one where the kernel can run them, and an error where it
// cannot.
func TestBuildPlatforms(t *testing.T) {
	w, dir := newWorld(t), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("src/main.go", archProgram)
	for _, arch := range []string{"amd64", "arm64", "s390x"} {
		c := exec.Command("go", "build", "-o", filepath.Join(dir, "base", arch), "main.go")
		c.Dir = filepath.Join(dir, "src")
		c.Env = append(os.Environ(), "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=-trimpath")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	write("base/Dockerfile", "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /program\nENV SAID=$TARGETARCH\n")
	write("run/Dockerfile", "FROM base\nARG TARGETPLATFORM BUILDPLATFORM\nLABEL target=$TARGETPLATFORM build=$BUILDPLATFORM\nRUN [\"/program\"]\n")
	write("cross/Dockerfile", "FROM --platform=$BUILDPLATFORM base AS tools\nRUN [\"/program\"]\nFROM scratch\nCOPY --from=tools /arch /built-on\n")
	context := func(name string) string { return filepath.Join(dir, name) }

	// The name means the image for this machine, and the others are beside it.
	w.ply("build", "-q", "--platform", "linux/amd64,linux/arm64,linux/s390x", "-t", "base", context("base"))
	if got := w.ply("inspect", "-f", "{{.Architecture}}", "base"); got != runtime.GOARCH {
		t.Errorf("the name means the image for %s", got)
	}

	// A platform whose programs do not run here.
	if host.Emulator("s390x") == "" {
		out := w.fail(1, "build", "--platform", "linux/s390x", context("run"))
		if !strings.Contains(out, "no program that runs commands for linux/s390x is registered in binfmt_misc") || !strings.Contains(out, "qemu-user-static") {
			t.Errorf("the error is\n%s", out)
		}
	}
	// Without a command it does not matter; a stage for the build platform runs here.
	w.ply("build", "-q", "--platform", "linux/s390x", "-t", "crossed", context("cross"))
	if got := contentOf(w, "crossed", "built-on"); got != runtime.GOARCH+" "+runtime.GOARCH+"\n" || w.ply("inspect", "-f", "{{.Architecture}}", "crossed") != "s390x" {
		t.Errorf("a stage for the build platform: %q", got)
	}

	emulate(t)
	w.ply("build", "-q", "--platform", "linux/amd64,linux/arm64", "-t", "multi", context("run"))
	for _, arch := range []string{"amd64", "arm64"} {
		w.ply("build", "-q", "--platform", "linux/"+arch, "-t", "one", context("run"))
		var img []struct {
			Architecture string
			Config       struct{ Labels map[string]string }
		}
		if err := json.Unmarshal([]byte(w.ply("inspect", "one")), &img); err != nil {
			t.Fatal(err)
		}
		if got := contentOf(w, "one", "arch"); got != arch+" "+arch+"\n" || img[0].Architecture != arch || img[0].Config.Labels["target"] != "linux/"+arch ||
			img[0].Config.Labels["build"] != "linux/"+runtime.GOARCH {
			t.Errorf("%s: %q, %+v", arch, got, img)
		}
	}
	if got := w.ply("inspect", "-f", "{{.Architecture}}", "base"); got != runtime.GOARCH {
		t.Errorf("afterwards the name of the base image means the one for %s", got)
	}
}

// contentOf returns a file of an image that need not run here.
func contentOf(w *world, image, name string) string {
	w.t.Helper()
	id := w.ply("create", image, "x")
	defer w.ply("rm", id)
	to := filepath.Join(w.t.TempDir(), "file")
	w.ply("cp", id+":/"+name, to)
	data, err := os.ReadFile(to)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(data)
}
