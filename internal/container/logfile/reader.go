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

// ReadOptions are the options of Read.
type ReadOptions struct {
	Stdout, Stderr bool
	Tail           int       // start with the last N records, counted before Since and Until apply; negative means all
	Since, Until   time.Time // zero means no limit
	Follow         bool      // wait for further records until Ended is closed, Until has passed or the context ends
	Ended          <-chan struct{}
	// Idle is called when every record that is there was visited, before Follow waits for the next. An error ends Read and is returned. nil = not called.
	Idle func() error
	Held *Held // nil = the log is not removed while it is read
}

// Read calls visit for the records of a log in order. An error of visit ends Read and is returned. A log that was never
// written is empty. Damaged records are skipped. For the driver none Read returns errs.Unimplemented with docker's words.
func Read(ctx context.Context, opts shim.Log, o ReadOptions, visit func(Message) error) error {
	return readWith(ctx, opts, o, formatOf(opts.Driver, nil), visit)
}

func readWith(ctx context.Context, opts shim.Log, o ReadOptions, format format, visit func(Message) error) error {
	if opts.Driver == None || opts.Path == "" {
		return errs.New(errs.Unimplemented, "configured logging driver does not support reading")
	}
	r := &reader{opts: opts, o: o, fmt: format, visit: visit}
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

// errDone ends a read early and without an error.
var errDone = errors.New("done")

// reader is the state of one Read.
type reader struct {
	opts  shim.Log
	o     ReadOptions
	fmt   format
	visit func(Message) error

	f       *os.File  // the newest file; nil when there was none
	size    int64     // of f when it was opened; it bounds a read that does not follow
	off     int64     // offset in f of the first byte of buf
	buf     []byte    // bytes of a record that is not whole yet
	last    time.Time // of the last record
	skipTo  time.Time // records up to this time were visited before
	started bool      // Tail was applied
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
	start  int64 // offset of the first record to visit, in a plain file
	skip   int   // number of records to skip, in a compressed file
}

// maxListings bounds how often open lists the files of a log that is rotated all the time.
const maxListings = 50

// open opens the files of a log, oldest first.
func (r *reader) open() ([]file, error) {
	files, err := openStable(r.list)
	if err != nil {
		return nil, err
	}
	// Held files are asked for after the listing: if there are none then, no file was removed before it.
	held, err := r.o.Held.files()
	if held == nil && err == nil {
		return files, nil
	}
	closeFiles(files)
	return held, err
}

// openStable calls list until no file was renamed during the listing.
func openStable(list func() ([]file, error)) ([]file, error) {
	for try := 1; ; try++ {
		files, err := list()
		if err != nil || try == maxListings || isStable(files) {
			return files, err
		}
		closeFiles(files)
	}
}

// isStable reports whether all files still have their names. If not, the log was rotated while it was listed, and the
// content of one file may also be in another one, which is its compressed copy under the next name.
func isStable(files []file) bool {
	for _, f := range files {
		now, err := os.Lstat(f.Name())
		if err != nil {
			return false
		}
		if st, err := f.Stat(); err != nil || !os.SameFile(st, now) {
			return false
		}
	}
	return true
}

func closeFiles(files []file) {
	for _, f := range files {
		_ = f.Close() // only read from
	}
}

// list opens the files of a log, oldest first. A file that a rotation made appear under two names is opened once.
func (r *reader) list() (files []file, err error) {
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
		closeFiles(files)
		return nil, err
	}
	for i, j := 0, len(files)-1; i < j; i, j = i+1, j-1 {
		files[i], files[j] = files[j], files[i]
	}
	return files, nil
}

// existing visits the records that exist now and leaves the newest file open in r.f.
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
	if r.f != nil { // go on behind the file that was read last, or read all again where that is gone
		if first = r.after(files); first == 0 {
			r.skipTo = r.last
			defer func() { r.skipTo = time.Time{} }()
		}
	} else if !r.started && r.o.Tail >= 0 {
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
		st, err := f.Stat()
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		r.f, r.size, r.off, r.buf = f.File, st.Size(), f.start, r.buf[:0]
		if err := r.drain(ctx); err != nil {
			return err
		}
	}
	return nil
}

// after returns the number of the file behind r.f, 0 when r.f is not among the files.
func (r *reader) after(files []file) int {
	was, err := r.f.Stat()
	if err != nil {
		return 0
	}
	for i, f := range files {
		if st, err := f.Stat(); err == nil && os.SameFile(was, st) {
			return i + 1
		}
	}
	return 0
}

// tail finds the last Tail records. It returns the first file to read and sets that file's start or skip.
func (r *reader) tail(files []file) (first int, err error) {
	need := r.o.Tail
	for i := len(files) - 1; i >= 0; i-- {
		f := &files[i]
		if need == 0 {
			if i == len(files)-1 { // only records that are added later
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

// tailStart finds the offset of the last n records of a file. It reads from the end, in growing blocks.
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
			// The block does not hold n records, and reading more would take too much memory. Begin with the first that it holds.
			size, got := format.back(buf, n)
			return end - int64(size), got, nil
		}
	}
	// The block is the whole file. Count from its start, because back does not find the first record.
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

// zipped visits the records of a compressed file.
func (r *reader) zipped(ctx context.Context, f file) error {
	skip := f.skip
	return eachZipped(f, r.fmt, func(m Message) error {
		if skip > 0 {
			skip--
			return nil
		}
		return r.deliver(ctx, m)
	})
}

// eachZipped calls visit for each record of a compressed file.
func eachZipped(f file, format format, visit func(Message) error) error {
	zr, err := gzip.NewReader(f.File)
	if err != nil {
		return nil // the records of a damaged file are lost, those of the other files are not
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
			return nil // the end of the file, or damage as above
		}
	}
}

// each calls visit for each whole record of buf and returns the rest of buf.
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

// drain visits the records of r.f up to its end. A read that does not follow ends where the file ended when it was opened, or it would never end behind a
// writer that is faster.
func (r *reader) drain(ctx context.Context) error {
	block := make([]byte, 64<<10)
	for {
		at := r.off + int64(len(r.buf))
		if !r.o.Follow {
			block = block[:max(0, min(int64(len(block)), r.size-at))]
		}
		n, err := r.f.ReadAt(block, at)
		if n == 0 {
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("log: %w", err)
			}
			return nil
		}
		r.buf = append(r.buf, block[:n]...)
		rest, err := each(r.buf, r.fmt, func(m Message) error { return r.deliver(ctx, m) })
		if err != nil {
			return err
		}
		r.off += int64(len(r.buf) - len(rest))
		r.buf = bytes.Clone(rest)
	}
}

// deliver calls visit unless the options exclude the record.
func (r *reader) deliver(ctx context.Context, m Message) error {
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
