package logfile

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
	"ply/internal/durable"
	"ply/internal/errs"
)

// Writer appends records to a log. It is safe for concurrent use. A log must have only one Writer.
type Writer struct {
	opts    shim.Log
	fmt     format
	ring    *ring      // nil in the mode blocking
	forward *forwarder // nil = the records are not sent away
	records []byte     // for it; reused

	mu   sync.Mutex
	f    *os.File // nil = there are no files
	size int64
	last time.Time
	list []Message // reused by append
	buf  []byte
	lost int64 // number of records that could not be written
	err  error // of the last record that could not be written

	finishing sync.WaitGroup // at most one goroutine, which finishes a rotated file
}

// Create opens a log for appending and creates the file if it is missing; the directory must exist. It cuts off a part of a
// record that a crash left. The Writer of the driver none discards everything. An unknown driver is refused with
// errs.Invalid. For a driver that sends the output away, Create fails when the receiver cannot be reached.
func Create(opts shim.Log) (*Writer, error) {
	w := &Writer{opts: opts, fmt: formatOf(opts.Driver, opts.Attributes)}
	switch opts.Driver {
	case None:
		return w, nil
	case JSONFile, Local:
	default:
		if opts.Forward == nil || !IsRemote(opts.Driver) {
			return nil, errs.New(errs.Invalid, "log driver %q: unknown", opts.Driver)
		}
		f, err := startForwarder(opts)
		if err != nil {
			return nil, err
		}
		if w.forward = f; opts.Path == "" {
			return w, nil
		}
	}
	if err := w.open(0); err != nil {
		return nil, err
	}
	if err := w.cutTornEnd(); err != nil {
		return nil, errors.Join(fmt.Errorf("log %s: %w", opts.Path, err), w.f.Close())
	}
	if opts.Buffer > 0 {
		w.ring = newRing(opts.Buffer, w.write)
	}
	return w, nil
}

// open opens the file of the log.
func (w *Writer) open(flags int) error {
	f, err := os.OpenFile(w.opts.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|flags, 0o640)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("log %s: %w", w.opts.Path, err), f.Close())
	}
	w.f, w.size = f, st.Size()
	return nil
}

// cutTornEnd truncates the file to whole records.
func (w *Writer) cutTornEnd() error {
	if w.size == 0 {
		return nil
	}
	n := min(w.size, maxRecord+8)
	tail := make([]byte, n)
	if _, err := w.f.ReadAt(tail, w.size-n); err != nil {
		return err
	}
	keep := w.fmt.whole(tail, n == w.size)
	if keep < 0 {
		all := make([]byte, w.size)
		if _, err := w.f.ReadAt(all, 0); err != nil {
			return err
		}
		tail, keep = all, w.fmt.whole(all, true)
	}
	if cut := int64(len(tail) - keep); cut > 0 {
		w.size -= cut
		return w.f.Truncate(w.size)
	}
	return nil
}

// append writes one record per piece; a piece is a line or a part of one. Records that cannot be written are counted.
func (w *Writer) append(stream byte, pieces [][]byte) {
	if w.opts.Driver == None || len(pieces) == 0 {
		return
	}
	if w.ring != nil {
		w.ring.put(stream, pieces)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = w.list[:0]
	w.last = after(w.last)
	for i, p := range pieces {
		if i > 0 { // they were read together
			w.last = w.last.Add(1)
		}
		w.list = append(w.list, Message{Time: w.last, Stream: stream, Line: p})
	}
	w.writeLocked(w.list)
	clear(w.list) // the pieces belong to the caller
}

func (w *Writer) write(list []Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeLocked(list)
}

// writeLocked writes records. The caller holds mu.
func (w *Writer) writeLocked(list []Message) {
	w.buf, w.records = w.buf[:0], w.records[:0]
	waiting := 0 // number of records in buf
	for _, m := range list {
		if w.forward != nil {
			w.records = AppendRecord(w.records, m)
		}
		if w.opts.Path == "" {
			continue
		}
		before := len(w.buf)
		w.buf = w.fmt.encode(w.buf, m)
		if w.opts.MaxSize > 0 && w.size+int64(before) > 0 && w.size+int64(len(w.buf)) > w.opts.MaxSize {
			record := bytes.Clone(w.buf[before:])
			w.buf = w.buf[:before]
			w.flush(waiting)
			waiting = 0
			if err := w.rotate(); err != nil {
				w.fail(0, err) // the current file takes further records
			}
			w.buf = append(w.buf, record...)
		}
		waiting++
	}
	if w.f != nil {
		w.flush(waiting)
	}
	if cap(w.buf) > 256<<10 {
		w.buf = nil
	}
	if w.forward != nil {
		if err := w.forward.send(w.records); err != nil {
			w.fail(len(list), err)
		}
		if cap(w.records) > 256<<10 {
			w.records = nil
		}
	}
}

// End says that the container has ended. From then on, a receiver that does not take records stops nothing for longer than EndTime.
func (w *Writer) End() {
	if w.forward != nil {
		w.forward.end()
	}
}

// flush writes buf, which holds a number of records.
func (w *Writer) flush(records int) {
	n, err := w.f.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil {
		if n > 0 { // a part of a record would damage the next one
			err = errors.Join(err, w.f.Truncate(w.size))
		}
		w.fail(records, err)
		return
	}
	w.size += int64(n)
}

// fail counts records that could not be written.
func (w *Writer) fail(records int, err error) {
	w.lost += int64(records)
	w.err = err
}

// Lost returns how many records could not be written or were dropped, and the error of the last one.
func (w *Writer) Lost() (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ring != nil {
		if n := w.ring.dropped(); n > 0 {
			return w.lost + n, errors.Join(w.err, errFull)
		}
	}
	return w.lost, w.err
}

var errFull = errors.New("the buffer of the mode non-blocking was full")

// rotate renames path to path.1, path.1 to path.2 and so on, and removes the oldest file. With one file it truncates path.
func (w *Writer) rotate() error {
	w.finishing.Wait()
	if w.opts.MaxFiles < 2 {
		if err := w.f.Truncate(0); err != nil {
			return err
		}
		w.size = 0
		return nil
	}
	name := func(i int) string { return w.opts.Path + "." + strconv.Itoa(i) }
	for i := w.opts.MaxFiles - 1; i >= 1; i-- {
		for _, ext := range []string{"", ".gz"} {
			var err error
			if i == w.opts.MaxFiles-1 {
				err = os.Remove(name(i) + ext)
			} else {
				err = os.Rename(name(i)+ext, name(i+1)+ext)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := os.Rename(w.opts.Path, name(1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	old := w.f
	if err := w.open(0); err != nil {
		return err // old stays open and takes further records
	}
	w.finishing.Go(func() {
		err := errors.Join(old.Sync(), old.Close())
		if err == nil && w.opts.Compress {
			err = compress(name(1))
		}
		if err != nil {
			w.mu.Lock()
			w.err = err // the plain file stays, and readers read it
			w.mu.Unlock()
		}
	})
	return nil
}

// compress replaces name by name.gz, which is durable before name is removed.
func compress(name string) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close() // only read from
	tmp := name + ".gz.tmp"
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	zw := gzip.NewWriter(out)
	_, err = io.Copy(zw, in)
	if err = errors.Join(err, zw.Close()); err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = durable.Rename(durable.OS, tmp, name+".gz")
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Remove(name)
}

// Close closes the log. Unless it is volatile, its records are durable when Close returns without an error, except that the names
// of new files in the directory are not: the caller syncs it. The Streams must have been closed before.
func (w *Writer) Close() error {
	if w.ring != nil {
		w.ring.close()
	}
	if w.forward != nil {
		w.forward.close()
	}
	w.finishing.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	if w.size == 0 || w.opts.Volatile {
		return f.Close()
	}
	return errors.Join(f.Sync(), f.Close())
}

// Stream splits one output stream into records. It is not safe for concurrent use.
type Stream struct {
	w      *Writer
	stream byte
	rest   []byte   // the unfinished line
	pieces [][]byte // reused by Write
}

// Stream returns a Stream for shim.Stdout or shim.Stderr.
func (w *Writer) Stream(stream byte) *Stream { return &Stream{w: w, stream: stream} }

// Write stores the lines of p and keeps an unfinished one for the next call. It never fails; Lost counts the records that
// could not be written.
func (s *Stream) Write(p []byte) (int, error) {
	n := len(p)
	if s.w.opts.Driver == None {
		return n, nil
	}
	s.pieces = s.pieces[:0]
	if len(s.rest) > 0 {
		i := bytes.IndexByte(p, '\n') + 1
		if i == 0 {
			i = len(p)
		}
		i = min(i, maxPiece-len(s.rest))
		s.rest = append(s.rest, p[:i]...)
		p = p[i:]
		if s.rest[len(s.rest)-1] != '\n' && len(s.rest) < maxPiece {
			return n, nil
		}
		s.pieces = append(s.pieces, s.rest)
	}
	for len(p) > 0 {
		i := bytes.IndexByte(p[:min(len(p), maxPiece)], '\n') + 1
		if i == 0 {
			if len(p) < maxPiece {
				break
			}
			i = maxPiece
		}
		s.pieces = append(s.pieces, p[:i])
		p = p[i:]
	}
	s.w.append(s.stream, s.pieces)
	s.rest = append(s.rest[:0], p...)
	return n, nil
}

// Close stores the unfinished line.
func (s *Stream) Close() error {
	if len(s.rest) > 0 {
		s.w.append(s.stream, [][]byte{s.rest})
		s.rest = nil
	}
	return nil
}
