package build

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/test/private"
)

// TestItself builds the image of ply from the project's Dockerfile, runs it, and has the engine in the container build and run hello-world. There is no network,
// so the stage debian is made of packages of this machine, and the stage compiled of the programs that the tests use. test/itself compiles them in the build.
func TestItself(t *testing.T) {
	e := startPly(t, "erofs")
	root, err := private.Root()
	if err != nil {
		t.Fatal(err)
	}
	debian, compiled := filepath.Join(e.dir, "debian"), filepath.Join(e.dir, "compiled")
	if err := private.PackageRoot(debian, "dash", "coreutils", "grep", "dpkg", "nftables", "iproute2", "procps", "libisal2"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(compiled, 0o755), command("cp", "-a", bin, compiled+"/out")); err != nil {
		t.Fatal(err)
	}
	e.ply(t, "build", "-q", "-t", "ply", "--build-context", "debian="+debian, "--build-context", "compiled="+compiled, root)
	e.ply(t, "run", "-d", "--privileged", "--name", "engine", "ply")
	t.Cleanup(func() { e.ply(t, "rm", "-f", "-v", "engine") })
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, code := e.try("", e.cli[0], "exec", "engine", "sh", "-c", "[ -S /run/ply.sock ] && ply version")
		if code == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the engine in the container does not answer: %s\n%s", out, e.ply(t, "logs", "engine"))
		}
	}
	out := e.ply(t, "exec", "engine", "sh", "-euc", `mkdir /hello; cd /hello
cp /usr/local/bin/ply-registry hello
printf 'FROM scratch\nCOPY hello /\nRUN ["/hello", "--version"]\nCMD ["/hello", "--version"]\n' >Dockerfile
ply build -t hello-world .
echo "it says $(ply run --rm hello-world)"
ply system check --full`)
	for _, want := range []string{"Successfully tagged hello-world:latest", "it says ply-registry", "Everything agrees"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
	}
	e.ply(t, "stop", "-t", "30", "engine")
	left(t, e, "engine")
}
