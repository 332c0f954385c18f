// Package frames carries messages with open files over a connection between ply and plyd, for builds that read the client's directories
// in place.
//
// A frame is a length of four bytes, big-endian, and that many bytes of JSON. The files of a frame go with its first byte, as a control
// message of the unix socket (SCM_RIGHTS), so a message can be read only when its files are there. Other connections carry no files.
//
// Invariants: the size of a frame and the number of its files are bounded before anything is read; a file that no message took is closed.
package frames

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"ply/internal/errs"
)

// Limits of a frame.
const (
	MaxSize  = 16 << 20 // bytes
	MaxFiles = 8
)

// Conn sends and receives frames. Send may be called by many goroutines, Receive by one.
type Conn struct {
	conn net.Conn
	from io.Reader       // where frames come from in place of conn; nil = conn, with files
	raw  syscall.RawConn // nil when the connection carries no files

	write sync.Mutex
	files []*os.File // received, not yet taken
}

// New returns the frames on a connection. No byte of the peer's frames may have been read from it, unless from reads them: then only
// sent frames can have files.
func New(conn net.Conn, from io.Reader) *Conn {
	c := &Conn{conn: conn, from: from}
	if conn.LocalAddr() != nil && conn.LocalAddr().Network() == "unix" {
		if sc, ok := conn.(syscall.Conn); ok {
			if raw, err := sc.SyscallConn(); err == nil {
				c.raw = raw
			}
		}
	}
	return c
}

// CarriesFiles reports whether the connection can carry files.
func (c *Conn) CarriesFiles() bool { return c.raw != nil }

// Send writes v as one frame with files, which stay open.
func (c *Conn) Send(v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return errs.New(errs.Internal, "frame: %w", err)
	}
	if len(body) > MaxSize || len(files) > MaxFiles {
		return errs.New(errs.Invalid, "frame of %d bytes and %d files is larger than %d bytes and %d files", len(body), len(files), MaxSize, MaxFiles)
	}
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	buf = append(buf, body...)
	c.write.Lock()
	defer c.write.Unlock()
	if len(files) > 0 {
		n, err := c.sendFiles(buf, files)
		if err != nil {
			return err
		}
		if buf = buf[n:]; len(buf) == 0 {
			return nil // a peer that has what it wants may be gone
		}
	}
	_, err = c.conn.Write(buf)
	return err
}

// sendFiles writes the beginning of buf with files and returns how much it wrote.
func (c *Conn) sendFiles(buf []byte, files []*os.File) (n int, err error) {
	if c.raw == nil {
		return 0, errs.New(errs.Unimplemented, "the connection carries no files")
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	rights := unix.UnixRights(fds...)
	werr := c.raw.Write(func(fd uintptr) bool {
		n, err = unix.SendmsgN(int(fd), buf, rights, nil, unix.MSG_NOSIGNAL)
		return !errors.Is(err, unix.EAGAIN)
	})
	return n, errors.Join(err, werr)
}

// Receive reads one frame into v. The caller closes the files. It returns io.EOF when the peer has closed the connection between frames.
func (c *Conn) Receive(v any) (files []*os.File, err error) {
	var head [4]byte
	if err := c.fill(head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxSize {
		return nil, errs.New(errs.Invalid, "frame of %d bytes: at most %d are allowed", size, MaxSize)
	}
	body := make([]byte, size)
	if err := c.fill(body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	files, c.files = c.files, nil
	if err := json.Unmarshal(body, v); err != nil {
		closeAll(files)
		return nil, errs.New(errs.Invalid, "frame: %w", err)
	}
	return files, nil
}

// fill reads len(p) bytes, and what files come with them.
func (c *Conn) fill(p []byte) error {
	for got := 0; got < len(p); {
		n, err := c.read(p[got:])
		got += n
		if err != nil {
			if errors.Is(err, io.EOF) && got > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

func (c *Conn) read(p []byte) (n int, err error) {
	switch {
	case c.from != nil:
		return c.from.Read(p)
	case c.raw == nil:
		return c.conn.Read(p)
	}
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	var oobn, flags int
	rerr := c.raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, err = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if err = errors.Join(rerr, err); err != nil {
		return 0, err
	}
	if oobn > 0 {
		if err := c.take(oob[:oobn]); err != nil {
			return n, err
		}
	}
	if flags&unix.MSG_CTRUNC != 0 || len(c.files) > MaxFiles {
		return n, errs.New(errs.Invalid, "frame with more than %d files", MaxFiles)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// take keeps the files of control messages.
func (c *Conn) take(oob []byte) error {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("frame: control message: %w", err)
	}
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			continue // of another kind
		}
		for _, fd := range fds {
			c.files = append(c.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return nil
}

// Close closes the connection and the files that no message took.
func (c *Conn) Close() error {
	err := c.conn.Close()
	return err
}

// Discard closes the files that no message took. It is called after the last Receive.
func (c *Conn) Discard() {
	closeAll(c.files)
	c.files = nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}
