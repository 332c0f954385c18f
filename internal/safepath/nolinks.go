package safepath

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// OpenNoLinks opens a path below root of which no component is a symbolic link. Flags are those of open(2); O_CLOEXEC is added. A
// link on the way is ELOOP, and a path that leaves root is EXDEV. The error is an *os.PathError.
func OpenNoLinks(root *os.File, name string, flags int) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if name == "" {
		name = "."
	}
	err := error(unix.EAGAIN)
	for range 64 {
		var fd int
		fd, err = unix.Openat2(int(root.Fd()), name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return nil, &os.PathError{Op: "open in root", Path: name, Err: err}
}
