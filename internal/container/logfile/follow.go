package logfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pollEvery is how often a log is checked when inotify is not available.
const pollEvery = 200 * time.Millisecond

// restEvery is the least time between two reports of a watcher. What is written meanwhile is read at once: the followers of a fast writer would else wake for
// each of its writes.
const restEvery = 5 * time.Millisecond

// watcher reports that something happened in the directory of a log.
type watcher struct {
	stop func()
	done chan struct{} // closed when the goroutine has returned
}

// watch starts a watcher. It calls notify for everything that happens after watch has returned.
func watch(path string, notify func()) (*watcher, error) {
	w := &watcher{done: make(chan struct{})}
	stop := make(chan struct{})
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO)
		if err != nil {
			_ = unix.Close(fd) // nothing was written to it
		}
	}
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENOSPC) { // the limits of inotify are reached
		t := time.NewTicker(pollEvery)
		w.stop = func() { t.Stop(); close(stop) }
		go func() {
			defer close(w.done)
			for {
				select {
				case <-t.C:
					notify()
				case <-stop:
					return
				}
			}
		}()
		return w, nil
	}
	if err != nil {
		return nil, fmt.Errorf("log %s: watch: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	w.stop = func() { close(stop); _ = f.Close() } // ends the read below
	go func() {
		defer close(w.done)
		buf := make([]byte, 4096)
		rest := time.NewTimer(0)
		defer rest.Stop()
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			notify()
			rest.Reset(restEvery)
			select {
			case <-rest.C:
			case <-stop:
				return
			}
		}
	}()
	return w, nil
}

// close stops the watcher.
func (w *watcher) close() {
	w.stop()
	<-w.done
}

// follow visits the records that are added after existing has returned.
func (r *reader) follow(ctx context.Context, changed <-chan struct{}) error {
	var until <-chan time.Time
	if !r.o.Until.IsZero() {
		t := time.NewTimer(time.Until(r.o.Until))
		defer t.Stop()
		until = t.C
	}
	ended := r.o.Ended
	for {
		if err := r.more(ctx); err != nil {
			return err
		}
		if r.o.Idle != nil {
			if err := r.o.Idle(); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ended:
			return r.more(ctx) // records that were written before the end
		case <-until:
			return r.more(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// more visits the records that were added since the last call, also when the log was rotated.
func (r *reader) more(ctx context.Context) error {
	if r.f == nil {
		return r.existing(ctx)
	}
	for {
		st, err := r.f.Stat()
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		if st.Size() < r.seen { // a log of one file was rotated: the file was truncated
			r.off, r.seen = 0, 0
			r.window.reset()
		}
		// Look at the name before the last read. If it then names another file, nothing more is written to this one.
		now, err := os.Stat(r.opts.Path)
		if errors.Is(err, fs.ErrNotExist) { // a rotation is under way, or the log was removed
			if err := r.drain(ctx); err != nil || !r.o.Held.taken() {
				return err
			}
			return r.existing(ctx)
		}
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		if err := r.drain(ctx); err != nil {
			return err
		}
		if os.SameFile(st, now) {
			return nil
		}
		if err := r.advance(ctx, st); err != nil {
			return err
		}
	}
}

// advance opens the file that follows the old one, which a rotation has renamed.
func (r *reader) advance(ctx context.Context, old fs.FileInfo) error {
	for i := 1; i <= r.opts.MaxFiles; i++ {
		st, err := os.Stat(r.opts.Path + "." + strconv.Itoa(i))
		if err != nil || !os.SameFile(st, old) {
			continue
		}
		next := r.opts.Path
		if i > 1 {
			next += "." + strconv.Itoa(i-1)
		}
		f, err := os.OpenFile(next, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			break // it was rotated meanwhile
		}
		// If the log was rotated between Stat and OpenFile, f is the old file again, or a file was skipped.
		if st, err := os.Stat(r.opts.Path + "." + strconv.Itoa(i)); err != nil || !os.SameFile(st, old) {
			_ = f.Close() // only read from
			break
		}
		return r.use(f, 0)
	}
	return r.existing(ctx) // the old file was compressed or removed, or the log is being removed
}
