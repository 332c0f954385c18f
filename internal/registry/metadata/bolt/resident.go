package bolt

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// The kernel maps sixteen pages around each page of the database that is read, and leaves them mapped. So a process would soon count as large as
// its database, whatever memory it takes itself. The pages are unmapped when they are many; those that are read again are mapped from the page
// cache.
const (
	maxResident   = 28 << 20 // bytes of files that are mapped and in memory, those of the program too
	residentEvery = 64       // reads, or
	residentJobs  = 8        // writes, between two looks
	residentKeys  = 32       // that a scan visits count as a read
)

// resident bounds how much of a database is mapped and in memory.
type resident struct{ reads atomic.Uint64 }

// read is called by a transaction that has read.
func (r *resident) read(db *bbolt.DB, x *tx) {
	n := 1 + uint64(x.visited/residentKeys)
	if now := r.reads.Add(n); now/residentEvery != (now-n)/residentEvery {
		unmapMany(db, x.t)
	}
}

// unmapMany unmaps the pages of the database if they are many. The transaction holds the mapping.
func unmapMany(db *bbolt.DB, t *bbolt.Tx) {
	if residentFiles() < maxResident {
		return
	}
	fi, err := os.Stat(db.Path())
	if err != nil {
		return
	}
	// What the transaction says of the size is in the file, which may have been cut: behind the mapping begins other memory.
	size := min(t.Size(), fi.Size())
	// The mapping is shared and only read: its pages are in the page cache, and no byte is lost. A kernel that refuses leaves them mapped.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, db.Info().Data, uintptr(size), unix.MADV_DONTNEED)
}

// residentFiles returns how many bytes of files this process has mapped and in memory; 0 when that is not known.
func residentFiles() int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b)) // size, resident, shared, …
	if len(f) < 3 {
		return 0
	}
	n, _ := strconv.Atoi(f[2])
	return n * os.Getpagesize()
}
