package stream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/wire"
)

// Media types of a connection that was taken over.
const (
	TypeRaw = "application/vnd.docker.raw-stream"
	TypeMux = "application/vnd.docker.multiplexed-stream"
	// TypeResumable is ply's own: the frames of TypeMux, also with a terminal, and those of package wire that a client needs to go on after its
	// connection has broken.
	TypeResumable = wire.TypeResumable
)

// Conn is a connection that was taken over from HTTP.
type Conn struct {
	net.Conn
	in *bufio.Reader
}

// Hijack takes over the connection of a request. It answers 101 to a client that asked for an upgrade, and 200 to others. The
// caller closes the connection.
func Hijack(w http.ResponseWriter, r *http.Request, contentType string) (*Conn, error) {
	if r.Header.Get("Upgrade") == "" {
		return takeOver(w, "HTTP/1.1 200 OK\r\nContent-Type: "+contentType+"\r\n")
	}
	return takeOver(w, "HTTP/1.1 101 UPGRADED\r\nContent-Type: "+contentType+"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n")
}

// Upgrade takes over the connection of a request for another protocol. The caller closes the connection.
func Upgrade(w http.ResponseWriter, proto string) (*Conn, error) {
	return takeOver(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+proto+"\r\n")
}

// takeOver answers with head and the headers that every answer has.
func takeOver(w http.ResponseWriter, head string) (*Conn, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("connection: take over: %w", err)
	}
	_ = conn.SetDeadline(time.Time{}) // remove the deadlines of HTTP; when this fails, the next read fails too
	var b strings.Builder
	b.WriteString(head)
	for _, key := range []string{"Api-Version", "Docker-Experimental", "Ostype", "Server", wire.PositionHeader} {
		if v := w.Header().Get(key); v != "" {
			b.WriteString(key + ": " + v + "\r\n")
		}
	}
	b.WriteString("\r\n")
	if _, err := conn.Write([]byte(b.String())); err != nil {
		return nil, fmt.Errorf("connection: answer: %w", joinClose(err, conn))
	}
	c := &Conn{Conn: conn, in: rw.Reader}
	c.awaitRead()
	return c, nil
}

// awaitRead waits a short time until the client has read the answer. Clients in Python read it through a buffer that they
// discard afterwards, with everything that has arrived by then.
func (c *Conn) awaitRead() {
	if c.LocalAddr().Network() != "unix" {
		return
	}
	for pause := 20 * time.Microsecond; pause < 50*time.Millisecond; pause *= 2 {
		unread := 0
		c.control(func(fd int) {
			if n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err == nil {
				unread = n
			}
		})
		if unread == 0 {
			return
		}
		time.Sleep(pause)
	}
}

// control runs f on the descriptor of the connection. It returns false when there is none.
func (c *Conn) control(f func(fd int)) bool {
	conn := c.Conn
	if inner, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = inner.NetConn()
	}
	raw, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := raw.SyscallConn()
	if err != nil {
		return false
	}
	return rc.Control(func(fd uintptr) { f(int(fd)) }) == nil
}

func joinClose(err error, conn net.Conn) error {
	if cerr := conn.Close(); cerr != nil {
		return fmt.Errorf("%w (close: %v)", err, cerr)
	}
	return err
}

// Read reads what the client sends. The first bytes come from the buffer of HTTP.
func (c *Conn) Read(b []byte) (int, error) { return c.in.Read(b) }

// CloseWrite ends the stream to the client. It returns errors.ErrUnsupported for a connection that cannot be closed by half.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Finish ends the stream to the client and closes the connection when the client has closed its side, after limit at the
// latest. What the client still sends is discarded: a connection that is closed with unread input is reset, and a reset
// over TCP takes output with it that the client has not read yet.
func (c *Conn) Finish(limit time.Duration) {
	if err := c.CloseWrite(); err == nil {
		_ = c.SetReadDeadline(time.Now().Add(limit)) // when this fails, the read fails too
		_, _ = io.Copy(io.Discard, c.Conn)           // past the buffer, which another goroutine may still read
	}
	_ = c.Close()
}

// Gone reports whether the client has closed the whole connection, not only its sending side. It returns false when it cannot find out.
func (c *Conn) Gone() bool {
	gone := false
	c.control(func(fd int) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(fds, 0); err == nil {
			gone = fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
		}
	})
	return gone
}
