package format

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
)

// ShortID returns the first 12 digits of an ID, without "sha256:".
func ShortID(id string) string {
	if i := strings.IndexByte(id, ':'); i >= 0 {
		id = id[i+1:]
	}
	if len(id) > 12 {
		id = id[:12]
	}
	return id
}

// Ellipsis shortens s to width runes. The last one is then an ellipsis.
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

// Size returns a size with three significant digits, as the table of images shows it.
func Size(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// Size4 returns a size with four significant digits.
func Size4(n int64) string { return units.HumanSize(float64(n)) }

// IEC returns a size in units that are powers of 1024.
func IEC(n float64) string { return units.BytesSize(n) }

// Ago returns the time from t to now in words.
func Ago(now, t time.Time) string { return units.HumanDuration(now.Sub(t)) + " ago" }

// Stamp returns a Unix time as docker prints it in columns named CreatedAt.
func Stamp(unix int64) string { return time.Unix(unix, 0).String() }

// Plural returns word for n = 1, and with an s for any other n.
func Plural(word string, n int) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
