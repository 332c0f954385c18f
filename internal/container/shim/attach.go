package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"ply/internal/errs"
)

// Stream is a client's connection to the streams of a process. One goroutine may call Read while another calls Write.
// Close may be called from any goroutine and ends both calls.
//
// A slow reader slows the process down, as with a pipe. When a reader takes nothing for the shim's stall limit (two
// minutes) while there is output for it, the shim closes its connection, so that a dead client does not stop the container.
type Stream struct {
	conn  *net.UnixConn
	stop  func() bool
	reply AttachReply

	stream byte // stream of the chunk that is being read
	left   int  // bytes of the chunk that were not read yet
	ended  bool // the last chunk was read

	wmu  sync.Mutex
	head []byte // reused by Write
}

// Attach connects to the streams of a process. The stream carries the output from the moment Attach returns; earlier
// output is in the log. It ends with Close, with the process, or with ctx.
func (c *Client) Attach(ctx context.Context, process string, args AttachArgs) (*Stream, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	conn, body, stop, err := c.open(ctx, Request{Op: OpAttach, Process: process, Args: raw})
	if err != nil {
		return nil, err
	}
	s := &Stream{conn: conn, stop: stop}
	if len(body) > 0 { // a shim of an earlier release sends none
		if err := json.Unmarshal(body, &s.reply); err != nil {
			return nil, errors.Join(fmt.Errorf("attach: bad response of the shim: %w", err), s.Close())
		}
	}
	return s, nil
}

// Position returns where the output begins, and whether a client that comes back can go on from a position.
func (s *Stream) Position() (at Position, resumes bool) {
	return Position{s.reply.Stdout, s.reply.Stderr}, s.reply.Resumes
}

// leaveLimit is how long Leave waits for a process that does not read its input.
const leaveLimit = 100 * time.Millisecond

// Leave says that the client does not come back. A Write that waits ends.
func (s *Stream) Leave() error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(leaveLimit)) // when it fails, the write fails too
	s.wmu.Lock()
	defer s.wmu.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(leaveLimit)) // the lock may have taken the time; a busy machine may take it too
	if _, err := s.conn.Write(AppendChunkHeader(nil, Ended, 0)); err != nil {
		return s.broken(err)
	}
	return nil
}

// Read reads bytes of one stream, Stdout or Stderr, into p. All output of a terminal is Stdout. Read returns io.EOF when
// the process has ended and all output was read, and errs.Unavailable when the shim closed the connection or is gone.
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

// Write sends bytes to the process' stdin. It returns errs.Unavailable when the connection is closed.
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

// CloseWrite tells the shim that this client sends no more input. The process then reads end of file if it is an exec or
// if the container was created with StdinOnce. Otherwise its stdin stays open for the next client, as with docker. A
// terminal stays open in every case.
func (s *Stream) CloseWrite() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if _, err := s.conn.Write(AppendChunkHeader(nil, Stdin, 0)); err != nil {
		return s.broken(err)
	}
	return nil
}

// Close detaches from the process.
func (s *Stream) Close() error {
	s.stop()
	return s.conn.Close()
}
