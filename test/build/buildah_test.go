package build

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRecordBuildah builds the cases with Debian's buildah. With -update-buildah it records the images; otherwise they must be as recorded.
func TestRecordBuildah(t *testing.T) {
	if !*updateBuildah && os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("the records are checked at night")
	}
	e := newEngine(t, "buildah")
	e.cli = []string{"buildah", "--root", filepath.Join(e.dir, "data"), "--runroot", filepath.Join(e.dir, "run"), "--storage-driver", "vfs"}
	// Its label would be a difference of every image, and its cache mixes builds that run at the same time.
	e.flags = []string{"--identity-label=false", "--no-cache"}
	// Without DOCKER_CONFIG, which names a file that must exist for buildah.
	e.env = append(slices.DeleteFunc(e.env, func(v string) bool { return strings.HasPrefix(v, "DOCKER_CONFIG=") }), "TMPDIR="+e.dir, "BUILDAH_ISOLATION=chroot", "BUILDAH_LAYERS=true", "BUILDAH_FORMAT=docker")
	e.archive = e.buildahArchive
	t.Cleanup(func() {
		if err := os.RemoveAll(e.dir); err != nil {
			t.Error(err)
		}
	})
	e.run(t, e.cli[0], append(slices.Clone(e.cli[1:]), "pull", "-q", "docker-archive:"+baseArchive)...)
	var err error
	if e.base, err = e.saved("base"); err != nil {
		t.Fatal(err)
	}
	for _, c := range readCases(t) {
		if c.name == "err_circular" {
			continue // buildah takes a stage that is not there yet for the image that was built last
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.record(t, e, "buildah", *updateBuildah)
		})
	}
}

// buildahArchive returns an image as docker save writes it.
func (e *engine) buildahArchive(image string) (io.ReadCloser, error) {
	dir, err := os.MkdirTemp(e.dir, "archive.")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "image.tar")
	args := append(slices.Clone(e.cli[1:]), "push", "-q", image, "docker-archive:"+file)
	cmd := exec.Command(e.cli[0], args...)
	cmd.Env = e.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("buildah %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return os.Open(file)
}
