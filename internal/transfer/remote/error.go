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

// maxError bounds how much of the body of an error is read, in bytes.
const maxError = 64 << 10

// Error is an answer of a registry with a status outside 2xx.
type Error struct {
	Method     string
	URL        string // without user and query, which may be secret
	Status     int
	Codes      []Code
	RetryAfter time.Duration // how long the registry asks to wait; 0 = it does not say
}

// Code is one entry of the body of an error. Control characters are removed from its text, and a long text is cut.
type Code struct {
	Code    string
	Message string
}

// Error returns the text of the registry, such as "manifest unknown: manifest unknown", or the status if it sent none.
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

// Is compares with the classes of package errs.
func (e *Error) Is(target error) bool { return target == errs.OfStatus(e.Status) }

// Has reports whether the body has an entry with this code.
func (e *Error) Has(code string) bool {
	for _, c := range e.Codes {
		if strings.EqualFold(c.Code, code) {
			return true
		}
	}
	return false
}

// Temporary reports whether the same request may succeed later. Errors of the connection and of a busy registry are temporary,
// refusals are not.
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

// Unreachable reports whether nothing answers at the address of the registry, so that sending the request again at once is useless.
func Unreachable(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) ||
		errors.As(err, &dns) && dns.IsNotFound
}

// RetryAfter returns how long the registry asks to wait; 0 = it does not say.
func RetryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// blames reports whether an error is a reason to mark a mirror as bad. That the mirror does not have some content is no reason.
func blames(err error) bool {
	return !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid)
}

// answerError returns the *Error of a response and closes its body.
func answerError(resp *http.Response) error {
	defer resp.Body.Close()
	e := &Error{Method: resp.Request.Method, URL: redact(resp.Request.URL), Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxError)) // after an error, the part that was read
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

// clean removes what must not reach a terminal or a log from text of a registry, and cuts it to 500 characters.
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

// retryAfter parses the header Retry-After, which has seconds or a date; 0 when it is missing or malformed.
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

// redact returns a URL without what may be secret: user, query (presigned URLs of storage) and fragment.
func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
