package safepath

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Reopen opens the regular file behind node, a descriptor that was opened with O_PATH, with other flags of open(2). A file of
// another kind is ENXIO.
//
// Opening a device or a FIFO has effects beyond the file: it may start a watchdog, rewind a tape or release a process that waits for
// a reader, and a device that is open for writing is a disk of the host. A check of the kind before an open by name does not help,
// because the name may lead to another file by then. A descriptor does not.
func Reopen(node *os.File, flags int) (*os.File, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(node.Fd()), &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.ENXIO
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: node.Name(), Err: err}
	}
	fd, err := openRetry(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(node.Fd())), flags|unix.O_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: node.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), node.Name()), nil
}
