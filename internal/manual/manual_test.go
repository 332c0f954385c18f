package manual

import (
	"strings"
	"testing"
)

// A text is printed as it is, also where its first character would begin a request.
func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"a-b":             `a\-b`,
		`C:\dir`:          `C:\edir`,
		".so /etc/passwd": `\&.so /etc/passwd`,
		"a\n'b":           "a\n\\&'b",
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
}

// Two pages of one commit have the same bytes.
func TestDate(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	p := New("ply-x", 8, "does x")
	p.Item("--flag", "two\nlines")
	p.Refer("ply", 1, "")
	want := ".SH NAME\nply\\-x \\- does x\n.TP\n.B \\-\\-flag\ntwo\n.br\nlines\n.PP\n.BR ply (1)\n"
	if first, rest, _ := strings.Cut(p.String(), "\n"); !strings.HasPrefix(first, `.TH "PLY\-X" 8 "1970-01-02" "ply `) || rest != want {
		t.Errorf("%s", p)
	}
}
