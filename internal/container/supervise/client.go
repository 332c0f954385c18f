package supervise

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

// maxQueue bounds the output that waits in memory for one client, in bytes. When it is reached, the process has to wait,
// as with a full pipe. endQueue is the bound after the process has ended: what its pipes held is queued without a wait, so
// that a slow client does not delay the end of the container. A pipe holds 64 KiB, and at most 1 MiB without privileges.
const (
	maxQueue = 256 << 10
	endQueue = 4 << 20
)

// client is one attached connection.
type client struct {
	conn           *net.UnixConn
	stdout, stderr bool
	stall          time.Duration
	broken         func() // called when the connection breaks during a write; nil = nothing to do
	departed       bool   // the client does not come back; guarded by the mutex of the process

	mu       sync.Mutex
	queue    []byte
	limit    int           // of queue, in bytes
	moved    time.Time     // when the client last read something
	ended    bool          // the last chunk is queued or sent
	cut      bool          // the connection was given up
	stalled  bool          // it was given up because the client read nothing
	work     chan struct{} // signals that there is something to send
	room     chan struct{} // signals that something was sent
	finished chan struct{} // closed when write has returned
}

func newClient(conn *net.UnixConn, a shim.AttachArgs) *client {
	return &client{conn: conn, stdout: a.Stdout, stderr: a.Stderr, stall: StallLimit, limit: maxQueue, moved: time.Now(),
		work: make(chan struct{}, 1), room: make(chan struct{}, 1), finished: make(chan struct{})}
}

// poke signals on a channel with room for one signal.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// wants reports whether the client reads a stream.
func (c *client) wants(stream byte) bool {
	return stream == shim.Stdout && c.stdout || stream == shim.Stderr && c.stderr
}

// send queues output. When the queue is full it waits, until the client has read nothing for the stall limit. After the end
// of the process it does not wait: a client whose queue is full loses its connection, which it sees as an error.
func (c *client) send(stream byte, data []byte) {
	if !c.wants(stream) {
		return
	}
	for {
		c.mu.Lock()
		if c.cut || c.ended {
			c.mu.Unlock()
			return
		}
		if len(c.queue) < c.limit {
			if len(c.queue) == 0 {
				c.moved = time.Now()
			}
			c.queue = append(shim.AppendChunkHeader(c.queue, stream, len(data)), data...)
			c.mu.Unlock()
			poke(c.work)
			return
		}
		left, last := c.stall-time.Since(c.moved), c.limit == endQueue
		c.mu.Unlock()
		if left <= 0 || last {
			c.mu.Lock()
			c.stalled = true
			c.mu.Unlock()
			c.drop()
			return
		}
		t := time.NewTimer(left)
		select {
		case <-c.room:
		case <-c.finished:
		case <-t.C:
		}
		t.Stop()
	}
}

// lift ends the wait of send: the process has ended.
func (c *client) lift() {
	c.mu.Lock()
	c.limit = endQueue
	c.mu.Unlock()
	poke(c.room)
}

// end queues the chunk that tells the client that the process has ended.
func (c *client) end() {
	c.mu.Lock()
	if !c.ended && !c.cut {
		c.ended = true
		c.queue = shim.AppendChunkHeader(c.queue, shim.Ended, 0)
	}
	c.mu.Unlock()
	poke(c.work)
}

// drop closes the client's connection and discards what is queued.
func (c *client) drop() {
	c.mu.Lock()
	c.cut = true
	c.queue = nil
	c.mu.Unlock()
	_ = c.conn.Close() // it is not used any more
	poke(c.work)
}

// write sends what is queued until the last chunk is sent or the connection breaks.
func (c *client) write() {
	defer close(c.finished)
	for range c.work {
		for {
			c.mu.Lock()
			data, last := c.queue, c.ended
			c.queue = nil
			cut := c.cut
			c.mu.Unlock()
			if cut {
				return
			}
			if len(data) == 0 {
				if last {
					_ = c.conn.SetReadDeadline(time.Unix(1, 0)) // ends input
					return
				}
				break
			}
			poke(c.room)
			for len(data) > 0 {
				n, err := c.conn.Write(data[:min(len(data), 64<<10)])
				if err != nil {
					if c.broken == nil {
						c.drop()
						return
					}
					c.broken() // before the queue goes, after which the process writes on
					c.mu.Lock()
					c.cut, c.queue = true, nil
					c.mu.Unlock()
					return // the connection stays open: what the client sent last may say that it leaves
				}
				data = data[n:]
				c.mu.Lock()
				c.moved = time.Now()
				c.mu.Unlock()
			}
		}
	}
}

// broadcast sends output to all attached clients.
func (p *process) broadcast(stream byte, data []byte) {
	for _, c := range p.store(stream, data) {
		c.send(stream, data)
	}
}

// attach serves one client until the process has ended or the client is gone. answer sends the response to the attach
// request; the client gets all output that the process writes after it, or after the position that it names.
func (p *process) attach(conn *net.UnixConn, a shim.AttachArgs, answer func(shim.AttachReply, error) error) {
	c := newClient(conn, a)
	p.mu.Lock()
	if p.exit != nil {
		p.mu.Unlock()
		_ = answer(shim.AttachReply{}, p.gone()) // after an error the client sees that the connection is closed
		return
	}
	if p.ending {
		c.limit = endQueue
	}
	if a.Resume != "" {
		p.out.begin()
	}
	reply := shim.AttachReply{Resumes: a.Resume != "", Stdout: p.out.end[shim.Stdout], Stderr: p.out.end[shim.Stderr]}
	if from := a.From; from != nil {
		if a.Stdout && !p.out.has(shim.Stdout, from.Stdout) || a.Stderr && !p.out.has(shim.Stderr, from.Stderr) {
			p.mu.Unlock()
			_ = answer(shim.AttachReply{}, &failure{shim.ClassConflict, "output after the client's position is not kept any more"})
			return
		}
		reply.Stdout, reply.Stderr = from.Stdout, from.Stderr
		c.queue = p.out.appendTo(nil, [shim.Ended]int64{shim.Stdout: from.Stdout, shim.Stderr: from.Stderr}, c.wants)
	}
	// The response must be the first thing on the connection. While mu is held, no output is sent.
	if err := answer(reply, nil); err != nil {
		p.mu.Unlock()
		return
	}
	gone := func() {
		if a.Stdin && p.stdinOnce {
			p.closeStdin()
		}
	}
	if a.Resume != "" {
		c.broken = func() { p.await(c, a.Resume, gone) }
	}
	p.clients[c] = struct{}{}
	if a.From != nil {
		p.out.returned(a.Resume)
	}
	p.mu.Unlock()
	go c.write()
	poke(c.work)
	left := p.input(c, a.Stdin)
	p.mu.Lock()
	delete(p.clients, c)
	p.mu.Unlock()
	c.mu.Lock()
	ended, stalled := c.ended, c.stalled
	c.mu.Unlock()
	switch {
	case a.Resume != "" && !left && !ended && !stalled:
		p.await(c, a.Resume, gone)
	default:
		p.mu.Lock()
		c.departed = true
		p.out.returned(a.Resume) // a write may have failed before it was known that the client leaves
		p.mu.Unlock()
		gone()
	}
	if !ended {
		c.drop()
	}
	<-c.finished
}

// input passes what the client sends to the process until the client is gone. It discards it unless wanted is true. It returns true
// when the client has said that it leaves, and false when its connection broke.
func (p *process) input(c *client, wanted bool) (left bool) {
	buf := make([]byte, 32<<10)
	for {
		stream, n, err := shim.ReadChunkHeader(c.conn)
		if err != nil || stream != shim.Stdin {
			return err == nil
		}
		if n == 0 {
			if wanted && p.stdinOnce {
				p.closeStdin()
			}
			continue
		}
		for n > 0 {
			part := buf[:min(n, len(buf))]
			if _, err := io.ReadFull(c.conn, part); err != nil {
				return false
			}
			n -= len(part)
			if wanted && !p.feed(c, part) {
				wanted = false // the process has closed its stdin; the client may still read
			}
		}
	}
}

// feed writes to the process' stdin. It returns false when the process no longer reads it or the client is gone.
func (p *process) feed(c *client, data []byte) bool {
	for p.tty { // wait until the runtime has created the terminal
		select {
		case <-p.ready:
		case <-p.done:
			return false
		case <-time.After(500 * time.Millisecond):
			if hungUp(c.conn) {
				return false
			}
			continue
		}
		break
	}
	for patience := 10 * time.Millisecond; len(data) > 0; patience = min(2*patience, time.Second/2) {
		p.stdinMu.Lock()
		f := p.io.stdin
		if p.tty {
			f = p.io.console
		}
		if f == nil {
			p.stdinMu.Unlock()
			return false
		}
		_ = f.SetWriteDeadline(time.Now().Add(patience)) // never fails for pipes and terminals
		n, err := f.Write(data)
		p.stdinMu.Unlock()
		data = data[n:]
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if hungUp(c.conn) {
				return false
			}
			continue
		}
		if err != nil {
			return false
		}
	}
	return true
}

// closeStdin lets the process read end of file.
func (p *process) closeStdin() {
	if p.tty {
		return
	}
	p.stdinMu.Lock()
	defer p.stdinMu.Unlock()
	_ = closeAll(&p.io.stdin) // closing a pipe loses nothing
}

// hungUp reports whether the peer has closed its connection.
func hungUp(conn *net.UnixConn) bool {
	rc, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = rc.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(fds, 0); err == nil && n > 0 {
			gone = fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
		}
	})
	return gone || err != nil
}
