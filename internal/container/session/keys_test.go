package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"
)

func TestParseDetachKeys(t *testing.T) {
	for in, want := range map[string]string{
		"": "\x10\x11", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-a,b,ctrl-_": "\x01b\x1f", "ctrl-@": "\x00", "CTRL-[": "\x1b", "ctrl-\\": "\x1c",
	} {
		if got, err := parseDetachKeys(in); err != nil || string(got) != want {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"ctrl-", "ctrl-1", "ab", "a,,b", "alt-x", "ctrl-p,"} {
		if _, err := parseDetachKeys(in); err == nil {
			t.Errorf("%q was taken", in)
		}
	}
}

func TestKeyMatcher(t *testing.T) {
	for _, c := range []struct {
		keys, in, pass string
		found          bool
	}{
		{"\x10\x11", "abc", "abc", false},
		{"\x10\x11", "a\x10\x11b", "a", true},
		{"\x10\x11", "\x10a", "\x10a", false},
		{"\x10\x11", "\x10\x10\x11", "\x10", true},
		{"aab", "aaab", "a", true},
		{"aab", "aac", "aac", false},
		{"abab!", "ababab!", "ab", true},
	} {
		m := keyMatcher{keys: []byte(c.keys)}
		got, found := m.feed([]byte(c.in), nil)
		if string(got) != c.pass || found != c.found {
			t.Errorf("keys %q in %q: %q %v, want %q %v", c.keys, c.in, got, found, c.pass, c.found)
		}
		m = keyMatcher{keys: []byte(c.keys)} // the same byte by byte
		var all []byte
		for i := range len(c.in) {
			if all, found = m.feed([]byte{c.in[i]}, all); found {
				break
			}
		}
		if string(all) != c.pass || found != c.found {
			t.Errorf("byte by byte, keys %q in %q: %q %v", c.keys, c.in, all, found)
		}
	}
}

// The first detach key alone reaches the process after a moment, and the rest of the sequence still detaches.
func TestLoneKeyIsPassedOn(t *testing.T) {
	in, typed := io.Pipe()
	out := make(chan []byte, 10)
	done := make(chan error, 1)
	go func() { done <- copyKeys(context.Background(), chanWriter(out), in, defaultDetachKeys) }()
	if _, err := typed.Write([]byte{16}); err != nil {
		t.Fatal(err)
	}
	select {
	case b := <-out:
		if !bytes.Equal(b, []byte{16}) {
			t.Errorf("passed on %q", b)
		}
	case <-time.After(time.Minute):
		t.Fatal("ctrl-p was swallowed")
	}
	if _, err := typed.Write([]byte{17}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrDetached) {
		t.Errorf("end: %v", err)
	}
}

type chanWriter chan []byte

func (c chanWriter) Write(p []byte) (int, error) {
	c <- bytes.Clone(p)
	return len(p), nil
}
