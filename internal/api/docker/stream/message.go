package stream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/docker/go-units"

	"ply/internal/wire"
)

// Bar draws a progress as docker's clients expect it: 50 columns and the amounts. Without a progress it returns "".
func Bar(p *wire.ProgressDetail) string {
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

// queued is a message that was not written yet.
type queued struct {
	wire.Message
	counter int
}

// Messages writes messages as JSON lines. The sender never waits: a goroutine writes, and while the client is slow, a newer
// number replaces the older one of the same counter. Safe for concurrent use. Close ends the goroutine.
type Messages struct {
	w     io.Writer
	flush func()

	mu       sync.Mutex
	pending  []queued
	counters map[string]int // ID → index in pending of its last message, when that has a counter
	closed   bool
	err      error
	started  bool
	wake     chan struct{}
	done     chan struct{}
}

// NewMessages starts a stream of messages to w. It calls flush after each batch of lines.
func NewMessages(w io.Writer, flush func()) *Messages {
	m := &Messages{w: w, flush: flush, counters: map[string]int{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go m.run()
	return m
}

// Put queues a message. counter is not 0 when the message reports a number that grows: until it is written, a newer message
// with the same ID and counter replaces it. After Close, Put does nothing.
func (m *Messages) Put(msg wire.Message, counter int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.err != nil {
		return
	}
	counts := msg.ID != "" && counter != 0
	if i, ok := m.counters[msg.ID]; ok && counts && m.pending[i].counter == counter {
		m.pending[i].Message = msg
		return
	}
	m.pending = append(m.pending, queued{msg, counter})
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

func (m *Messages) write(batch []queued) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, msg := range batch {
		if msg.Progress == "" {
			msg.Progress = Bar(msg.Detail)
		}
		if err := enc.Encode(msg.Message); err != nil {
			return err
		}
		buf.Truncate(buf.Len() - 1)
		buf.WriteString("\r\n") // Docker ends its lines so
	}
	if _, err := m.w.Write(buf.Bytes()); err != nil {
		return err
	}
	m.flush()
	return nil
}

// Close waits until all messages are written. started reports whether there were any.
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
