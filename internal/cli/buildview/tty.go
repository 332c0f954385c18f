package buildview

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"

	"ply/internal/wire"
)

// drawEvery is the time between two drawings.
const drawEvery = 100 * time.Millisecond

// tty draws the operations of a build: a header, a line for each, and below those that run what they load and the end of their output.
// Between drawings the cursor is below the last line.
type tty struct {
	o    Options
	now  func() time.Time
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	model *model
	begun time.Time
	drawn int // lines on the screen
	err   error
}

func newTTY(o Options) *tty {
	t := stillTTY(o, time.Now)
	t.done.Go(t.tick)
	return t
}

// stillTTY returns a tty that draws only when draw is called.
func stillTTY(o Options, now func() time.Time) *tty {
	return &tty{o: o, now: now, stop: make(chan struct{}), model: newModel(), begun: now()}
}

func (t *tty) tick() {
	ticker := time.NewTicker(drawEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			t.draw(false)
		case <-t.stop:
			return
		}
	}
}

func (t *tty) Show(e *wire.BuildEvents) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.model.apply(e)
	return t.err
}

func (t *tty) Close(done *wire.BuildDone) error {
	close(t.stop)
	t.done.Wait()
	t.draw(true)
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.model.close()
	if t.err != nil {
		return t.err
	}
	if done != nil && done.Error != nil {
		if err := t.model.printFailed(t.o.Out); err != nil {
			return err
		}
	}
	if err := printWarnings(t.o.Out, t.model.warnings); err != nil {
		return err
	}
	if done == nil || done.Error != nil || len(done.Images) == 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Successfully built %s\n", short(done.Images[len(done.Images)-1]))
	for _, tag := range done.Tags {
		fmt.Fprintf(&b, "Successfully tagged %s\n", tag)
	}
	_, err := io.WriteString(t.o.Out, b.String())
	return err
}

// row is a line of the screen. The right column is at the edge of the terminal.
type row struct {
	left, id, right string
	keep            bool // it belongs to something that runs
	output          bool // it is a line of output
}

// draw draws all lines again. The last drawing shows every operation, however small the terminal is.
func (t *tty) draw(last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil || len(t.model.order) == 0 {
		return
	}
	width, height := t.o.Size()
	if width <= 0 {
		width = 80
	}
	if height <= 0 {
		height = 24
	}
	now := t.now()
	rows := t.rows(now, last)
	if room := height - 2; !last && len(rows) > room {
		rows = fit(rows, max(room, 1))
	}
	var b bytes.Buffer
	if t.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", t.drawn)
	}
	finished := 0
	for _, v := range t.model.order {
		if v.Completed != nil {
			finished++
		}
	}
	word := "Building"
	if last && finished == len(t.model.order) && t.model.failed == nil {
		word = "Built"
	}
	head := fmt.Sprintf("[+] %s %s (%d/%d)", word, seconds(now.Sub(t.begun)), finished, len(t.model.order))
	b.WriteString("\x1b[2K\r" + cut(head, width) + "\n")
	for _, r := range rows {
		b.WriteString("\x1b[2K\r" + r.text(width) + "\n")
	}
	lines := len(rows) + 1
	if old := t.drawn - lines; old > 0 { // lines of an earlier, longer drawing
		for range old {
			b.WriteString("\x1b[2K\r\n")
		}
		fmt.Fprintf(&b, "\x1b[%dA", old)
	}
	t.drawn = lines
	_, t.err = t.o.Out.Write(b.Bytes())
}

// fit leaves lines out until room are left: those of finished operations first, then output, the oldest first.
func fit(rows []row, room int) []row {
	over := len(rows) - room
	for _, drop := range []func(r row) bool{func(r row) bool { return !r.keep }, func(r row) bool { return r.output }} {
		rows = slices.DeleteFunc(rows, func(r row) bool {
			if over > 0 && drop(r) {
				over--
				return true
			}
			return false
		})
	}
	return rows[max(0, len(rows)-room):]
}

func (t *tty) rows(now time.Time, last bool) []row {
	var out []row
	for _, v := range t.model.order {
		running := v.Completed == nil
		name := clean(v.Name)
		switch {
		case v.Error != "":
			name = "ERROR " + name
		case v.Cached:
			name = "CACHED " + name
		}
		r := row{left: " => " + name, right: seconds(v.took(now)), keep: running || v.Error != ""}
		if v.step != nil && v.step.Image != "" {
			r.id = short(v.step.Image)
		}
		out = append(out, r)
		if t.o.Explain && !running && !v.Cached && v.Miss != "" {
			out = append(out, row{left: " => => not in the cache: " + clean(v.Miss)})
		}
		if running || last {
			out = append(out, transfers(v, running)...)
		}
		if running && !last {
			for _, text := range v.tail.last(tailLines) {
				out = append(out, row{left: " => => # " + text, keep: true, output: true})
			}
		}
	}
	return append(out, t.settings(last)...)
}

// settings are the instructions that change only the config: they have an image and no operation. They are shown at the end.
func (t *tty) settings(last bool) []row {
	if !last {
		return nil
	}
	var out []row
	for _, s := range t.model.all {
		if s.Vertex == "" && s.Image != "" {
			text, _, _ := strings.Cut(s.Text, "\n")
			out = append(out, row{left: fmt.Sprintf(" => [%d/%d] %s", s.Index, s.Total, clean(text)), id: short(s.Image), right: seconds(0)})
		}
	}
	return out
}

// transfers are the lines of what an operation loads.
func transfers(v *vertex, running bool) []row {
	var out []row
	for _, s := range v.statuses {
		if s.Container != "" {
			continue
		}
		amount := ""
		switch {
		case s.Total > 0 && s.Completed == nil:
			amount = units.HumanSize(float64(s.Current)) + " / " + units.HumanSize(float64(s.Total))
		case s.Total > 0:
			amount = units.HumanSize(float64(s.Total))
		case s.Current > 0:
			amount = units.HumanSize(float64(s.Current))
		}
		right := ""
		if s.Started != nil {
			end := s.Timestamp
			if s.Completed != nil {
				end = *s.Completed
			}
			right = seconds(end.Sub(*s.Started))
		}
		out = append(out, row{left: " => => " + shortName(clean(s.Name)), id: amount, right: right, keep: running && s.Completed == nil})
	}
	return out
}

// shortName shortens the digest of a layer.
func shortName(name string) string {
	if hex, ok := strings.CutPrefix(name, "sha256:"); ok && len(hex) == 64 {
		return "sha256:" + hex[:12]
	}
	return name
}

// text returns the line for a terminal of the given width.
func (r row) text(width int) string {
	right := r.right
	if r.id != "" {
		right = r.id
		if r.right != "" {
			right += fmt.Sprintf("%8s", r.right)
		}
	}
	if right == "" {
		return cut(r.left, width)
	}
	room := width - len(right) - 1
	if room < 10 {
		return cut(r.left, width)
	}
	left := cut(r.left, room)
	return left + strings.Repeat(" ", width-utf8.RuneCountInString(left)-len(right)) + right
}

// cut shortens s to n cells. It counts a rune as one cell.
func cut(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:max(n, 0)])
}
