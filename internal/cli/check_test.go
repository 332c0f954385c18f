package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/cli/daemon"
)

// When no engine runs and none is named, plyd examines the data root, and no engine is started.
func TestCheckWithoutAnEngine(t *testing.T) {
	t.Setenv("DOCKER_HOST", "")
	t.Setenv("PLY_HOST", "")
	dir := t.TempDir()
	script := `#!/bin/sh
echo "$*" >` + dir + `/args
echo '{"id":"layers","status":"Checking","progressDetail":{}}'
echo '{"aux":{"finding":{"kind":"blob","object":"sha256:abab","problem":"is empty","heal":"ply pull web"}}}'
[ -e ` + dir + `/cut ] && exit 1
echo '{"aux":{"summary":{"full":true,"repair":true,"checked":{"blob":2},"findings":1,"repaired":0}}}'
exit 1
`
	if err := os.WriteFile(filepath.Join(dir, "plyd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := daemon.Paths{Host: "unix://" + filepath.Join(dir, "s"), Log: filepath.Join(dir, "log"), Lock: filepath.Join(dir, "lock"), Dir: dir}
	r := runWith(d, "system", "check", "--full", "--repair")
	if r.code != 1 || r.out != "blob sha256:abab: is empty\n    to heal it: ply pull web\nChecked: blob 2\nFindings: 1, repaired: 0.\n" {
		t.Errorf("%+v", r)
	}
	if args, err := os.ReadFile(filepath.Join(dir, "args")); err != nil || string(args) != "--check=full,json,repair\n" {
		t.Errorf("plyd was started with %q, %v", args, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cut"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := runWith(d, "system", "check"); r.code != 1 || !strings.Contains(r.err, "cut off") {
		t.Errorf("an examination that was cut off: %+v", r)
	}
}
