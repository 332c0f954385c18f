package filter

import (
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
)

// layouts are the forms of a date that Docker takes; a missing zone means the zone of the engine.
var layouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15",
	"2006-01-02Z07:00", "2006-01-02", "2006-01-02T15:04Z07:00", "2006-01-02T15Z07:00",
}

// ParseTime reads a point in time as Docker's until filter takes it: a duration back from now ("24h"), a Unix time with or
// without fraction, or a date with or without time and zone.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	// Up to four digits are a year.
	if sec, frac, _ := strings.Cut(s, "."); isDigits(sec) && (frac == "" || isDigits(frac)) && len(sec) > 4 {
		n, err := strconv.ParseInt(sec, 10, 64)
		if err != nil {
			return time.Time{}, err
		}
		ns, err := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
		return time.Unix(n, ns), err
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errs.New(errs.Invalid, "not a duration, Unix time or date")
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
