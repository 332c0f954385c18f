package progress

import (
	"fmt"
	"io"
	"time"

	"ply/internal/wire"
)

// redrawEvery is the least time between two drawings of a line whose state did not change.
const redrawEvery = 50 * time.Millisecond

// tty keeps one line per object and draws it again in place. Between messages the cursor is below the last line. A message without an
// object ends the block: the lines above it do not change any more.
type tty struct {
	w    io.Writer
	size Size
	now  func() time.Time
	rows map[string]int
	last []shown
}

// shown is one line on the terminal.
type shown struct {
	text    string // without the bar
	at      time.Time
	pending *wire.Message // newest message that was not drawn; nil when all were
}

func newTTY(w io.Writer, size Size) *tty {
	return &tty{w: w, size: size, now: time.Now, rows: map[string]int{}}
}

func (t *tty) Print(m *wire.Message) error {
	if m.Stream != "" {
		t.endBlock()
		_, err := io.WriteString(t.w, m.Stream)
		return err
	}
	if m.ID == "" || m.Detail == nil && m.Progress == "" {
		t.endBlock()
		_, err := fmt.Fprintln(t.w, text(m))
		return err
	}
	row, known := t.rows[m.ID]
	if !known {
		row = len(t.last)
		t.rows[m.ID] = row
		t.last = append(t.last, shown{})
		if _, err := io.WriteString(t.w, "\n"); err != nil {
			return err
		}
	}
	now := t.now()
	s := &t.last[row]
	if s.text == text(m) && now.Sub(s.at) < redrawEvery {
		s.pending = m
		return nil
	}
	return t.draw(row, m, now)
}

// draw draws a line.
func (t *tty) draw(row int, m *wire.Message, now time.Time) error {
	s := &t.last[row]
	s.text, s.at, s.pending = text(m), now, nil
	width, height := t.size()
	up := len(t.last) - row
	if height > 0 && up >= height {
		return nil // the line has scrolled off the screen: moving the cursor up that far would overwrite another line
	}
	line := text(m)
	if b := bar(m, width, now); b != "" {
		line += " " + b
	}
	_, err := fmt.Fprintf(t.w, "\x1b[%dA\x1b[2K\r%s\r\x1b[%dB", up, clip(line, width), up)
	return err
}

// endBlock draws what is pending and starts a new block of lines.
func (t *tty) endBlock() {
	t.flush()
	clear(t.rows)
	t.last = t.last[:0]
}

// flush draws the lines whose newest message was not drawn.
func (t *tty) flush() {
	for i := range t.last {
		if m := t.last[i].pending; m != nil {
			t.draw(i, m, t.now())
		}
	}
}

func (t *tty) Close() error {
	t.flush()
	return nil
}
