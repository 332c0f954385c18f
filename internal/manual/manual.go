// Package manual makes manual pages in the format of man(7).
//
// Invariants: no text can begin a request of troff, whatever its first character; two runs for one commit make the same bytes.
package manual

import (
	"fmt"
	"os"
	"strings"
	"time"

	"ply/internal/version"
)

// Page is one manual page.
type Page struct{ b strings.Builder }

// New begins a page: its name, its section and what it is about.
func New(name string, section int, short string) *Page {
	p := &Page{}
	p.line(".TH \"%s\" %d \"%s\" \"ply %s\" \"ply manual\"", Escape(strings.ToUpper(name)), section, date().Format("2006-01-02"), Escape(version.Version))
	p.Section("NAME")
	p.line("%s \\- %s", Escape(name), Escape(short))
	return p
}

func (p *Page) line(format string, args ...any) { fmt.Fprintf(&p.b, format+"\n", args...) }

// Section begins a section.
func (p *Page) Section(title string) { p.line(".SH %s", Escape(title)) }

// Bold adds a paragraph in bold.
func (p *Page) Bold(text string) { p.line(".PP\n.B %s", Escape(text)) }

// Text adds a paragraph.
func (p *Page) Text(text string) { p.line(".PP\n%s", Escape(text)) }

// Item adds an item of a list: a term in bold, and what it means.
func (p *Page) Item(term, text string) {
	p.line(".TP\n.B %s\n%s", Escape(term), strings.ReplaceAll(Escape(text), "\n", "\n.br\n"))
}

// Refer adds the name of a page, with what it is about when that is not "".
func (p *Page) Refer(name string, section int, short string) {
	if short == "" {
		p.line(".PP\n.BR %s (%d)", Escape(name), section)
		return
	}
	p.line(".TP\n.BR %s (%d)\n%s", Escape(name), section, Escape(short))
}

// String returns the page.
func (p *Page) String() string { return p.b.String() }

// date returns the date of the pages: SOURCE_DATE_EPOCH when it is set, so that a build can be reproduced, else the time of the commit.
func date() time.Time {
	var sec int64
	if _, err := fmt.Sscan(os.Getenv("SOURCE_DATE_EPOCH"), &sec); err == nil {
		return time.Unix(sec, 0).UTC()
	}
	if t, err := time.Parse(time.RFC3339, version.Get().Time); err == nil {
		return t
	}
	return time.Now().UTC()
}

// Escape returns a text as troff prints it unchanged.
func Escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
