package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"ply/internal/errs"
)

// maxError bounds what is read of an error's body, in bytes.
const maxError = 64 << 10

// Error is an answer of a registry that is not a success. Callers branch on Status, Codes and RetryAfter.
type Error struct {
	Method     string
	URL        string // without user and query
	Status     int
	Codes      []Code
	RetryAfter time.Duration // what the registry asks for; 0 = nothing
}

// Code is one entry of a registry's error body; its text is cleaned of control characters and cut.
type Code struct {
	Code    string
	Message string
}

// Error gives the registry's own words where it had some: "manifest unknown: manifest unknown".
func (e *Error) Error() string {
	if len(e.Codes) == 0 {
		if e.Status == http.StatusTooManyRequests {
			return "toomanyrequests: the registry refuses more requests for now"
		}
		return fmt.Sprintf("%s %s: unexpected status %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
	}
	var parts []string
	for _, c := range e.Codes {
		name := strings.ToLower(strings.ReplaceAll(c.Code, "_", " "))
		switch {
		case name == "":
			parts = append(parts, c.Message)
		case c.Message == "":
			parts = append(parts, name)
		default:
			parts = append(parts, name+": "+c.Message)
		}
	}
	return strings.Join(parts, "; ")
}

// Is gives the class.
func (e *Error) Is(target error) bool {
	switch e.Status {
	case http.StatusUnauthorized:
		return target == errs.Unauthorized
	case http.StatusForbidden:
		return target == errs.Forbidden
	case http.StatusNotFound, http.StatusGone:
		return target == errs.NotFound
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return target == errs.Unimplemented
	case http.StatusTooManyRequests, http.StatusRequestTimeout:
		return target == errs.Unavailable
	}
	if e.Status >= 500 {
		return target == errs.Unavailable
	}
	return target == errs.Invalid
}

// Has reports whether the registry named a code.
func (e *Error) Has(code string) bool {
	for _, c := range e.Codes {
		if strings.EqualFold(c.Code, code) {
			return true
		}
	}
	return false
}

// Temporary reports whether the same request may succeed later: errors of transport and of busy registries may, refusals may not.
func Temporary(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		switch e.Status {
		case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusTooEarly:
			return true
		}
		return e.Status >= 500 && e.Status != http.StatusNotImplemented
	}
	if e, ok := errors.AsType[*errs.Error](err); ok {
		return e.Class == errs.Unavailable
	}
	return true
}

// Unreachable reports whether nobody answers at the registry's address at all: asking again at once would only make people wait.
func Unreachable(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.As(err, &dns) && dns.IsNotFound
}

// RetryAfter is what the registry asked for; 0 = nothing.
func RetryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// blames reports whether an error of a mirror is a reason to pass it over for a while; that it has not got something is none.
func blames(err error) bool {
	return !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid)
}

// answerError reads the error out of a response and closes its body.
func answerError(resp *http.Response) error {
	defer resp.Body.Close()
	e := &Error{Method: resp.Request.Method, URL: redact(resp.Request.URL), Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // what there is of it
	e.Codes = parseCodes(body)
	return e
}

func parseCodes(body []byte) []Code {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"`
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return nil
	}
	var codes []Code
	for _, e := range doc.Errors {
		if len(codes) == 8 {
			break
		}
		codes = append(codes, Code{clean(e.Code), clean(e.Message)})
	}
	if len(codes) == 0 && doc.Details+doc.Message != "" {
		codes = append(codes, Code{Message: clean(doc.Details + doc.Message)})
	}
	return codes
}

// clean makes text of a stranger fit for a terminal and a log line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 500 {
		s = string(r[:500]) + "…"
	}
	return strings.TrimSpace(s)
}

// retryAfter reads seconds or a date; 0 for none and for nonsense.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		if n < 0 {
			return 0
		}
		return time.Duration(min(n, 1<<31)) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// redact leaves out what may be secret: user, query (presigned storage URLs) and fragment.
func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
