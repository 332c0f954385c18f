package supervise

import (
	"bufio"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// slimAfter is when a shim whose container was created is at rest, most likely.
const slimAfter = time.Second

// slim gives back the memory that creating a container took. From here on memory counts more than time: there is a
// shim for every container.
func slim() {
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(16 << 20)
	debug.FreeOSMemory()
	shedCode()
}

// shedCode unmaps the pages of our own code and constants: most of what creating needed is never used again, and the
// kernel maps what is from the page cache. A part that was ever written to (relocated) is left alone.
func shedCode() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close() // only read from
	var from, to uintptr
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		var a, b uintptr
		var perm string
		if n, err := fmt.Sscanf(line, "%x-%x %s", &a, &b, &perm); n == 3 && err == nil {
			from, to = a, b
			if !strings.HasSuffix(line, exe) || perm != "r-xp" && perm != "r--p" {
				to = 0
			}
			continue
		}
		var written int
		if n, _ := fmt.Sscanf(line, "Anonymous: %d kB", &written); n == 1 && written == 0 && to != 0 {
			// An error leaves the pages where they are.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
