package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/docker/go-units"
)

// Message is one JSON line of a progress stream.
type Message struct {
	Stream   string    `json:"stream,omitempty"`
	Status   string    `json:"status,omitempty"`
	Progress *Progress `json:"progressDetail,omitempty"`
	// Bar is drawn for clients that show it as it is; filled in by Messages from Progress.
	Bar      string `json:"progress,omitempty"`
	ID       string `json:"id,omitempty"`
	Error    *Error `json:"errorDetail,omitempty"`
	ErrorMsg string `json:"error,omitempty"`
	Aux      any    `json:"aux,omitempty"`
	// Counter is not 0 when the message reports a number that grows: while the client is slow, a newer message with the
	// same ID and Counter replaces this one.
	Counter int `json:"-"`
}

// Progress is how far something is; Total 0 is unknown, Units "" means bytes.
type Progress struct {
	Current int64  `json:"current,omitempty"`
	Total   int64  `json:"total,omitempty"`
	Units   string `json:"units,omitempty"`
}

// Error ends a stream whose status was sent already.
type Error struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
}

// String draws the bar as docker's clients expect it: 50 columns and the amounts.
func (p *Progress) String() string {
	if p == nil || p.Current <= 0 && p.Total <= 0 {
		return ""
	}
	amount := func(n int64) string {
		if p.Units == "" {
			return units.HumanSize(float64(n))
		}
		return fmt.Sprint(n)
	}
	tail := ""
	if p.Units != "" {
		tail = " " + p.Units
	}
	if p.Total <= 0 {
		return fmt.Sprintf("%8s%s", amount(p.Current), tail)
	}
	done := int(min(float64(p.Current)/float64(p.Total)*50, 50))
	bar := "[" + strings.Repeat("=", done) + ">" + strings.Repeat(" ", 50-done) + "] "
	if p.Current > p.Total {
		return bar + fmt.Sprintf("%8s%s", amount(p.Current), tail)
	}
	return bar + fmt.Sprintf("%8s/%s%s", amount(p.Current), amount(p.Total), tail)
}

// Messages writes messages as JSON lines without ever making the sender wait: a goroutine writes, and while the
// client is slow a newer state of the same thing replaces the older one. Safe for concurrent use; Close ends it.
type Messages struct {
	w     io.Writer
	flush func()

	mu       sync.Mutex
	pending  []Message
	counters map[string]int // ID → index in pending of its last message, when that has a Counter
	closed   bool
	err      error
	started  bool
	wake     chan struct{}
	done     chan struct{}
}

// NewMessages starts a stream on w; flush runs after each batch of lines.
func NewMessages(w io.Writer, flush func()) *Messages {
	m := &Messages{w: w, flush: flush, counters: map[string]int{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go m.run()
	return m
}

// Put queues a message. After Close it does nothing.
func (m *Messages) Put(msg Message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.err != nil {
		return
	}
	counts := msg.ID != "" && msg.Counter != 0
	if i, ok := m.counters[msg.ID]; ok && counts && m.pending[i].Counter == msg.Counter {
		m.pending[i] = msg
		return
	}
	m.pending = append(m.pending, msg)
	delete(m.counters, msg.ID)
	if counts {
		m.counters[msg.ID] = len(m.pending) - 1
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *Messages) run() {
	defer close(m.done)
	for range m.wake {
		for {
			m.mu.Lock()
			batch, closed := m.pending, m.closed
			m.pending = nil
			clear(m.counters)
			if len(batch) > 0 {
				m.started = true
			}
			m.mu.Unlock()
			if len(batch) == 0 {
				if closed {
					return
				}
				break
			}
			if err := m.write(batch); err != nil {
				m.mu.Lock()
				m.err = err
				m.mu.Unlock()
				return
			}
		}
	}
}

func (m *Messages) write(batch []Message) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, msg := range batch {
		if msg.Bar == "" {
			msg.Bar = msg.Progress.String()
		}
		if err := enc.Encode(msg); err != nil {
			return err
		}
		buf.Truncate(buf.Len() - 1)
		buf.WriteString("\r\n") // as docker ends its lines
	}
	if _, err := m.w.Write(buf.Bytes()); err != nil {
		return err
	}
	m.flush()
	return nil
}

// Close waits until everything is written. Started tells whether anything was.
func (m *Messages) Close() (started bool, err error) {
	m.mu.Lock()
	if !m.closed {
		m.closed = true
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
	m.mu.Unlock()
	<-m.done
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.started, m.err
}
