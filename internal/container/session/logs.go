package session

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"

	"ply/internal/container/logfile"
	"ply/internal/container/logremote"
	"ply/internal/container/shim"
)

// The json-file driver rotates by default, so that the output of containers does not fill the disk.
const (
	defaultLogSize  = 20_000_000 // bytes per file
	defaultLogFiles = 5
)

// LogConfig parses a log driver and its options. The caller fills in the path. Errors name the option.
func LogConfig(driver string, opts map[string]string) (shim.Log, error) {
	if logfile.IsRemote(driver) {
		return logremote.Parse(driver, opts)
	}
	l, err := logfile.ParseOptions(driver, opts)
	if err != nil {
		return l, err
	}
	if _, sized := opts["max-size"]; l.Driver == logfile.JSONFile && !sized {
		l.MaxSize = defaultLogSize
		if _, counted := opts["max-file"]; !counted {
			l.MaxFiles = defaultLogFiles
		}
	}
	return l, nil
}

// stampFormat is RFC 3339 with all nine digits of the nanoseconds, as docker prints it.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// Logs writes the log. With Follow it returns when the container stops, is removed, or ctx ends. All output of a
// terminal is stdout. Errors: errs.Unimplemented for the log driver none.
func (s *Set) Logs(ctx context.Context, opts LogOptions, stdout, stderr io.Writer) error {
	if !opts.Stdout && !opts.Stderr {
		return invalid("Bad parameters: you must choose at least one stream")
	}
	l, err := s.c.Log()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	close(ended)
	held := &logfile.Held{}
	defer held.Close()
	read := logfile.ReadOptions{
		Stdout: opts.Stdout, Stderr: opts.Stderr, Tail: opts.Tail, Since: opts.Since, Until: opts.Until, Follow: opts.Follow, Ended: ended, Held: held, Idle: opts.Idle, Followers: &s.followers,
	}
	s.mu.Lock()
	s.logs[held] = struct{}{}
	if s.run != nil {
		read.Ended = s.run.Ended
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.logs, held)
	}()
	w := lineWriter{opts: opts, out: [3]io.Writer{shim.Stdout: stdout, shim.Stderr: stderr}}
	if a := opts.After; a != nil { // times of records increase
		read.Since, read.Tail, w.inside = a.Time.Add(1), -1, a.Inside
	}
	err = logfile.Read(ctx, l, read, w.write)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // the client has left
	}
	return err
}

// HoldLogs keeps the log open for the clients that read it. It is called before the files of an ended container are removed.
func (s *Set) HoldLogs() error {
	s.mu.Lock()
	readers := slices.Collect(maps.Keys(s.logs))
	s.mu.Unlock()
	if len(readers) == 0 {
		return nil
	}
	l, err := s.c.Log()
	if err != nil {
		return err
	}
	for _, h := range readers {
		err = errors.Join(err, h.Take(l))
	}
	return err
}

// maxTogether bounds what is written together of a log, in bytes, unless a single record is longer.
const maxTogether = 60 << 10

// lineWriter writes log messages: one at a time, because docker's clients take each frame for a line, or those of one stream that follow each other together when
// the caller takes records. It writes the timestamp once per line, also when a line has several messages.
type lineWriter struct {
	opts   LogOptions
	out    [3]io.Writer
	inside [3]bool // per stream: the last message did not end its line
	buf    []byte  // while it writes
}

// buffers are for the text of messages: a client that follows a log waits most of the time, and keeps none.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func (w *lineWriter) write(list []logfile.Message) error {
	kept := buffers.Get().(*[]byte)
	w.buf = *kept
	defer func() {
		*kept, w.buf = w.buf, nil
		buffers.Put(kept)
	}()
	for len(list) > 0 {
		n, err := w.writeSome(list)
		if err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// writeSome writes the first messages of list, and returns their number.
func (w *lineWriter) writeSome(list []logfile.Message) (n int, err error) {
	stream := list[0].Stream
	if int(stream) >= len(w.out) || w.out[stream] == nil {
		return 1, nil
	}
	w.buf = w.buf[:0]
	for ; n < len(list) && list[n].Stream == stream; n++ {
		m := &list[n]
		if n > 0 && (w.opts.Record == nil || len(w.buf)+len(m.Line) > maxTogether) {
			break
		}
		if !w.inside[stream] {
			if w.opts.Timestamps {
				w.buf = append(m.Time.UTC().AppendFormat(w.buf, stampFormat), ' ')
			}
			if w.opts.Details {
				w.buf = append(append(w.buf, m.Details()...), ' ')
			}
		}
		size := len(m.Line)
		w.inside[stream] = size > 0 && m.Line[size-1] != '\n'
		w.buf = append(w.buf, m.Line...)
	}
	if w.opts.Record != nil {
		return n, w.opts.Record(stream, w.buf, LogPlace{list[n-1].Time, w.inside})
	}
	_, err = w.out[stream].Write(w.buf)
	return n, err
}

// writeLog writes the log so far, for attach --logs.
func (s *Set) writeLog(ctx context.Context, opts AttachOptions) error {
	l, err := s.c.Log()
	if err != nil {
		return err
	}
	w := lineWriter{out: [3]io.Writer{shim.Stdout: opts.Stdout, shim.Stderr: opts.Stderr}}
	return logfile.Read(ctx, l, logfile.ReadOptions{Stdout: opts.Stdout != nil, Stderr: opts.Stderr != nil, Tail: -1}, w.write)
}
