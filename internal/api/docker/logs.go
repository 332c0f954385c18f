package docker

import (
	"bufio"
	"net/http"
	"strconv"
	"time"

	"ply/internal/api/docker/stream"
	"ply/internal/container/session"
	"ply/internal/errs"
	"ply/internal/wire"
)

// logBuffer bounds how much of a log waits to be sent, in bytes.
const logBuffer = 16 << 10

func (h sessionHandlers) logs(c *call) error {
	opts := session.LogOptions{Stdout: c.bool("stdout"), Stderr: c.bool("stderr"), Follow: c.bool("follow"),
		Timestamps: c.bool("timestamps"), Details: c.bool("details"), Tail: -1}
	if !opts.Stdout && !opts.Stderr {
		return errs.New(errs.Invalid, "Bad parameters: you must choose at least one stream")
	}
	var err error
	if opts.Since, err = c.time("since"); err != nil {
		return err
	}
	if opts.Until, err = c.time("until"); err != nil {
		return err
	}
	if n, err := strconv.Atoi(c.get("tail")); err == nil && n >= 0 { // any other word means all, as with docker
		opts.Tail = n
	}
	ctr, err := h.containers.Get(c.ctx(), c.vars["id"], false)
	if err != nil {
		return err
	}
	if opts.Follow {
		done, err := c.wait()
		if err != nil {
			return err
		}
		defer done()
	}
	c.w.Header().Set("Content-Type", c.streamType(ctr.Spec.Tty))
	out := &flusher{w: c.w, rc: http.NewResponseController(c.w), always: opts.Follow}
	// Records that are there together are sent together: one write for each would be most of the work.
	buffered := bufio.NewWriterSize(out, logBuffer)
	opts.Idle = buffered.Flush
	if opts.Follow {
		// A client that follows an empty log must get the headers.
		stop := time.AfterFunc(50*time.Millisecond, out.begin)
		defer stop.Stop()
	}
	mux := stream.NewMux(buffered)
	resumable := c.bool("resumable")
	if resumable {
		c.w.Header().Set("Content-Type", stream.TypeResumable)
		if text := c.get("position"); text != "" {
			p, ok := wire.ParseLogPosition(text)
			if !ok {
				return errs.New(errs.Invalid, "parameter position: %q is not a position", clip(text))
			}
			opts.After = &session.LogPlace{Time: time.Unix(0, p.Time), Inside: p.Inside}
		}
		opts.Record = func(name byte, text []byte, behind session.LogPlace) error {
			at := wire.LogPosition{Time: behind.Time.UnixNano(), Inside: behind.Inside}
			return mux.Send(stream.Frame{Stream: name, Data: text}, stream.Frame{Stream: wire.FrameRecord, Data: []byte(at.String())})
		}
	}
	stdout, stderr := mux.Stdout(), mux.Stderr()
	if ctr.Spec.Tty {
		stdout, stderr = buffered, buffered
	}
	err = h.sessions.Logs(c.ctx(), c.vars["id"], opts, stdout, stderr)
	if resumable && err == nil && c.ctx().Err() == nil {
		err = mux.Send(stream.Frame{Stream: wire.FrameEnded})
	}
	if sent := buffered.Flush(); err == nil {
		err = sent
	}
	if out.end() && err != nil {
		if c.ctx().Err() != nil { // the client is gone
			return nil
		}
		return err
	}
	if err == nil && !c.w.wrote {
		return c.none(http.StatusOK)
	}
	return err
}

// streamType returns the media type of output: frames, or raw bytes with a terminal. Until 1.41 both had the same name.
func (c *call) streamType(tty bool) string {
	if tty || c.v < 42 {
		return stream.TypeRaw
	}
	return stream.TypeMux
}
