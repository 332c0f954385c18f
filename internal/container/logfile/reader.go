package logfile

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/errs"
)

// ReadOptions of Read.
type ReadOptions struct {
	Stdout, Stderr bool
	Tail           int       // newest N records before Since and Until are looked at; negative = all
	Since, Until   time.Time // zero = open
	Follow         bool      // go on until Ended is closed, Until has passed, or the context ends
	Ended          <-chan struct{}
}

// Read visits the records of a log in order; visit's error ends it. A log that was never written is empty. Records
// that cannot be read are passed over. Driver none is errs.Unimplemented, with docker's words.
func Read(ctx context.Context, opts shim.Log, o ReadOptions, visit func(Message) error) error {
	if opts.Driver == None {
		return errs.New(errs.Unimplemented, "configured logging driver does not support reading")
	}
	r := &reader{opts: opts, o: o, fmt: formatOf(opts.Driver), visit: visit}
	var changed <-chan struct{}
	if o.Follow {
		w, err := watch(opts.Path)
		if err != nil {
			return err
		}
		defer w.close()
		changed = w.changed
	}
	defer r.close()
	err := r.existing(ctx)
	if err == nil && o.Follow {
		err = r.follow(ctx, changed)
	}
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

// errDone ends a reading early and well.
var errDone = errors.New("done")

type reader struct {
	opts  shim.Log
	o     ReadOptions
	fmt   format
	visit func(Message) error

	f       *os.File // the newest file
	off     int64    // of buf's first byte in f
	buf     []byte   // read and not yet a whole record
	last    time.Time
	skipTo  time.Time // records up to here were seen already
	started bool
}

func (r *reader) close() {
	if r.f != nil {
		_ = r.f.Close() // only read from
	}
}

// file is one of the files of a log.
type file struct {
	*os.File
	zipped bool
	start  int64 // where to begin
	skip   int   // zipped: records to pass over
}

// open lists a log's files, oldest first. A rotation meanwhile may show one twice; that one is dropped.
func (r *reader) open() (files []file, err error) {
	seen := map[[2]uint64]bool{}
	add := func(name string, zipped bool) (bool, error) {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("log: %w", err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || seen[[2]uint64{st.Dev, st.Ino}] {
			return true, f.Close()
		}
		seen[[2]uint64{st.Dev, st.Ino}] = true
		files = append(files, file{File: f, zipped: zipped})
		return true, nil
	}
	if _, err = add(r.opts.Path, false); err == nil {
		for i := 1; i < maxRotated && err == nil; i++ {
			name := r.opts.Path + "." + strconv.Itoa(i)
			var plain, zipped bool
			if plain, err = add(name, false); err == nil && !plain {
				zipped, err = add(name+".gz", true)
			}
			if !plain && !zipped && i > r.opts.MaxFiles {
				break
			}
		}
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close() // only read from
		}
		return nil, err
	}
	for i, j := 0, len(files)-1; i < j; i, j = i+1, j-1 {
		files[i], files[j] = files[j], files[i]
	}
	return files, nil
}

// existing reads what is there now and leaves the newest file open in r.f.
func (r *reader) existing(ctx context.Context) error {
	files, err := r.open()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			if f.File != r.f {
				_ = f.Close() // only read from
			}
		}
	}()
	first := 0
	if !r.started && r.o.Tail >= 0 {
		if first, err = r.tail(files); err != nil {
			return err
		}
	}
	r.started = true
	for i := first; i < len(files); i++ {
		f := files[i]
		if f.zipped {
			if err := r.zipped(ctx, f); err != nil {
				return err
			}
			continue
		}
		if r.f != nil {
			_ = r.f.Close() // only read from
		}
		r.f, r.off, r.buf = f.File, f.start, r.buf[:0]
		if err := r.drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tail finds where the newest records begin: the first file to read, with its start set.
func (r *reader) tail(files []file) (first int, err error) {
	need := r.o.Tail
	for i := len(files) - 1; i >= 0; i-- {
		f := &files[i]
		if need == 0 {
			if i == len(files)-1 { // nothing but what comes later
				st, err := f.Stat()
				if err != nil {
					return 0, err
				}
				f.start = st.Size()
				return i, nil
			}
			return i + 1, nil
		}
		if f.zipped {
			n := 0
			if err := eachZipped(*f, r.fmt, func(Message) error { n++; return nil }); err != nil {
				return 0, err
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return 0, err
			}
			f.skip = max(0, n-need)
			need -= min(n, need)
			continue
		}
		start, n, err := tailStart(f.File, r.fmt, need)
		if err != nil {
			return 0, err
		}
		f.start = start
		need -= n
	}
	return 0, nil
}

// tailStart looks from the end of a file for the beginning of its last n records, in growing blocks.
func tailStart(f *os.File, format format, n int) (start int64, records int, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	end := st.Size()
	var buf []byte
	for block := int64(64 << 10); ; block *= 2 {
		from := max(0, end-block)
		buf = make([]byte, end-from)
		if _, err := f.ReadAt(buf, from); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		if from == 0 {
			break
		}
		if size, got := format.back(buf, n); got == n {
			return end - int64(size), got, nil
		}
		if block > 64<<20 {
			// Records as docker writes them are small; this is n of them in 64 MiB. Begin at one.
			size, got := format.back(buf, n)
			return end - int64(size), got, nil
		}
	}
	// The whole file: count from its start, so that the first record counts too.
	var starts []int64
	for off := 0; ; {
		_, k, ok := format.next(buf[off:])
		if k == 0 {
			break
		}
		if ok {
			starts = append(starts, int64(off))
		}
		off += k
	}
	if len(starts) <= n {
		return 0, len(starts), nil
	}
	return starts[len(starts)-n], n, nil
}

func (r *reader) zipped(ctx context.Context, f file) error {
	skip := f.skip
	return eachZipped(f, r.fmt, func(m Message) error {
		if skip > 0 {
			skip--
			return nil
		}
		return r.give(ctx, m)
	})
}

func eachZipped(f file, format format, visit func(Message) error) error {
	zr, err := gzip.NewReader(f.File)
	if err != nil {
		return nil // a damaged old file hides its own records only
	}
	var buf []byte
	block := make([]byte, 64<<10)
	for {
		n, rerr := zr.Read(block)
		buf = append(buf, block[:n]...)
		rest, err := each(buf, format, visit)
		if err != nil {
			return err
		}
		buf = append(buf[:0], rest...)
		if rerr != nil {
			return nil // the end, or damage: as above
		}
	}
}

// each visits the whole records of buf and gives the rest.
func each(buf []byte, format format, visit func(Message) error) (rest []byte, err error) {
	for {
		m, n, ok := format.next(buf)
		if n == 0 {
			return buf, nil
		}
		if ok {
			if err := visit(m); err != nil {
				return nil, err
			}
		}
		buf = buf[n:]
	}
}

// drain reads r.f to its end.
func (r *reader) drain(ctx context.Context) error {
	block := make([]byte, 64<<10)
	for {
		n, err := r.f.ReadAt(block, r.off+int64(len(r.buf)))
		if n == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("log: %w", err)
			}
			return nil
		}
		r.buf = append(r.buf, block[:n]...)
		rest, err := each(r.buf, r.fmt, func(m Message) error { return r.give(ctx, m) })
		if err != nil {
			return err
		}
		r.off += int64(len(r.buf) - len(rest))
		r.buf = bytes.Clone(rest)
	}
}

func (r *reader) give(ctx context.Context, m Message) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !r.skipTo.IsZero() && !m.Time.After(r.skipTo) {
		return nil
	}
	r.last = m.Time
	if !r.o.Until.IsZero() && m.Time.After(r.o.Until) {
		return errDone
	}
	if m.Time.Before(r.o.Since) || m.Stream == shim.Stdout && !r.o.Stdout || m.Stream == shim.Stderr && !r.o.Stderr {
		return nil
	}
	return r.visit(m)
}
