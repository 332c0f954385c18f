package logfile

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

// Held keeps the files of a log open for one reader while the log is removed: a reader that is slow has perhaps not opened
// all of them. The zero Held holds none. Safe for concurrent use.
type Held struct {
	mu     sync.Mutex
	took   bool
	closed bool
	all    []file
}

// Take opens the files, which nothing writes to or rotates any more. It is called before they are removed. After Close it
// does nothing.
func (h *Held) Take(opts shim.Log) error {
	if opts.Path == "" {
		return nil // there are no files
	}
	r := &reader{opts: opts}
	files, err := openStable(r.list)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || h.took || h.closed { // the reader has left
		closeFiles(files)
		return err
	}
	h.all, h.took = files, true
	return nil
}

// Close closes the files.
func (h *Held) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	closeFiles(h.all)
	h.all, h.took, h.closed = nil, false, true
}

// taken reports whether the log is being removed. It is false for a nil Held.
func (h *Held) taken() bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.took
}

// files opens the files again, oldest first. It returns nil when Take was not called, or h is nil.
func (h *Held) files() ([]file, error) {
	if h == nil {
		return nil, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.took {
		return nil, nil
	}
	again := []file{}
	for _, f := range h.all {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil && f.zipped {
			_, err = unix.Seek(fd, 0, unix.SEEK_SET) // only compressed files are read by the descriptor's offset
		}
		if err != nil {
			closeFiles(again)
			return nil, &os.PathError{Op: "dup", Path: f.Name(), Err: err}
		}
		again = append(again, file{File: os.NewFile(uintptr(fd), f.Name()), zipped: f.zipped})
	}
	return again, nil
}
