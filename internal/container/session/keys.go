package session

import (
	"cmp"
	"context"
	"io"
	"strings"
	"time"
)

// keyDelay is how long a possible beginning of the detach keys is kept back before it is passed on: long enough to type
// the next key, short enough for a user who means the key for the shell.
const keyDelay = 150 * time.Millisecond

var defaultDetachKeys = []byte{16, 17} // ctrl-p, ctrl-q

// parseDetachKeys parses docker's form: a comma-separated list of single characters and ctrl-X, X one of a-z @ [ \ ] ^ _.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return defaultDetachKeys, nil
	}
	bad := invalid("Invalid detach keys (%s) provided", clip(s))
	var out []byte
	for k := range strings.SplitSeq(s, ",") {
		if len(k) == 1 {
			out = append(out, k[0])
			continue
		}
		rest, ok := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		if !ok || len(rest) != 1 {
			return nil, bad
		}
		switch b := rest[0]; {
		case b >= 'a' && b <= 'z':
			out = append(out, b-'a'+1)
		case b == '@':
			out = append(out, 0)
		case b >= '[' && b <= '_':
			out = append(out, b-'['+27)
		default:
			return nil, bad
		}
	}
	return out, nil
}

// keyMatcher finds a sequence of keys in the input. It keeps back bytes that may be the beginning of the sequence.
// release passes them on but remembers them, so a user who types slowly still detaches.
type keyMatcher struct {
	keys []byte
	at   int // number of keys that were typed
	kept int // number of those that were not passed on yet
}

// feed appends to out the bytes of in to be passed on. found reports that the sequence is complete; the bytes kept
// back are then discarded.
func (m *keyMatcher) feed(in []byte, out []byte) (pass []byte, found bool) {
	for _, b := range in {
		for {
			if b == m.keys[m.at] {
				m.at++
				m.kept++
				if m.at == len(m.keys) {
					return out, true
				}
				break
			}
			if m.at == 0 {
				out = append(out, b)
				break
			}
			out = m.fallBack(out)
		}
	}
	return out, false
}

// fallBack keeps back the longest suffix of the typed keys that is a prefix of the sequence, and passes on the rest.
func (m *keyMatcher) fallBack(out []byte) []byte {
	typed := m.keys[:m.at]
	next := 0
	for n := m.at - 1; n > 0; n-- {
		if string(typed[m.at-n:]) == string(m.keys[:n]) {
			next = n
			break
		}
	}
	keep := min(next, m.kept)
	out = append(out, typed[m.at-m.kept:m.at-keep]...)
	m.at, m.kept = next, keep
	return out
}

// release returns the bytes that are kept back.
func (m *keyMatcher) release() []byte {
	pass := m.keys[m.at-m.kept : m.at]
	m.kept = 0
	return pass
}

// copyKeys copies from in to w until in ends or the keys are typed (ErrDetached).
func copyKeys(ctx context.Context, w io.Writer, in io.Reader, keys []byte) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type chunk struct {
		data []byte
		err  error
	}
	chunks := make(chan chunk)
	go func() { // ends with in, which the caller closes
		for {
			buf := make([]byte, 4<<10)
			n, err := in.Read(buf)
			select {
			case chunks <- chunk{buf[:n], err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	m := keyMatcher{keys: keys}
	var late <-chan time.Time
	for {
		select {
		case c := <-chunks:
			pass, found := m.feed(c.data, nil)
			if len(pass) > 0 {
				if _, err := w.Write(pass); err != nil {
					return err
				}
			}
			if found {
				return ErrDetached
			}
			late = nil
			if c.err != nil {
				_, err := w.Write(m.release())
				return cmp.Or(err, c.err)
			}
			if m.kept > 0 {
				late = time.After(keyDelay)
			}
		case <-late:
			late = nil
			if _, err := w.Write(m.release()); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
