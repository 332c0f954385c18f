package container

import (
	"context"
	"errors"
	"io"
	"time"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
)

// stampFormat is RFC 3339 with all nine digits, as docker prints it.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// Logs writes a container's log; with Follow until the container stops, is removed, or ctx ends. A terminal's
// output is all stdout. Errors: NotFound; Unimplemented for the log driver none.
func (s *Service) Logs(ctx context.Context, ref string, opts LogOptions, stdout, stderr io.Writer) error {
	if !opts.Stdout && !opts.Stderr {
		return invalid("Bad parameters: you must choose at least one stream")
	}
	c, err := s.find(ref)
	if err != nil {
		return err
	}
	l, err := c.log()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	close(ended)
	read := logfile.ReadOptions{
		Stdout: opts.Stdout, Stderr: opts.Stderr, Tail: opts.Tail, Since: opts.Since, Until: opts.Until, Follow: opts.Follow, Ended: ended,
	}
	c.mu.Lock()
	if c.life != nil {
		read.Ended = c.life.ctx.Done()
	}
	c.mu.Unlock()
	w := lineWriter{opts: opts, out: [3]io.Writer{shim.Stdout: stdout, shim.Stderr: stderr}}
	err = logfile.Read(ctx, l, read, w.write)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil // the client has seen enough
	}
	return err
}

// log says where the container's log is.
func (c *ctr) log() (shim.Log, error) {
	c.mu.Lock()
	driver, opts := c.rec.Spec.LogDriver, c.rec.Spec.LogOpts
	c.mu.Unlock()
	l, err := logConfig(driver, opts)
	l.Path = c.logFile()
	return l, err
}

// lineWriter prints records; what stands before a line is printed once a line, however many records it has.
type lineWriter struct {
	opts   LogOptions
	out    [3]io.Writer
	inside [3]bool // the last record of the stream did not end its line
	buf    []byte
}

func (w *lineWriter) write(m logfile.Message) error {
	if int(m.Stream) >= len(w.out) || w.out[m.Stream] == nil {
		return nil
	}
	w.buf = w.buf[:0]
	if !w.inside[m.Stream] {
		if w.opts.Timestamps {
			w.buf = append(m.Time.UTC().AppendFormat(w.buf, stampFormat), ' ')
		}
		if w.opts.Details {
			w.buf = append(w.buf, ' ') // no attributes are kept
		}
	}
	n := len(m.Line)
	w.inside[m.Stream] = n > 0 && m.Line[n-1] != '\n'
	w.buf = append(w.buf, m.Line...)
	_, err := w.out[m.Stream].Write(w.buf)
	return err
}

// replay writes the log so far, for attach --logs.
func (s *Service) replay(ctx context.Context, c *ctr, opts AttachOptions) error {
	l, err := c.log()
	if err != nil {
		return err
	}
	w := lineWriter{out: [3]io.Writer{shim.Stdout: opts.Stdout, shim.Stderr: opts.Stderr}}
	return logfile.Read(ctx, l, logfile.ReadOptions{Stdout: opts.Stdout != nil, Stderr: opts.Stderr != nil, Tail: -1, Until: time.Time{}}, w.write)
}
