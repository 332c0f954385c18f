package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	if err := packageRoot(debian, "dash", "coreutils", "grep", "dpkg", "nftables", "iproute2", "procps", "libisal2"); err != nil {
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

// packageRoot makes a root file system of installed Debian packages and those that they depend on, without their documentation.
func packageRoot(dir string, names ...string) error {
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Package};${Provides};${Pre-Depends}, ${Depends}\n").Output()
	if err != nil {
		return fmt.Errorf("dpkg-query: %w", err)
	}
	provide, need := map[string][]string{}, map[string]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.SplitN(strings.TrimSpace(line), ";", 3)
		need[f[0]] = f[2]
		for _, p := range append(alternatives(f[1]), f[0]) {
			provide[p] = append(provide[p], f[0])
		}
	}
	var packages []string
	for len(names) > 0 {
		p := names[0]
		names = names[1:]
		for _, q := range provide[p] {
			if !slices.Contains(packages, q) {
				packages = append(packages, q)
				names = append(names, alternatives(need[q])...)
			}
		}
	}
	if out, err = exec.Command("dpkg", append([]string{"-L"}, packages...)...).Output(); err != nil {
		return fmt.Errorf("dpkg -L: %w", err)
	}
	list := []string{"bin", "sbin", "lib", "lib64", "var/lib/dpkg/status", "etc/passwd", "etc/group"}
	for line := range strings.Lines(string(out)) {
		p := strings.TrimSpace(line)
		if strings.HasPrefix(p, "/usr/share/") || p == "/." {
			continue
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(p))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		p = filepath.Join(parent, filepath.Base(p))
		if _, err := os.Lstat(p); err == nil {
			list = append(list, p[1:])
		}
	}
	slices.Sort(list)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("sh", "-c", `set -e; cd /; tar --no-recursion -cf - -T - | tar -C "$1" -xf -; mkdir -p "$1"/tmp "$1"/run "$1"/usr/local/bin "$1"/usr/local/sbin; chmod 1777 "$1"/tmp`, "sh", dir)
	cmd.Stdin = strings.NewReader(strings.Join(slices.Compact(list), "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copy packages: %w: %s", err, out)
	}
	return nil
}

// alternatives returns the names of packages in a relation such as Depends, without versions.
func alternatives(relation string) (names []string) {
	for _, p := range strings.FieldsFunc(relation, func(r rune) bool { return r == ',' || r == '|' }) {
		if f := strings.Fields(p); len(f) > 0 {
			name, _, _ := strings.Cut(f[0], ":")
			names = append(names, name)
		}
	}
	return names
}
