package container_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/container"
	"ply/internal/container/spec"
)

// The programs of a build step wait for no disk, and its container is known as a step's after a restart of the engine. A label makes
// no container a step's.
func TestContainerOfAStep(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	box, err := w.images.Get(ctx, "box")
	if err != nil {
		t.Fatal(err)
	}
	label := map[string]string{"ply.build.step": "RUN x"}
	sp := sh("sleep 600")
	sp.Labels = label
	step, _, err := container.NewSteps(w.s).CreateFrom(ctx, sp, nil, box)
	if err != nil {
		t.Fatal(err)
	}
	// Before its program runs, and after it until its layer is stored, it is a container that does not run.
	if pruned, _, err := w.s.Prune(ctx, nil); err != nil || len(pruned) > 0 {
		t.Errorf("pruned %v, %v", pruned, err)
	}
	w.start(string(step))
	other := w.up(func(s *spec.Spec) { s.Labels = label })
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	volatile := func(id string) bool {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, filepath.Join("containers", id, "rootfs")+" ") {
				return strings.Contains(line, "volatile") // newer kernels print "fsync=volatile"
			}
		}
		t.Errorf("%s has no root", id)
		return false
	}
	check := func() {
		t.Helper()
		if !w.get(string(step)).Step || !volatile(string(step)) {
			t.Errorf("step %t, volatile %t of a step's container", w.get(string(step)).Step, volatile(string(step)))
		}
		if w.get(other).Step || volatile(other) {
			t.Errorf("step %t, volatile %t of another container", w.get(other).Step, volatile(other))
		}
	}
	check()
	w.close()
	w.open()
	check()
}
