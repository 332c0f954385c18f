package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"ply/test/private"
)

// slowClients take minutes to build, or their libraries to download. Their stories run where they are installed, and at night, when they must be.
var slowClients = []string{"docker-buildx", "docker-compose", "cosign", "crane", "go-clients", "testcontainers"}

// packagedClients are Debian's. Their stories run where they are installed, and at night, when they must be.
var packagedClients = []string{"buildah", "podman"}

// quickClients are built before every run of the tests.
var quickClients = []string{"regctl"}

// TestClients runs the stories of the programs of other projects that drive plyd or its registry. In PATH of a story are those that test/setup/clients has
// installed, whose directory is $CLIENTS, docker-buildx and docker-compose are plug-ins of the docker clients too, and the name of each is a condition that holds where it is installed.
func TestClients(t *testing.T) {
	dir := private.Clients()
	p := stories(t, "clients")
	p.Setup = func(env *testscript.Env) error {
		if err := setup(env); err != nil {
			return err
		}
		env.Setenv("PATH", dir+":"+env.Getenv("PATH"))
		env.Setenv("CLIENTS", dir)
		plugins := filepath.Join(env.Getenv("DOCKER_CONFIG"), "cli-plugins")
		if err := os.MkdirAll(plugins, 0o755); err != nil {
			return err
		}
		return errors.Join(os.Symlink(filepath.Join(dir, "docker-buildx"), filepath.Join(plugins, "docker-buildx")),
			os.Symlink(filepath.Join(dir, "docker-compose"), filepath.Join(plugins, "docker-compose")))
	}
	p.Cmds["packageroot"] = cmdPackageRoot
	p.Condition = func(name string) (bool, error) {
		if slices.Contains(packagedClients, name) {
			_, err := exec.LookPath(name)
			if err != nil && os.Getenv("PLY_NIGHTLY") != "" {
				return false, err
			}
			return err == nil, nil
		}
		slow := slices.Contains(slowClients, name)
		if !slow && !slices.Contains(quickClients, name) {
			return condition(name)
		}
		_, err := os.Stat(filepath.Join(dir, name))
		if err != nil && (!slow || os.Getenv("PLY_NIGHTLY") != "") {
			return false, fmt.Errorf("%w: test/setup/clients %s installs it", err, name)
		}
		return err == nil, nil
	}
	testscript.Run(t, p)
}

// packageroot DIR PACKAGE... makes a root file system of Debian packages that this machine has.
func cmdPackageRoot(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: packageroot DIR PACKAGE...")
	}
	ts.Check(private.PackageRoot(ts.MkAbs(args[0]), args[1:]...))
}
