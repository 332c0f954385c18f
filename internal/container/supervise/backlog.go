package supervise

import (
	"time"

	"ply/internal/container/shim"
)

const (
	// window is how much of the newest output is kept for a client whose connection breaks, in bytes. It is more than what is on the way to a client.
	window = 2 << 20
	// returnLimit is how long a client whose connection broke is waited for.
	returnLimit = 30 * time.Second
	// killedReturnLimit is the same when the container is killed: whoever kills it waits for its end.
	killedReturnLimit = time.Second
)

// backlog is the newest output of a process, kept for clients that ask for it and come back when their connection has broken: plyd was
// replaced, or has died. While such a client is away, up to another window is kept; then the process waits, as for a client that
// reads slowly, until the client is back or returnLimit has passed. The zero value keeps nothing and counts. The mutex of the process guards it.
type backlog struct {
	kept     bool // a client has asked for it
	pieces   []piece
	size     int               // of pieces, in bytes
	first    [shim.Ended]int64 // position of the oldest byte kept, per stream
	end      [shim.Ended]int64 // number of bytes so far, per stream
	away     map[string]bool   // clients that are waited for, by AttachArgs.Resume
	back     chan struct{}     // closed when no client is waited for any more; nil when none is
	limit    time.Duration     // returnLimit; 0 = returnLimit
	unwaited bool              // no client is waited for from now on
}

// piece is output at a position of its stream.
type piece struct {
	stream byte
	at     int64
	data   []byte
}

// full reports whether the process has to wait for a client to come back.
func (b *backlog) full() bool { return len(b.away) > 0 && b.size >= 2*window }

// add counts output, and keeps a copy of it.
func (b *backlog) add(stream byte, data []byte) {
	at := b.end[stream]
	b.end[stream] += int64(len(data))
	if !b.kept {
		return
	}
	b.pieces = append(b.pieces, piece{stream, at, append([]byte(nil), data...)})
	b.size += len(data)
	b.trim()
}

// trim discards the oldest pieces beyond the window, unless a client is away.
func (b *backlog) trim() {
	for len(b.away) == 0 && b.size > window {
		old := b.pieces[0]
		b.pieces = b.pieces[1:]
		b.size -= len(old.data)
		b.first[old.stream] = old.at + int64(len(old.data))
	}
}

// begin starts to keep output.
func (b *backlog) begin() {
	if !b.kept {
		b.kept, b.first = true, b.end
	}
}

// has reports whether all output of a stream from a position on is kept.
func (b *backlog) has(stream byte, from int64) bool {
	return b.kept && from >= b.first[stream] && from <= b.end[stream]
}

// appendTo appends the output that follows the positions to a queue of chunks, for the streams that are wanted.
func (b *backlog) appendTo(queue []byte, from [shim.Ended]int64, wants func(stream byte) bool) []byte {
	for _, p := range b.pieces {
		data := p.data
		if skip := from[p.stream] - p.at; skip > 0 {
			data = data[min(skip, int64(len(data))):]
		}
		if len(data) > 0 && wants(p.stream) {
			queue = append(shim.AppendChunkHeader(queue, p.stream, len(data)), data...)
		}
	}
	return queue
}

// returned records that a client is back, or does not come back.
func (b *backlog) returned(client string) {
	if !b.away[client] {
		return
	}
	if delete(b.away, client); len(b.away) == 0 {
		close(b.back)
		b.back = nil
		b.trim()
	}
}

// await records that a connection of a client has broken, and waits for the client in the background, unless it has said that it leaves. gone is called when it does not
// come back.
func (p *process) await(c *client, client string, gone func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.departed || p.out.unwaited {
		return
	}
	b := &p.out
	if len(b.away) == 0 {
		b.away, b.back = map[string]bool{}, make(chan struct{})
	}
	b.away[client] = true
	limit := b.limit
	if limit == 0 {
		limit = returnLimit
	}
	back := b.back
	time.AfterFunc(limit, func() {
		p.mu.Lock()
		missing := b.back == back && b.away[client]
		if missing {
			b.returned(client)
		}
		p.mu.Unlock()
		if missing {
			gone()
		}
	})
}

// abandonAway ends all waiting for clients, for good.
func (p *process) abandonAway() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.unwaited = true
	for client := range p.out.away {
		p.out.returned(client)
	}
}

// awaited returns a channel that is closed when no client is waited for, or nil when none is.
func (p *process) awaited() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.back
}

// store counts and keeps output, and returns the clients that get it. When a client is away and enough is kept for it, store waits first.
func (p *process) store(stream byte, data []byte) []*client {
	p.mu.Lock()
	for p.out.full() && !p.ending {
		back := p.out.back
		p.mu.Unlock()
		<-back
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	p.out.add(stream, data)
	clients := make([]*client, 0, len(p.clients))
	for c := range p.clients {
		clients = append(clients, c)
	}
	return clients
}
