package container

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
)

// cgroupRoot is where the cgroup hierarchies of the host are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupEnd is how long the processes of a cgroup may take to end after SIGKILL.
const cgroupEnd = 10 * time.Second

// cgroupDirs returns the directories that a cgroup has below root: one on cgroup v2, one per hierarchy on v1.
func cgroupDirs(root, name string) []string {
	parents := []string{root}
	if _, err := os.Lstat(filepath.Join(root, "cgroup.procs")); err != nil { // v1: root is a directory of hierarchies
		entries, err := os.ReadDir(root)
		if err != nil {
			return nil
		}
		parents = nil
		for _, e := range entries {
			if e.IsDir() { // the others are links to them
				parents = append(parents, filepath.Join(root, e.Name()))
			}
		}
	}
	var dirs []string
	for _, p := range parents {
		if _, err := os.Lstat(filepath.Join(p, name)); err == nil {
			dirs = append(dirs, filepath.Join(p, name))
		}
	}
	return dirs
}

// endCgroup kills the processes of a cgroup and of those below it, and removes them all.
func endCgroup(root, name string) error {
	dirs := cgroupDirs(root, name)
	for deadline := time.Now().Add(cgroupEnd); ; time.Sleep(5 * time.Millisecond) {
		var all error
		for _, dir := range dirs { // in every hierarchy first: a process that the freezer stops does not end
			all = errors.Join(all, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					killCgroup(path)
				}
				return ignoreAbsent(err)
			}))
		}
		for _, dir := range dirs {
			all = errors.Join(all, removeCgroups(dir))
		}
		if all == nil || time.Now().After(deadline) {
			return all
		}
	}
}

// removeCgroups removes a cgroup and those below it. It fails while one has processes.
func removeCgroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreAbsent(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil {
		return ignoreAbsent(&os.PathError{Op: "remove", Path: dir, Err: err})
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// killCgroup kills the processes that are directly in a cgroup.
func killCgroup(dir string) {
	f, err := os.Open(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	defer f.Close() // only read from
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if pid, err := strconv.Atoi(sc.Text()); err == nil && pid > 0 { // 0 is a process of another pid namespace
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
	}
	if state, err := os.OpenFile(filepath.Join(dir, "freezer.state"), os.O_WRONLY, 0); err == nil { // of v1
		_, _ = state.WriteString("THAWED") // then the cgroup stays busy, which is reported
		_ = state.Close()
	}
}

// cgroupOf returns the name of a container's cgroup.
func cgroupOf(c *ctr) string {
	c.mu.Lock()
	parent := c.rec.Spec.CgroupParent
	c.mu.Unlock()
	if parent == "" {
		parent = c.env.opts.CgroupParent
	}
	return runspec.CgroupPath(parent, string(c.id))
}
