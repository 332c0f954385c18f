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

// pollEvery is how often a log is looked at where the kernel gives no notice.
const pollEvery = 200 * time.Millisecond

// watcher tells that something happened in a log's directory.
type watcher struct {
	changed chan struct{}
	stop    func()
	done    chan struct{}
}

// watch begins at once: what happens after it returns is noticed.
func watch(path string) (*watcher, error) {
	w := &watcher{changed: make(chan struct{}, 1), done: make(chan struct{})}
	notify := func() {
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO)
		if err != nil {
			_ = unix.Close(fd) // nothing is lost with it
		}
	}
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENOSPC) { // the limits on inotify are low: look ourselves
		t := time.NewTicker(pollEvery)
		stop := make(chan struct{})
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
	w.stop = func() { _ = f.Close() } // wakes the reader
	go func() {
		defer close(w.done)
		buf := make([]byte, 4096)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
			notify()
		}
	}()
	return w, nil
}

func (w *watcher) close() {
	w.stop()
	<-w.done
}

// follow goes on after existing.
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
		select {
		case <-changed:
		case <-ended:
			return r.more(ctx) // what was written before the end
		case <-until:
			return r.more(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// more reads what was added, across rotations.
func (r *reader) more(ctx context.Context) error {
	if r.f == nil {
		return r.existing(ctx)
	}
	for {
		st, err := r.f.Stat()
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		if st.Size() < r.off+int64(len(r.buf)) { // cut to nothing: a log of one file was rotated
			r.off, r.buf = 0, r.buf[:0]
		}
		// The name is looked at before the last read: whatever the old file will ever hold is then read.
		now, err := os.Stat(r.opts.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return r.drain(ctx) // between two steps of a rotation, or removed
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

// advance goes to the file after the one that was read, which has another name now.
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
			break // it moved on meanwhile
		}
		// Rotated between the two looks: then this is the old one again, or a later one was skipped.
		if st, err := os.Stat(r.opts.Path + "." + strconv.Itoa(i)); err != nil || !os.SameFile(st, old) {
			_ = f.Close() // only read from
			break
		}
		_ = r.f.Close() // only read from
		r.f, r.off, r.buf = f, 0, r.buf[:0]
		return nil
	}
	// Compressed or gone: read everything that is there and pass over what was seen.
	_ = r.f.Close() // only read from
	r.f, r.off, r.buf = nil, 0, r.buf[:0]
	r.skipTo = r.last
	err := r.existing(ctx)
	r.skipTo = time.Time{}
	return err
}
