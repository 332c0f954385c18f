package remote

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"ply/internal/errs"
)

// Error is an answer with a status outside 2xx.
type Error struct {
	Host       string
	Status     int
	Message    string        // of the registry; "" = none. It has no control characters.
	RetryAfter time.Duration // 0 = it does not say
}

func (e *Error) Error() string {
	s := fmt.Sprintf("registry %s answers %d %s", e.Host, e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

// Is compares with the classes of package errs.
func (e *Error) Is(target error) bool { return target == errs.OfStatus(e.Status) }

// answerError returns the *Error of a response and closes its body.
func answerError(resp *http.Response) error {
	defer resp.Body.Close()
	e := &Error{Host: resp.Request.URL.Host, Status: resp.StatusCode}
	if n, err := strconv.ParseInt(resp.Header.Get("Retry-After"), 10, 32); err == nil && n > 0 {
		e.RetryAfter = time.Duration(n) * time.Second
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // after an error, the part that was read
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		e.Message = printable(strings.TrimSpace(doc.Errors[0].Code + " " + doc.Errors[0].Message))
	}
	return e
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	return clip(s)
}
