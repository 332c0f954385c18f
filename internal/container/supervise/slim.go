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

// slimAfter is how long after the container's creation slim is called. Usually the container was started by then, and the
// shim has nothing more to do.
const slimAfter = time.Second

// slim returns the memory that creating the container needed to the kernel, and makes the garbage collector prefer a small
// heap, because there is one shim per container.
func slim() {
	debug.SetGCPercent(20)
	debug.SetMemoryLimit(16 << 20)
	debug.FreeOSMemory()
	shedCode()
}

// shedCode unmaps the pages of the program's code and constants. Most of what creating a container needed is not used
// again, and the kernel maps the pages that are from the page cache. A mapping that was written to (by relocation) is
// left as it is.
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
			// After an error the pages stay mapped.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
		}
	}
}
