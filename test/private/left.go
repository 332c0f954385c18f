package private

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endLimit is how long what is ending when the tests are over may take.
const endLimit = time.Minute

// state is what exists at the start of the tests and must be the same at their end, besides what is in scratch.
type state struct {
	mounts  map[string]int
	cgroups map[string]bool
	scratch []string // directories that were empty
}

// neededIn reports whether the tests use files below dir, by their working directory, their program, or an environment variable other
// than that with the value own.
func neededIn(dir, own string) (bool, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return false, err
	}
	paths := []string{cwd, os.Args[0]}
	for _, kv := range os.Environ() {
		if _, v, _ := strings.Cut(kv, "="); v != own {
			paths = append(paths, v)
		}
	}
	return slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, dir) }), nil
}

// take returns the state at the start. It mounts dir at /var/tmp and an empty file system at /dev/shm, unless files there are needed,
// such as the source tree.
func take(dir string) (*state, error) {
	s := &state{}
	if needed, err := neededIn("/var/tmp/", dir); err != nil {
		return nil, err
	} else if !needed {
		if err := errors.Join(os.Chmod(dir, 0o777|os.ModeSticky), unix.Mount(dir, "/var/tmp", "", unix.MS_BIND, "")); err != nil {
			return nil, fmt.Errorf("/var/tmp: %w", err)
		}
		s.scratch = append(s.scratch, "/var/tmp")
	}
	if needed, err := neededIn("/dev/shm/", ""); err != nil {
		return nil, err
	} else if !needed {
		if err := unix.Mount("shm", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return nil, fmt.Errorf("/dev/shm: %w", err)
		}
		s.scratch = append(s.scratch, "/dev/shm")
	}
	var err error
	if s.mounts, err = mounts(); err != nil {
		return nil, err
	}
	s.cgroups, err = deadCgroups()
	return s, err
}

// compare returns an error that names everything that the tests left. It waits for what is ending.
func (s *state) compare() error {
	for deadline := time.Now().Add(endLimit); ; time.Sleep(50 * time.Millisecond) {
		left, err := s.left()
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("the tests passed and left:\n" + strings.Join(left, "\n"))
		}
	}
}

func (s *state) left() (left []string, err error) {
	now, err := mounts()
	if err != nil {
		return nil, err
	}
	for m, n := range now {
		if n > s.mounts[m] {
			left = append(left, "mount "+m)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback == 0 {
			left = append(left, "link "+l.Name)
		}
	}
	for _, dir := range s.scratch {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			left = append(left, "file "+filepath.Join(dir, e.Name()))
		}
	}
	cgroups, err := deadCgroups()
	if err != nil {
		return nil, err
	}
	for c := range cgroups {
		if !s.cgroups[c] {
			left = append(left, "cgroup "+c)
		}
	}
	slices.Sort(left)
	return left, nil
}

// mounts returns the mount points of this namespace and how many mounts each has.
func mounts() (map[string]int, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	points := map[string]int{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			points[f[4]]++
		}
	}
	return points, nil
}

// deadCgroups returns the cgroups of containers that have no process. Containers of other tests that run at the same time can be
// among them, for as long as they are being made or removed.
func deadCgroups() (map[string]bool, error) {
	dead := map[string]bool{}
	for _, parent := range []string{"/sys/fs/cgroup/ply*", "/sys/fs/cgroup/*/ply*"} {
		dirs, err := filepath.Glob(parent + "/*/cgroup.procs")
		if err != nil {
			return nil, err
		}
		for _, file := range dirs {
			dir := filepath.Dir(file)
			if b, err := os.ReadFile(file); err == nil && len(b) == 0 && len(filepath.Base(dir)) == 64 {
				dead[dir] = true
			}
		}
	}
	return dead, nil
}

// descendants returns the command lines of the processes that this process has started or adopted, after some time in which they
// may end.
func descendants() (left []string) {
	for deadline := time.Now().Add(endLimit); ; time.Sleep(20 * time.Millisecond) {
		for { // those that have ended
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.EINTR && pid <= 0 {
				break
			}
		}
		left = nil
		for _, pid := range children() {
			b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			if err == nil {
				left = append(left, fmt.Sprint(pid, " ", strings.ReplaceAll(string(b), "\x00", " ")))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// children returns the processes whose parent this process is.
func children() (pids []int) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil // the pattern is good
	}
	self := strconv.Itoa(os.Getpid())
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		_, after, _ := strings.Cut(string(b), ") ") // the name, in parentheses, has no such text in what ply starts
		if f := strings.Fields(after); len(f) > 1 && f[1] == self {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
