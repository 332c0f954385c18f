package crash

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestKill kills plyd at random moments while clients use it. After every start, what was acknowledged must be there.
func TestKill(t *testing.T) {
	seed := seed(t)
	remote := registry(t)
	drivers := []string{"erofs", "overlay2", "vfs"}
	for i, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			v := newVictim(t, "kill"+strconv.Itoa(i), "", driver)
			v.start()
			v.prepare()
			ws := v.workers(remote)
			rounds := (*kills + i) / len(drivers)
			for range rounds {
				v.round(ws, r, func() {
					v.kill()
					if r.IntN(4) == 0 { // kill the next plyd too, during its start-up or later
						v.start()
						v.crashed.Store(true)
						v.kill()
					}
				})
				if t.Failed() {
					break
				}
			}
			v.verify(ws, true)
			v.tally(ws, rounds)
			v.end()
		})
	}
}

// end removes everything and checks that nothing is left.
func (v *victim) end() {
	t := v.t
	if ids, err := v.ply(context.Background(), "ps", "-aq"); err != nil {
		t.Error(err)
	} else if f := strings.Fields(ids); len(f) > 0 {
		if _, err := v.ply(context.Background(), append([]string{"rm", "-f"}, f...)...); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.Logf("plyd:\n%s", v.log())
	}
	if err := v.plyd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = v.plyd.Wait() // its exit code is not the point here
	temporaries(t, v.data, "at the end")
	if n := mountCount(t, v.dir); n > 0 {
		t.Errorf("%d mounts are left", n)
	}
	if out, _ := exec.Command("pgrep", "-af", v.dir).Output(); len(out) > 0 {
		t.Errorf("processes are left:\n%s", out)
	}
	v.removeCgroups()
	if err := os.RemoveAll(v.dir); err != nil {
		t.Error(err)
	}
}

// removeCgroups removes the cgroups of containers that a crash has ended.
func (v *victim) removeCgroups() {
	for _, pattern := range []string{"*/*", "*", ""} {
		for _, hierarchy := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
			dirs, err := filepath.Glob(filepath.Join(hierarchy+v.cgroup(), pattern))
			if err != nil {
				v.t.Fatal(err)
			}
			for _, d := range dirs {
				_ = os.Remove(d) // files of cgroups cannot be removed, and go with their directory
			}
		}
	}
}
