package format

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
)

// ShortID cuts "sha256:" and all but 12 digits.
func ShortID(id string) string {
	if i := strings.IndexByte(id, ':'); i >= 0 {
		id = id[i+1:]
	}
	if len(id) > 12 {
		id = id[:12]
	}
	return id
}

// Ellipsis cuts s to width runes, the last of them being the ellipsis.
func Ellipsis(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	r := []rune(s)
	if width == 1 {
		return string(r[:1])
	}
	return string(r[:width-1]) + "…"
}

// Size is a size with three significant digits, as the images table shows it.
func Size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// Size4 is a size with four significant digits.
func Size4(n int64) string { return units.HumanSize(float64(n)) }

// IEC is a size in powers of 1024.
func IEC(n float64) string { return units.BytesSize(n) }

// Ago is the human time since t.
func Ago(now, t time.Time) string { return units.HumanDuration(now.Sub(t)) + " ago" }

// Stamp is a Unix time as docker prints it in CreatedAt columns.
func Stamp(unix int64) string { return time.Unix(unix, 0).String() }
