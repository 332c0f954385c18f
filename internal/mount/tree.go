package mount

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Tree is a detached mount. Safe for concurrent use.
type Tree struct {
	mu sync.RWMutex
	fd int // -1 after Close
}

// Attach attaches the tree to target. A tree that is attached already is attached a second time.
func (t *Tree) Attach(target string) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.fd < 0 {
		return &os.PathError{Op: "attach mount", Path: target, Err: os.ErrClosed}
	}
	err := ignoringEINTR(func() error {
		return unix.MoveMount(t.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
	if err != nil {
		return &os.PathError{Op: "attach mount", Path: target, Err: err}
	}
	return nil
}

// AttachAt attaches the tree to the file or directory at, which may have been opened with O_PATH. No path is looked up.
func (t *Tree) AttachAt(at *os.File) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.fd < 0 {
		return &os.PathError{Op: "attach mount", Path: at.Name(), Err: os.ErrClosed}
	}
	err := ignoringEINTR(func() error {
		return unix.MoveMount(t.fd, "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
	if err != nil {
		return &os.PathError{Op: "attach mount", Path: at.Name(), Err: err}
	}
	return nil
}

// Open opens the root of the tree with O_PATH, to look up paths in it. The tree exists at least until the file is closed.
func (t *Tree) Open() (*os.File, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.fd < 0 {
		return nil, &os.PathError{Op: "open mount", Path: ".", Err: os.ErrClosed}
	}
	fd, err := unix.Openat(t.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open mount", Path: ".", Err: err}
	}
	return os.NewFile(uintptr(fd), "mount"), nil
}

// Close closes the descriptor. That unmounts a tree that is attached nowhere and part of no overlay. A second call does
// nothing.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.fd < 0 {
		return nil
	}
	fd := t.fd
	t.fd = -1
	return unix.Close(fd)
}

// context is a file system that is being configured.
type context struct {
	fd   int
	fs   string
	open []int // O_PATH descriptors for long paths; file systems look some of them up only when they are mounted
}

func open(fs string) (*context, error) {
	fd, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, &Error{FS: fs, Op: "fsopen", Err: err}
	}
	return &context{fd: fd, fs: fs}, nil
}

func (c *context) close() {
	unix.Close(c.fd)
	for _, fd := range c.open {
		unix.Close(fd)
	}
}

func (c *context) set(key, value string) error {
	return c.wrap("option "+key, unix.FsconfigSetString(c.fd, key, value))
}

// maxString is the longest value that fsconfig accepts as a string.
const maxString = 255

// path sets an option that is a path. A long path is replaced by that of a descriptor.
func (c *context) path(key, name string) error {
	if len(name) <= maxString {
		return c.set(key, name)
	}
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return c.wrap("option "+key, err)
	}
	c.open = append(c.open, fd)
	return c.set(key, "/proc/self/fd/"+strconv.Itoa(fd))
}

func (c *context) flag(key string) error {
	return c.wrap("option "+key, unix.FsconfigSetFlag(c.fd, key))
}

// mount creates the superblock and a detached mount of it.
func (c *context) mount(attrs int) (*Tree, error) {
	if err := ignoringEINTR(func() error { return unix.FsconfigCreate(c.fd) }); err != nil {
		return nil, c.wrap("mount", err)
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, c.wrap("fsmount", err)
	}
	return &Tree{fd: fd}, nil
}

func (c *context) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{FS: c.fs, Op: op, Log: c.log(), Err: err}
}

// log returns the messages that the kernel has for this context.
func (c *context) log() []string {
	var lines []string
	buf := make([]byte, 4096)
	for range 64 {
		n, err := unix.Read(c.fd, buf)
		if err != nil || n <= 0 {
			break
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
	return lines
}

// Error reports a mount that the kernel refused.
type Error struct {
	FS  string
	Op  string
	Log []string // the kernel's messages, such as "e overlay: …"
	Err error    // an errno, or os.ErrClosed for a layer that is closed
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %s: %v", e.FS, e.Op, e.Err)
	if len(e.Log) > 0 {
		s += " (" + strings.Join(e.Log, "; ") + ")"
	}
	return s
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
