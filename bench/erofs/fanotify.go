package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/store/layer/erofs"
)

// fanotify measures a read that waits for a process to allow it: what lazy pull would cost for a range that is already there.
func (b *bench) fanotify() error {
	return b.withDriver(erofs.Options{IdleMounts: -1}, func(d *erofs.Driver, root string) error {
		chain, err := put(d, nil, 11, []file{{"big", b.size}})
		if err != nil {
			return err
		}
		tar := filepath.Join(root, "layers/sha256", chain[0].Hex(), "layer.tar")
		var rows [][]string
		for _, marked := range []bool{false, true} {
			var times []time.Duration
			var events int64
			for range 5 {
				w := &watcher{fd: -1}
				if marked {
					if w, err = watch(tar); err != nil {
						return err
					}
				}
				took, err := b.readApart(d, root, chain[0].Hex(), tar)
				events = w.events.Load()
				if err = errors.Join(err, w.stop()); err != nil {
					return err
				}
				times = append(times, took)
			}
			name := map[bool]string{false: "unmarked", true: "FAN_PRE_ACCESS, allowed at once"}[marked]
			rows = append(rows, []string{name, show(median(times) / pieces), fmt.Sprint(events)})
		}
		table(fmt.Sprintf("Cold random reads of 4 KiB from another process (%d)", pieces), []string{"layer.tar", "each", "events"}, rows)
		return nil
	})
}

// readApart reads random pieces of the cold layer in another process, because the process that allows a read must not wait for
// itself.
func (b *bench) readApart(d *erofs.Driver, root, hex, tar string) (time.Duration, error) {
	if err := dropFile(tar); err != nil {
		return 0, err
	}
	target, err := b.sub("at")
	if err != nil {
		return 0, err
	}
	ctx := context.Background()
	if err := d.View(ctx, chainOf(hex), target); err != nil {
		return 0, err
	}
	var out []byte
	var cmd *exec.Cmd
	cmd, err = self(ctx, "-reader", filepath.Join(target, "big"))
	if err == nil {
		out, err = cmd.Output()
	}
	if err = errors.Join(err, d.Unmount(ctx, target)); err != nil {
		return 0, err
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return time.Duration(ns), err
}

// readPieces runs in that other process.
func readPieces(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, 4096)
	start := time.Now()
	for range pieces {
		if _, err := f.ReadAt(buf, r.Int64N(st.Size()/4096-1)*4096); err != nil {
			return err
		}
	}
	fmt.Println(time.Since(start).Nanoseconds())
	return nil
}

// watcher allows every access to a file.
type watcher struct {
	fd     int
	events atomic.Int64
	done   chan error
}

func watch(name string) (*watcher, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w", err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_PRE_ACCESS, unix.AT_FDCWD, name); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("fanotify_mark: %w", err)
	}
	w := &watcher{fd: fd, done: make(chan error, 1)}
	f := os.NewFile(uintptr(fd), "fanotify")
	go func() { w.done <- w.serve(f) }()
	w.fd = int(f.Fd())
	return w, nil
}

func (w *watcher) serve(f *os.File) error {
	fd := w.fd
	buf := make([]byte, 16<<10)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, 1000); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			if w.events.Load() < 0 {
				return f.Close()
			}
			continue
		case err != nil:
			return err
		}
		const head = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))
		for b := buf[:n]; len(b) >= head; {
			size := int(binary.NativeEndian.Uint32(b))
			event := int32(binary.NativeEndian.Uint32(b[16:]))
			var answer [8]byte
			binary.NativeEndian.PutUint32(answer[:], uint32(event))
			binary.NativeEndian.PutUint32(answer[4:], unix.FAN_ALLOW)
			if _, err := unix.Write(fd, answer[:]); err != nil {
				return err
			}
			unix.Close(int(event))
			w.events.Add(1)
			if size < head || size > len(b) {
				return fmt.Errorf("fanotify event of %d bytes", size)
			}
			b = b[size:]
		}
	}
}

// stop closes the group; from then on the kernel asks no one.
func (w *watcher) stop() error {
	if w.fd < 0 {
		return nil
	}
	w.events.Store(-1 << 40)
	return <-w.done
}
