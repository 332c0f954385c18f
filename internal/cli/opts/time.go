package opts

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
)

// Timestamp turns what users write behind --since and --until (a duration back from now, a date, a date and time with or
// without zone, or seconds since 1970 with a fraction) into seconds with nine decimals, the API's form.
func Timestamp(s string, now time.Time) (string, error) {
	if d, err := time.ParseDuration(s); err == nil && s != "0" { // 0 is 1970, as to docker
		t := now.Add(-d)
		return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
	}
	if sec, _, _ := strings.Cut(s, "."); sec != "" {
		if _, err := strconv.ParseInt(sec, 10, 64); err == nil {
			if _, err := strconv.ParseFloat(s, 64); err == nil {
				return s, nil
			}
		}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15Z07:00", "2006-01-02Z07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
		}
	}
	for _, layout := range []string{"2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
		}
	}
	return "", errs.New(errs.Invalid, "failed to parse value as time or duration: %q", s)
}
