package container

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// cgroupMoves makes the next move of a process to another cgroup fast.
//
// The kernel lets a move wait for an RCU grace period, about 10 ms, unless another move was made just before: the lock that a
// move takes is one of fork and exit too, and is only then in the mode in which it can be taken for writing. The shim moves the
// container's first process. So while the root and the network are made and the shim starts, a start makes moves that change nothing,
// of this process to the cgroup in which it is. The first one waits for the grace period, and the others keep the lock in that mode.
//
// The zero value works. Safe for concurrent use.
type cgroupMoves struct {
	mu    sync.Mutex
	self  []byte // of /proc/self/cgroup when procs was found
	procs string // the cgroup.procs of the cgroup of this process; "" = not found
}

// moveEvery is shorter than a grace period, after which the lock has its first mode again.
const moveEvery = 4 * time.Millisecond

// Bounds of how long a move is expected that is late for another reason. That of an exec is always reached, because the shim does not
// report the move.
const (
	expectLimit = 200 * time.Millisecond
	execLimit   = 40 * time.Millisecond
)

// expect makes moves until ctx ends. Errors have no effect but a slower start.
func (m *cgroupMoves) expect(ctx context.Context) {
	procs := m.find()
	if procs == "" {
		return
	}
	f, err := os.OpenFile(procs, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	t := time.NewTicker(moveEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		if _, err := f.WriteString(strconv.Itoa(os.Getpid())); err != nil {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// find returns the file of the cgroup of this process, which someone may have moved since the last call.
func (m *cgroupMoves) find() string {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !bytes.Equal(self, m.self) {
		m.self, m.procs = self, ownProcs(string(self), "/sys/fs/cgroup")
	}
	return m.procs
}

// ownProcs returns the first cgroup.procs below root that belongs to a cgroup of the list and contains this process. The list has the
// form of /proc/self/cgroup. In a namespace, or with other mounts than the usual ones, a path of the list can name another cgroup.
func ownProcs(list, root string) string {
	pid := strconv.Itoa(os.Getpid())
	for line := range strings.Lines(list) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		dirs := []string{strings.TrimPrefix(parts[1], "name=")}
		if parts[1] == "" {
			dirs = []string{".", "unified"}
		}
		for _, dir := range dirs {
			name := filepath.Join(root, dir, parts[2], "cgroup.procs")
			if data, err := os.ReadFile(name); err == nil && strings.Contains("\n"+string(data), "\n"+pid+"\n") {
				return name
			}
		}
	}
	return ""
}
