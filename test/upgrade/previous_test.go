package upgrade

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ply/test/private"
)

// previous is the commit whose build this tree must be able to replace: the last one that wrote its records, files and
// messages without versions. When a release changes a format, previous becomes the last commit before that change, and
// testdata/roots.tar.zst is written again (see doc.go); the old archive stays beside it for as long as its format is read.
const previous = "cba5bce4b3f226380fb3202eda60e1ea29278109"

var buildPrevious = sync.OnceValues(func() (dir string, err error) {
	root, err := private.Root()
	if err != nil {
		return "", err
	}
	src, err := os.MkdirTemp("", "ply-previous.")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(src)) }()
	// The lines of that commit's Makefile, without the commit in the version, so that the build cache is used again.
	script := `git -C "$1" archive ` + previous + ` | tar -x -C "$2"
cd "$2"
CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags '-s -w' -o bin/ply ./cmd/ply
CGO_ENABLED=1 go build -buildvcs=false -trimpath -tags isal -ldflags '-s -w' -o bin/plyd ./cmd/plyd
CGO_ENABLED=1 go build -buildvcs=false -trimpath -tags 'seccomp netgo osusergo' -ldflags '-s -w -linkmode external -extldflags "-static"' -o bin/ply-shim ./cmd/ply-shim`
	// Its modules may have other versions than those of this tree. Go can download them outside of the namespaces of the tests.
	outside := fmt.Sprintf("/proc/%d/ns/", os.Getppid())
	args := []string{"--net=" + outside + "net", "--mount=" + outside + "mnt", "bash", "-euo", "pipefail", "-c", script, "bash", root, src}
	if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build of %.12s: %w\n%s", previous, err, out)
	}
	dir = filepath.Join(scratch, "previous")
	if out, err := exec.Command("mv", filepath.Join(src, "bin"), dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("build of %.12s: %w\n%s", previous, err, out)
	}
	return dir, nil
})

// previousBinaries returns the directory of the previous build's ply, plyd and ply-shim. It skips the test when the history
// does not hold that commit, as in a shallow clone or an unpacked archive.
func previousBinaries(t *testing.T) string {
	t.Helper()
	root, err := private.Root()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("git", "-C", root, "cat-file", "-e", previous+"^{tree}").CombinedOutput(); err != nil {
		t.Skipf("this history does not hold commit %.12s, whose build would be replaced: %v %s", previous, err, strings.TrimSpace(string(out)))
	}
	dir, err := buildPrevious()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "plyd")); err != nil {
		t.Fatal(err)
	}
	return dir
}
