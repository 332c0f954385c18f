package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"ply/internal/api/listen"
	"ply/internal/errs"
	"ply/internal/filter"
)

// maxBody is the largest JSON body that is read, in bytes. Tar streams are limited by their readers.
const maxBody = 8 << 20

// bodyTimeout is how long a client may take to send a JSON body.
const bodyTimeout = 60 * time.Second

// maxDepth is the deepest nesting of a JSON body.
const maxDepth = 64

// call is one request, with what its handler needs to answer it.
type call struct {
	w    *recorder
	r    *http.Request
	v    int // minor version of the API
	vars map[string]string
	q    url.Values
}

func (c *call) ctx() context.Context { return c.r.Context() }

// stream says that this request waits for something to happen, perhaps for days. Its handler calls done at its end.
func (c *call) stream() (done func(), err error) { return listen.Stream(c.ctx()) }

// wait is stream for a request whose connection is not taken over. It ends with its client.
func (c *call) wait() (done func(), err error) {
	if err := c.drain(); err != nil {
		return nil, err
	}
	return c.stream()
}

func (c *call) parseQuery() error {
	q, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return errs.New(errs.Invalid, "invalid query: %w", err)
	}
	c.q = q
	return nil
}

// get returns a query parameter, or "".
func (c *call) get(key string) string { return c.q.Get(key) }

// bool reads a truth value as Docker does: absent, empty, 0, no, false and none are false, everything else is true.
func (c *call) bool(key string) bool {
	switch strings.ToLower(strings.TrimSpace(c.q.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// boolOr is bool with another value for an absent or empty parameter.
func (c *call) boolOr(key string, def bool) bool {
	if c.q.Get(key) == "" {
		return def
	}
	return c.bool(key)
}

// int reads a number. ok is false when the parameter is absent.
func (c *call) int(key string) (n int, ok bool, err error) {
	s := c.q.Get(key)
	if s == "" {
		return 0, false, nil
	}
	n, err = strconv.Atoi(s)
	if err != nil {
		return 0, false, errs.New(errs.Invalid, "parameter %s: %q is not a number", key, clip(s))
	}
	return n, true, nil
}

// size reads the size of a terminal from the parameters h and w.
func (c *call) size() (height, width uint, err error) {
	for _, p := range []struct {
		key string
		to  *uint
	}{{"h", &height}, {"w", &width}} {
		n, err := strconv.ParseUint(c.q.Get(p.key), 10, 16)
		if err != nil {
			return 0, 0, errs.New(errs.Invalid, "parameter %s: %q is not a terminal size", p.key, clip(c.q.Get(p.key)))
		}
		*p.to = uint(n)
	}
	return height, width, nil
}

// time reads a time: seconds[.nanoseconds] since 1970, or RFC 3339. It returns the zero time when the parameter is absent or "0".
func (c *call) time(key string) (time.Time, error) {
	s := c.q.Get(key)
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	sec, frac, _ := strings.Cut(s, ".")
	if n, err := strconv.ParseInt(sec, 10, 64); err == nil && strings.Trim(frac, "0123456789") == "" {
		frac = (frac + "000000000")[:9]
		ns, _ := strconv.ParseInt(frac, 10, 64)
		return time.Unix(n, ns), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	return time.Time{}, errs.New(errs.Invalid, "parameter %s: %q is neither seconds since 1970 nor an RFC 3339 time", key, clip(s))
}

// filters reads the parameter filters. The service that applies the filters checks keys and values.
func (c *call) filters() (filter.Args, error) { return filter.Parse(c.q.Get("filters")) }

// hasBody reports whether the request may carry a body.
func (c *call) hasBody() bool {
	return c.r.Body != nil && c.r.Body != http.NoBody && c.r.ContentLength != 0
}

// body reads the JSON body into v. Unknown fields are ignored, because clients may be newer than the engine. A missing body
// is an error, unless optional is set.
func (c *call) body(v any, optional bool) error {
	b, err := c.bytes()
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(b)) == 0 {
		if optional {
			return nil
		}
		return errs.New(errs.Invalid, "request body is empty: want a JSON object")
	}
	if err := c.jsonType(); err != nil {
		return err
	}
	if err := checkDepth(b); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(v); err != nil {
		return bodyError(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errs.New(errs.Invalid, "request body: unexpected content after the JSON value")
	}
	return nil
}

// bytes reads the whole body, which may have at most maxBody bytes.
func (c *call) bytes() ([]byte, error) {
	var b bytes.Buffer
	err := c.readBody(&b)
	return b.Bytes(), err
}

// drain reads the body of a request that needs none. net/http notices that a client is gone only behind the end of the body: without it,
// what the request waits for would go on for ever.
func (c *call) drain() error { return c.readBody(io.Discard) }

// readBody copies the whole body, which may have at most maxBody bytes.
func (c *call) readBody(to io.Writer) error {
	if !c.hasBody() {
		return nil
	}
	rc := http.NewResponseController(c.w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // some kinds of connections have no deadlines
	n, err := io.Copy(to, io.LimitReader(c.r.Body, maxBody+1))
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		return errs.New(errs.Invalid, "request body: %w", err)
	}
	if n > maxBody {
		return &statusError{http.StatusRequestEntityTooLarge, errs.New(errs.Invalid, "request body is larger than %d MiB", maxBody>>20)}
	}
	return nil
}

func (c *call) jsonType() error {
	header := c.r.Header.Get("Content-Type")
	if t, _, err := mime.ParseMediaType(header); err != nil || t != "application/json" {
		return errs.New(errs.Invalid, "unsupported Content-Type header (%s): must be 'application/json'", clip(header))
	}
	return nil
}

func bodyError(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		// Config and Resources are embedded in the Go types and flat in JSON.
		field := strings.ReplaceAll(strings.TrimPrefix(wrong.Field, "Config."), "Resources.", "")
		return errs.New(errs.Invalid, "request body: %s: want %s, got %s", clip(field), wrong.Type, wrong.Value)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errs.New(errs.Invalid, "request body: the JSON ends too early")
	}
	return errs.New(errs.Invalid, "request body: %w", err)
}

// checkDepth refuses JSON that nests deeper than maxDepth.
func checkDepth(b []byte) error {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch ch := b[i]; {
		case quoted && ch == '\\':
			i++
		case ch == '"':
			quoted = !quoted
		case quoted:
		case ch == '{' || ch == '[':
			if depth++; depth > maxDepth {
				return errs.New(errs.Invalid, "request body: JSON nested deeper than %d", maxDepth)
			}
		case ch == '}' || ch == ']':
			depth--
		}
	}
	return nil
}

// json answers with a status and a value.
func (c *call) json(status int, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_, err = c.w.Write(b)
	return err
}

// encode returns v as JSON with a newline. Unlike json.Marshal it does not escape <, > and &.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, errs.New(errs.Internal, "answer: %w", err)
	}
	return buf.Bytes(), nil
}

// none answers without a body.
func (c *call) none(status int) error {
	c.w.WriteHeader(status)
	return nil
}
