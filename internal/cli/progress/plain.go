package progress

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"ply/internal/wire"
)

// plain prints one line per change of state. It leaves out the messages that only move a bar.
type plain struct{ w io.Writer }

func (p *plain) Print(m *wire.Message) error {
	if m.Stream != "" {
		_, err := io.WriteString(p.w, m.Stream)
		return err
	}
	if m.Progress != "" || m.Detail != nil && (m.Detail.Current > 0 || m.Detail.Total > 0) {
		return nil
	}
	_, err := fmt.Fprintln(p.w, text(m))
	return err
}

func (p *plain) Close() error { return nil }

// jsonLines prints every message as it came, one per line.
type jsonLines struct{ w io.Writer }

func (p *jsonLines) Print(m *wire.Message) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = p.w.Write(append(b, '\n'))
	return err
}

func (p *jsonLines) Close() error { return nil }

// quiet prints nothing.
type quiet struct{}

func (quiet) Print(*wire.Message) error { return nil }
func (quiet) Close() error              { return nil }

// clip shortens s to n cells. It counts a rune as one cell, which is right for the texts of the engine.
func clip(s string, n int) string {
	if n <= 0 || len(s) <= n {
		return s
	}
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return strings.TrimRight(string(r[:n]), " ")
}
