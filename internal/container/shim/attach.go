package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"ply/internal/errs"
)

// Stream is an attached client's connection to a process. Read and Write may run in two goroutines; Close may be
// called from any and ends both.
//
// A client that takes nothing for the shim's stall limit (two minutes) while the process has output for it is cut
// off, so that a dead client never stops a container; until then its slowness is the process' own, as in a pipe.
type Stream struct {
	conn *net.UnixConn
	stop func() bool

	stream byte // of the chunk being read
	left   int
	ended  bool

	wmu  sync.Mutex
	head []byte
}

// Attach connects to the streams of a process. Output from the moment of return arrives, earlier output is in
// the log. The stream lives until Close, the end of the process, or the end of ctx.
func (c *Client) Attach(ctx context.Context, process string, args AttachArgs) (*Stream, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	conn, _, stop, err := c.open(ctx, Request{Op: OpAttach, Process: process, Args: raw})
	if err != nil {
		return nil, err
	}
	return &Stream{conn: conn, stop: stop}, nil
}

// Read fills p with bytes of one stream, Stdout or Stderr (a terminal's are all Stdout). io.EOF when the process
// has ended and everything was delivered; errs.Unavailable when the shim cut the connection or went away.
func (s *Stream) Read(p []byte) (stream byte, n int, err error) {
	for s.left == 0 {
		if s.ended {
			return 0, 0, io.EOF
		}
		s.stream, s.left, err = ReadChunkHeader(s.conn)
		if err != nil {
			return 0, 0, s.broken(err)
		}
		s.ended = s.stream == Ended
	}
	n, err = s.conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	if err != nil {
		return s.stream, n, s.broken(err)
	}
	return s.stream, n, nil
}

func (s *Stream) broken(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	return errs.New(errs.Unavailable, "attach: connection to the container was cut: %w", noEOF(err))
}

// Write sends bytes to the process' stdin. errs.Unavailable when the process no longer reads.
func (s *Stream) Write(p []byte) (n int, err error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	for n < len(p) {
		part := p[n:min(len(p), n+32<<10)]
		s.head = append(AppendChunkHeader(s.head[:0], Stdin, len(part)), part...)
		if _, err := s.conn.Write(s.head); err != nil {
			return n, s.broken(err)
		}
		n += len(part)
	}
	return n, nil
}

// CloseWrite says that no more input comes. The process sees end of file when it is an exec or the container was
// made with StdinOnce; otherwise its stdin stays open for the next client, as with docker. A terminal is never
// closed by it.
func (s *Stream) CloseWrite() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if _, err := s.conn.Write(AppendChunkHeader(nil, Stdin, 0)); err != nil {
		return s.broken(err)
	}
	return nil
}

// Close detaches.
func (s *Stream) Close() error {
	s.stop()
	return s.conn.Close()
}
