package stream

import (
	"encoding/binary"
	"io"
	"sync"
)

// The values of the first byte of a frame.
const (
	Stdin  = 0
	Stdout = 1
	Stderr = 2
	Failed = 3 // the payload is an error message; clients fail with it
)

// maxFrame is the largest payload of a frame, so that readers need only a small buffer.
const maxFrame = 64 << 10

// Mux sends two outputs over one connection. A frame is the number of the stream, three zero bytes, the length as a big-endian
// number of four bytes, and the payload. The writers are safe for concurrent use.
type Mux struct {
	mu sync.Mutex
	w  io.Writer
}

// buffers are for frames: a connection is idle most of the time, and keeps none.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// NewMux returns a Mux that writes frames to w.
func NewMux(w io.Writer) *Mux { return &Mux{w: w} }

// Stdout returns the writer of stream 1.
func (m *Mux) Stdout() io.Writer { return output{m, Stdout} }

// Stderr returns the writer of stream 2.
func (m *Mux) Stderr() io.Writer { return output{m, Stderr} }

// Fail sends an error message, with which the client's command fails. Clients do not fail when a stream ends too early.
func (m *Mux) Fail(msg string) error {
	_, err := output{m, Failed}.Write([]byte(msg))
	return err
}

// Send sends frames in one piece, each with its stream and a payload of at most maxFrame bytes.
func (m *Mux) Send(frames ...Frame) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := buffers.Get().(*[]byte)
	defer buffers.Put(kept)
	buf := (*kept)[:0]
	for _, f := range frames {
		buf = binary.BigEndian.AppendUint32(append(buf, f.Stream, 0, 0, 0), uint32(len(f.Data)))
		buf = append(buf, f.Data...)
	}
	*kept = buf
	_, err := m.w.Write(buf)
	return err
}

// Frame is the content of one frame.
type Frame struct {
	Stream byte
	Data   []byte
}

type output struct {
	mux    *Mux
	stream byte
}

// Write sends b as one or more frames. Each frame is written in one piece.
func (o output) Write(b []byte) (n int, err error) {
	o.mux.mu.Lock()
	defer o.mux.mu.Unlock()
	kept := buffers.Get().(*[]byte)
	defer buffers.Put(kept)
	for len(b) > 0 {
		part := b[:min(len(b), maxFrame)]
		frame := append((*kept)[:0], o.stream, 0, 0, 0)
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(part)))
		frame = append(frame, part...)
		*kept = frame
		if _, err := o.mux.w.Write(frame); err != nil {
			return n, err
		}
		n += len(part)
		b = b[len(part):]
	}
	return n, nil
}
