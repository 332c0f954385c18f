package host

import (
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MemoryLimit returns how many bytes of memory this process may use: the RAM of the machine, or the smallest limit of the
// cgroups that the process is in.
func MemoryLimit() int64 {
	limit := int64(1 << 30) // when nothing is known
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		limit = int64(si.Totalram) * int64(si.Unit)
	}
	return memoryLimit(os.DirFS("/"), limit)
}

// memoryLimit returns the smallest limit of the process's cgroups that is below limit. A limit of a group also applies to the
// groups below it.
func memoryLimit(root fs.FS, limit int64) int64 {
	for line := range strings.Lines(word(root, "proc/self/cgroup")) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		dir, file := "sys/fs/cgroup", "memory.max" // v2
		switch {
		case controllers == "memory":
			dir, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		case controllers != "":
			continue
		}
		for group = path.Clean("/" + group); ; group = path.Dir(group) {
			n, err := strconv.ParseInt(word(root, path.Join(dir, group, file)), 10, 64)
			if err == nil && n > 0 {
				limit = min(limit, n)
			}
			if group == "/" {
				break
			}
		}
	}
	return limit
}
