package logfile

import (
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
	// Followers shares the work of those that follow the same log. nil = with no one.
	Followers *Followers
}

// Read calls visit for the records of a log in order, with those that are read together. The list and its lines are valid until visit returns, and are not to
// be changed. An error of visit ends Read and is returned. A log that was never written is empty. Damaged records are skipped. For the driver none Read
// returns errs.Unimplemented with docker's words.
func Read(ctx context.Context, opts shim.Log, o ReadOptions, visit func([]Message) error) error {
	return readWith(ctx, opts, o, formatOf(opts.Driver, nil), visit)
}

func readWith(ctx context.Context, opts shim.Log, o ReadOptions, format format, visit func([]Message) error) error {
	if opts.Driver == None || opts.Path == "" {
		return errs.New(errs.Unimplemented, "configured logging driver does not support reading")
	}
	r := &reader{opts: opts, o: o, fmt: format, visit: visit}
	var changed <-chan struct{}
	if o.Follow {
		if r.o.Followers == nil {
			r.o.Followers = &Followers{}
		}
		var stop func()
		var err error
		if changed, stop, err = r.o.Followers.watch(opts.Path); err != nil {
			return err
		}
		defer stop()
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
	visit func([]Message) error

	f       *os.File  // the newest file; nil when there was none
	window  *window   // of f, when the log is followed
	size    int64     // of f when it was opened; it bounds a read that does not follow
	off     int64     // offset in f of the first record that was not visited
	seen    int64     // how far f was read, with the part of a record that is not whole yet
	last    time.Time // of the last record
	skipTo  time.Time // records up to this time were visited before
	started bool      // Tail was applied
	block   *block    // its memory is used again
	wanted  []Message // reused by deliver
}

func (r *reader) close() {
	r.leave()
	if r.f != nil {
		_ = r.f.Close() // only read from
	}
}

// leave ends the use of the window.
func (r *reader) leave() {
	if r.window != nil {
		r.o.Followers.leave(r, r.window)
		r.window = nil
	}
}

// use goes on with a file, from an offset. The old one is closed.
func (r *reader) use(f *os.File, off int64) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	r.leave()
	if r.f != nil {
		_ = r.f.Close() // only read from
	}
	r.f, r.size, r.off, r.seen = f, st.Size(), off, off
	if r.o.Follow {
		r.window = r.o.Followers.join(r, st, off)
	}
	return nil
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
		if err := r.use(f.File, f.start); err != nil {
			return err
		}
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
			if err := eachZipped(*f, r.fmt, func(list []Message) error { n += len(list); return nil }); err != nil {
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
	return eachZipped(f, r.fmt, func(list []Message) error {
		if skip >= len(list) {
			skip -= len(list)
			return nil
		}
		list, skip = list[skip:], 0
		return r.deliver(ctx, list)
	})
}

// eachZipped calls visit for the records of a compressed file.
func eachZipped(f file, format format, visit func([]Message) error) error {
	zr, err := gzip.NewReader(f.File)
	if err != nil {
		return nil // the records of a damaged file are lost, those of the other files are not
	}
	var buf []byte
	var list []Message
	block := make([]byte, 64<<10)
	for {
		n, rerr := zr.Read(block)
		buf = append(buf, block[:n]...)
		var rest []byte
		list, rest = decode(list[:0], buf, format)
		if len(list) > 0 {
			if err := visit(list); err != nil {
				return err
			}
		}
		buf = append(buf[:0], rest...)
		if rerr != nil {
			return nil // the end of the file, or damage as above
		}
	}
}

// drain visits the records of r.f up to its end. A read that does not follow ends where the file ended when it was opened, or it would never end behind a
// writer that is faster.
func (r *reader) drain(ctx context.Context) error {
	for {
		b, err := r.next()
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		r.seen = max(r.seen, b.seen)
		if b.to == b.from {
			return nil
		}
		r.off = b.to
		if len(b.list) == 0 {
			continue // damaged records
		}
		if err := r.deliver(ctx, b.list); err != nil {
			return err
		}
	}
}

// next returns the records that follow r.off.
func (r *reader) next() (b *block, err error) {
	if r.window != nil {
		return r.window.next(r, r.f, r.off)
	}
	r.block, err = readBlock(r.block, r.f, r.fmt, r.off, r.size)
	return r.block, err
}

// deliver calls visit with the records that the options do not exclude.
func (r *reader) deliver(ctx context.Context, list []Message) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if r.skipTo.IsZero() && r.o.Since.IsZero() && r.o.Until.IsZero() && r.o.Stdout && r.o.Stderr {
		r.last = list[len(list)-1].Time
		return r.visit(list)
	}
	wanted := r.wanted[:0]
	done := false
	for i := range list {
		m := &list[i]
		if !r.skipTo.IsZero() && !m.Time.After(r.skipTo) {
			continue
		}
		r.last = m.Time
		if done = !r.o.Until.IsZero() && m.Time.After(r.o.Until); done {
			break
		}
		if m.Time.Before(r.o.Since) || m.Stream == shim.Stdout && !r.o.Stdout || m.Stream == shim.Stderr && !r.o.Stderr {
			continue
		}
		wanted = append(wanted, *m)
	}
	r.wanted = wanted
	if len(wanted) > 0 {
		if err := r.visit(wanted); err != nil {
			return err
		}
	}
	if done {
		return errDone
	}
	return nil
}
