package container

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// endCgroup ends the processes of a cgroup, of those below it and of a frozen one, and removes it from every hierarchy.
func TestEndCgroup(t *testing.T) {
	name := "/ply-test-end-" + strconv.Itoa(os.Getpid())
	if len(cgroupDirs(cgroupRoot, "/")) == 0 {
		t.Skip("no cgroups here")
	}
	var dirs []string
	for _, top := range cgroupDirs(cgroupRoot, "/") {
		dirs = append(dirs, filepath.Join(top, name))
	}
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	var programs []*exec.Cmd
	for _, sub := range []string{"", "inner", "inner/deep"} {
		c := exec.Command("sleep", "1000")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		programs = append(programs, c)
		t.Cleanup(func() { _ = c.Process.Kill() })
		for _, dir := range dirs {
			dir = filepath.Join(dir, sub)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(dir, "cpuset.cpus")); err == nil {
				continue // it takes no process before it has processors
			}
			write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(c.Process.Pid))
		}
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "freezer.state")); err == nil {
			write(filepath.Join(dir, "freezer.state"), "FROZEN")
		}
	}
	done := make(chan struct{})
	go func() { // someone else must reap the killed processes
		for _, c := range programs {
			_ = c.Wait()
		}
		close(done)
	}()
	if err := endCgroup(cgroupRoot, name); err != nil {
		t.Error(err)
	}
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a process of the cgroup runs")
	}
	if left := cgroupDirs(cgroupRoot, name); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := endCgroup(cgroupRoot, name); err != nil {
		t.Errorf("a cgroup that does not exist: %v", err)
	}
}
