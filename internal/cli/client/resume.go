package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"ply/internal/errs"
)

// ReturnLimit is how long to wait for an engine that went away, such as one that is restarted or replaced by another release.
const ReturnLimit = 30 * time.Second

// Cut reports whether an error means that a connection with the engine broke.
func Cut(err error) bool {
	var connect *ConnectError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &connect)
}

// AwaitReturn waits until the engine answers again, at most ReturnLimit. It writes to say when it has to wait, and returns the error of the last try when
// the engine does not come back.
func (c *Client) AwaitReturn(ctx context.Context, say io.Writer) error {
	c.http.CloseIdleConnections()
	said := false
	for begun := time.Now(); ; {
		resp, err := c.roundTrip(ctx, http.MethodHead, "/_ping", nil, nil, nil)
		if err == nil {
			_ = resp.Body.Close() // there is none
			if resp.StatusCode < 500 {
				return nil
			}
			err = errs.New(errs.Unavailable, "%s answers %s", c.opts.Host, resp.Status)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(begun) > ReturnLimit {
			return fmt.Errorf("the engine went away and did not come back within %v: %w", ReturnLimit, err)
		}
		if !said {
			said = true
			fmt.Fprintf(say, "ply: the engine at %s went away; waiting up to %v for its return\r\n", c.opts.Host, ReturnLimit)
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// maxFrame bounds the payload of a frame that is read whole, in bytes.
const maxFrame = 1 << 20

// Frames reads the frames of a multiplexed stream.
type Frames struct {
	r   *bufio.Reader // a large payload passes it by
	buf []byte
}

// NewFrames returns a reader of the frames in r.
func NewFrames(r io.Reader) *Frames { return &Frames{r: bufio.NewReaderSize(r, 8<<10)} }

// Waiting reports whether the next frame may have to be waited for.
func (f *Frames) Waiting() bool { return f.r.Buffered() < 8 }

// Next returns the next frame. The payload is valid until the next call. The error is io.EOF or io.ErrUnexpectedEOF where the stream ends.
func (f *Frames) Next() (stream byte, payload []byte, err error) {
	stream, f.buf, err = f.Append(f.buf[:0])
	return stream, f.buf, err
}

// Append is Next, but appends the payload to buf.
func (f *Frames) Append(buf []byte) (stream byte, _ []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, buf, err
	}
	size := binary.BigEndian.Uint32(head[4:])
	if size > maxFrame {
		return 0, buf, errs.New(errs.Invalid, "stream: a frame of %d bytes is longer than the %d allowed", size, maxFrame)
	}
	n := len(buf)
	buf = slices.Grow(buf, int(size))[:n+int(size)]
	if _, err := io.ReadFull(f.r, buf[n:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, buf[:n], err
	}
	return head[0], buf, nil
}
