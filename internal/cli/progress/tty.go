package progress

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/docker/go-units"

	"ply/internal/wire"
)

const (
	redrawEvery = 50 * time.Millisecond // the least time between two drawings of a line whose state did not change
	tickEvery   = time.Second           // the time after which lines are drawn again although no message has come
)

// tty keeps one line per object and draws it again in place. Between messages the cursor is at the start of the line below the last one, which shows the total of
// objects whose sizes are known. A message without an object ends the block: the lines above it do not change any more.
type tty struct {
	size Size
	now  func() time.Time

	mu      sync.Mutex // guards w and the fields below it
	w       io.Writer
	rows    map[string]int
	last    []shown
	total   meter
	drawn   time.Time     // when the total was drawn
	footer  bool          // the total is on the screen
	stop    chan struct{} // closed by Close; nil = nothing ticks
	stopped chan struct{}
}

// shown is one line on the terminal.
type shown struct {
	text    string // without the bar
	at      time.Time
	pending *wire.Message // newest message that was not drawn; nil when all were
	newest  *wire.Message

	bytes meter
	size  int64 // that will be fetched; 0 = not known
	have  int64 // the most that was reported
	kept  int64 // of have: fetched by an earlier pull
}

func newTTY(w io.Writer, size Size) *tty {
	return &tty{w: w, size: size, now: time.Now, rows: map[string]int{}}
}

func (t *tty) Print(m *wire.Message) error {
	t.mu.Lock()
	defer t.mu.Unlock()
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
		t.hideTotal()
		if _, err := io.WriteString(t.w, "\n"); err != nil {
			return err
		}
	}
	now := t.now()
	s := &t.last[row]
	s.count(m, now)
	if s.active() && t.stop == nil {
		t.stop, t.stopped = make(chan struct{}), make(chan struct{})
		go t.ticks(t.stop, t.stopped)
	}
	if s.text == text(m) && now.Sub(s.at) < redrawEvery {
		s.pending = m
		return nil
	}
	if err := t.draw(row, m, now); err != nil {
		return err
	}
	return t.drawTotal(now)
}

// count notes what a message says about bytes.
func (s *shown) count(m *wire.Message, now time.Time) {
	s.newest = m
	d := m.Detail
	if d == nil || d.Units != "" {
		return
	}
	s.size, s.kept = max(s.size, d.Size), max(s.kept, d.Kept)
	if d.Current > 0 {
		s.have = max(s.have, d.Current)
		s.bytes.add(now, d.Current)
	}
}

// active reports whether bytes of the object are moving, or should be.
func (s *shown) active() bool {
	if s.newest == nil || s.newest.Detail == nil {
		return false
	}
	d := s.newest.Detail
	return d.Units == "" && d.Total > 0 && d.Current < d.Total
}

// ticks draws again what changes with time alone, until stop is closed.
func (t *tty) ticks(stop, stopped chan struct{}) {
	defer close(stopped)
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			t.refresh()
		}
	}
}

// refresh draws the lines of objects that should move and have not been drawn for some time. The next message reports an error of the terminal.
func (t *tty) refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stop == nil {
		return // after Close
	}
	now := t.now()
	for i := range t.last {
		if s := &t.last[i]; s.active() && now.Sub(s.at) >= tickEvery {
			_ = t.draw(i, s.newest, now)
		}
	}
	_ = t.drawTotal(now)
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
	_, err := fmt.Fprintf(t.w, "\x1b[%dA\x1b[2K\r%s\r\x1b[%dB", up, s.line(m, width, now), up)
	return err
}

// line returns a line of at most width cells: the text, and as much of the progress behind it as there is room for.
func (s *shown) line(m *wire.Message, width int, now time.Time) string {
	b := bar(m, width, now)
	if b == "" {
		return clip(text(m), width)
	}
	if !s.active() || m.Detail.Start > 0 {
		return fitting(width, text(m), []string{b}, percent(m.Detail))
	}
	rate, eta := s.bytes.speed(now, m.Detail.Total-m.Detail.Current)
	words := []string{b, rate, eta}
	if m.Detail.Kept > 0 {
		words = append(words, "resumed", units.HumanSize(float64(m.Detail.Kept)))
	}
	if rate == "stalled" {
		return fitting(width, text(m), words, "stalled")
	}
	return fitting(width, text(m), words, percent(m.Detail))
}

// percent returns how much is done.
func percent(d *wire.ProgressDetail) string {
	if d == nil || d.Total <= 0 || d.HideCounts {
		return ""
	}
	return fmt.Sprintf("%d%%", min(100, int64(float64(d.Current)/float64(d.Total)*100)))
}

// fitting returns text and as many of the words as a line of width cells has room for, or if none fits the short word.
func fitting(width int, text string, words []string, short string) string {
	for n := len(words); n > 0; n-- {
		if n < len(words) && words[n-1] == "resumed" {
			continue // not without its number
		}
		line := text
		for _, w := range words[:n] {
			if w != "" {
				line += " " + w
			}
		}
		if width <= 0 || len(line) <= width {
			return line
		}
	}
	if line := text + " " + short; short != "" && len(line) <= width {
		return line
	}
	return clip(text, width)
}

// drawTotal draws the sum of all objects whose size was reported. There is none for one object, and none when everything is here.
func (t *tty) drawTotal(now time.Time) error {
	var have, fetched, size int64
	n := 0
	for i := range t.last {
		if s := &t.last[i]; s.size > 0 {
			n++
			size += s.size
			got := min(s.have, s.size)
			have += got
			fetched += max(0, got-s.kept)
		}
	}
	t.total.add(now, fetched)
	if n < 2 || have >= size {
		return t.hideTotal()
	}
	if t.footer && now.Sub(t.drawn) < sampleEvery {
		return nil
	}
	t.footer, t.drawn = true, now
	width, _ := t.size()
	rate, eta := t.total.speed(now, size-have)
	done := fmt.Sprintf("%d%%", int64(float64(have)/float64(size)*100))
	line := fitting(width, "Total", []string{units.HumanSize(float64(have)) + "/" + units.HumanSize(float64(size)), done, rate, eta}, done)
	_, err := fmt.Fprintf(t.w, "\x1b[2K%s\r", line)
	return err
}

// hideTotal clears the line of the total.
func (t *tty) hideTotal() error {
	if !t.footer {
		return nil
	}
	t.footer = false
	_, err := io.WriteString(t.w, "\x1b[2K")
	return err
}

// endBlock draws what is pending and starts a new block of lines.
func (t *tty) endBlock() {
	t.flush()
	clear(t.rows)
	t.last = t.last[:0]
	t.total = meter{}
}

// flush draws the lines whose newest message was not drawn, and clears the total.
func (t *tty) flush() {
	_ = t.hideTotal()
	for i := range t.last {
		if m := t.last[i].pending; m != nil {
			_ = t.draw(i, m, t.now())
		}
	}
}

func (t *tty) Close() error {
	t.mu.Lock()
	stop, stopped := t.stop, t.stopped
	t.stop = nil
	t.flush()
	t.mu.Unlock()
	if stop != nil {
		close(stop)
		<-stopped
	}
	return nil
}
