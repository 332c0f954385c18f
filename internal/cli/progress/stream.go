// Package progress shows the progress of long work. Show reads the engine's stream of messages; a Printer prints them. There are four:
// tty keeps one line per object, with a bar and its speed, and one for the total, plain prints one line per change of state, json prints the messages themselves, and quiet
// prints nothing. Counter shows how much of a copy is done.
package progress

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"ply/internal/errs"
	"ply/internal/wire"
)

// Flag defines --progress on fs.
func Flag(fs *pflag.FlagSet, mode *string) {
	fs.StringVar(mode, "progress", "auto", "Set type of progress output (\"auto\", \"tty\", \"plain\", \"json\")")
}

// Printer prints messages. Close prints what Print has held back.
type Printer interface {
	Print(m *wire.Message) error
	Close() error
}

// Size returns the size of the terminal in cells.
type Size func() (width, height int)

// New returns the printer for mode, a value of --progress, or "quiet". The modes "auto" and "" select tty when size is not nil, and plain
// otherwise.
func New(mode string, w io.Writer, size Size) (Printer, error) {
	switch mode {
	case "", "auto":
		if size != nil {
			return newTTY(w, size), nil
		}
		return &plain{w: w}, nil
	case "tty":
		if size == nil {
			size = func() (int, int) { return 80, 24 }
		}
		return newTTY(w, size), nil
	case "plain":
		return &plain{w: w}, nil
	case "json", "rawjson":
		return &jsonLines{w: w}, nil
	case "quiet":
		return quiet{}, nil
	}
	return nil, errs.New(errs.Invalid, "invalid progress mode %q: use auto, tty, plain or json", mode)
}

// StreamError is an error message in a stream.
type StreamError struct {
	Code    int
	Message string
}

// Error returns the engine's text.
func (e *StreamError) Error() string { return e.Message }

// Show reads the stream to its end, prints every message, and closes p. It passes values that are not shown to aux, which may be nil. An
// error message ends the stream and is returned as a *StreamError.
func Show(r io.Reader, p Printer, aux func(json.RawMessage)) (err error) {
	defer func() { err = errors.Join(err, p.Close()) }()
	dec := json.NewDecoder(r)
	for {
		var m wire.Message
		if err := dec.Decode(&m); err != nil {
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("progress stream: %w", err)
		}
		if m.Aux != nil && aux != nil {
			aux(m.Aux)
		}
		if e := failure(&m); e != nil {
			return e
		}
		if m.Aux != nil && m.Status == "" && m.Stream == "" {
			if _, raw := p.(*jsonLines); !raw {
				continue
			}
		}
		if err := p.Print(&m); err != nil {
			return err
		}
	}
}

// failure returns the error that a message reports, or nil.
func failure(m *wire.Message) error {
	if m.ErrorDetail != nil && m.ErrorDetail.Message != "" {
		return &StreamError{Code: m.ErrorDetail.Code, Message: m.ErrorDetail.Message}
	}
	if m.Error != "" {
		return &StreamError{Message: m.Error}
	}
	return nil
}

// bar returns docker's progress text for a terminal of the given width, or "" when the message has no progress.
func bar(m *wire.Message, width int, now time.Time) string {
	d := m.Detail
	if d == nil {
		return m.Progress
	}
	if d.Current <= 0 && d.Total <= 0 {
		return m.Progress
	}
	amount := func(n int64) string {
		if d.Units != "" {
			return fmt.Sprintf("%d %s", n, d.Units)
		}
		return units.HumanSize(float64(n))
	}
	if d.Total <= 0 {
		return fmt.Sprintf("%8v", amount(d.Current))
	}
	var b strings.Builder
	half := min(int(float64(d.Current)/float64(d.Total)*100)/2, 50)
	if width > 110 {
		fmt.Fprintf(&b, "[%s>%s] ", strings.Repeat("=", half), strings.Repeat(" ", 50-half))
	}
	switch {
	case d.HideCounts:
	case d.Units != "" && d.Current <= d.Total:
		fmt.Fprintf(&b, "%d/%d %s", d.Current, d.Total, d.Units)
	case d.Current > d.Total:
		fmt.Fprintf(&b, "%8v", amount(d.Current))
	default:
		fmt.Fprintf(&b, "%8v/%v", amount(d.Current), amount(d.Total))
	}
	if d.Current > 0 && d.Start > 0 && half < 50 && width > 50 {
		spent := now.Sub(time.Unix(d.Start, 0))
		left := time.Duration(float64(spent) / float64(d.Current) * float64(d.Total-d.Current))
		fmt.Fprintf(&b, " %s", (left / time.Second * time.Second).String())
	}
	return b.String()
}

// text returns the text of a message without its bar.
func text(m *wire.Message) string {
	if m.ID != "" {
		return m.ID + ": " + m.Status
	}
	return m.Status
}
