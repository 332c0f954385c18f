package stream

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/jsonstream"

	"ply/internal/wire"
)

// Docker's own demultiplexer reads the frames of writers that write at the same time.
func TestMuxIsReadByDocker(t *testing.T) {
	var buf bytes.Buffer
	m := NewMux(&buf)
	var wg sync.WaitGroup
	big := bytes.Repeat([]byte("x"), 3*maxFrame+5)
	for _, w := range []io.Writer{m.Stdout(), m.Stderr()} {
		wg.Go(func() {
			for i := range 200 {
				if _, err := fmt.Fprintf(w, "line %d\n", i); err != nil {
					t.Error(err)
				}
			}
			if n, err := w.Write(big); n != len(big) || err != nil {
				t.Errorf("Write = %d, %v", n, err)
			}
		})
	}
	wg.Wait()
	var stdout, stderr bytes.Buffer
	if _, err := stdcopy.StdCopy(&stdout, &stderr, &buf); err != nil {
		t.Fatal(err)
	}
	if stdout.String() != stderr.String() || strings.Count(stdout.String(), "\n") != 200 || stdout.Len() < len(big) {
		t.Errorf("stdout %d bytes, stderr %d bytes", stdout.Len(), stderr.Len())
	}
}

func TestFrame(t *testing.T) {
	var buf bytes.Buffer
	if _, err := NewMux(&buf).Stderr().Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if got := buf.Bytes(); got[0] != Stderr || got[1]|got[2]|got[3] != 0 || binary.BigEndian.Uint32(got[4:]) != 3 || string(got[8:]) != "abc" {
		t.Errorf("frame = %x", got)
	}
}

func TestBar(t *testing.T) {
	for want, p := range map[string]*wire.ProgressDetail{
		"": {},
		"[=========================>                         ]  524.3kB/1.049MB": {Current: 512 << 10, Total: 1 << 20},
		"[==================================================>]  1.049MB/1.049MB": {Current: 1 << 20, Total: 1 << 20},
		"[==================================================>]       3B":         {Current: 3, Total: 2},
		"      5B": {Current: 5},
		"[=========================>                         ]        1/2 items": {Current: 1, Total: 2, Units: "items"},
	} {
		if got := Bar(p); got != want {
			t.Errorf("%+v = %q, want %q", p, got, want)
		}
	}
	if got := Bar(nil); got != "" {
		t.Errorf("nil = %q", got)
	}
}

// gate is a writer that blocks until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	bytes.Buffer
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Buffer.Write(b)
}

// While the client does not read, the sender does not wait. The newest number of each counter and all other messages are kept.
func TestSlowClient(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	m := NewMessages(g, func() {})
	for i := range 100_000 {
		m.Put(wire.Message{ID: "layer", Status: "Downloading", Detail: &wire.ProgressDetail{Current: int64(i + 1), Total: 100_000}}, 1)
	}
	m.Put(wire.Message{ID: "layer", Status: "Pull complete", Detail: &wire.ProgressDetail{}}, 0)
	m.mu.Lock()
	kept := len(m.pending)
	m.mu.Unlock()
	if kept > 3 {
		t.Errorf("%d messages are kept", kept)
	}
	close(g.open)
	if started, err := m.Close(); !started || err != nil {
		t.Fatalf("Close = %v, %v", started, err)
	}
	lines := strings.Split(strings.TrimSpace(g.String()), "\r\n")
	var last, before jsonstream.Message
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-2]), &before); err != nil {
		t.Fatal(err)
	}
	if last.Status != "Pull complete" || before.Progress.Current != 100_000 {
		t.Errorf("last lines = %s", lines[len(lines)-2:])
	}
	m.Put(wire.Message{Status: "too late"}, 0)
	if strings.Contains(g.String(), "too late") {
		t.Error("a message after Close was written")
	}
}

// A message is replaced only by a newer number of the same counter and ID.
func TestWhatIsReplacedWhileTheClientIsSlow(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	m := NewMessages(g, func() {})
	m.Put(wire.Message{ID: "first", Status: "s"}, 0) // the writer may have taken this one already
	for _, msg := range []queued{
		{wire.Message{ID: "a", Status: "s", Detail: &wire.ProgressDetail{Current: 1}}, 1},
		{wire.Message{ID: "a", Status: "s", Detail: &wire.ProgressDetail{Current: 2}}, 1},
		{wire.Message{ID: "b", Status: "s", Detail: &wire.ProgressDetail{Current: 3}}, 1},
		{wire.Message{ID: "a", Status: "s", Detail: &wire.ProgressDetail{Current: 4}}, 2},
		{wire.Message{ID: "a", Status: "s", Detail: &wire.ProgressDetail{Current: 5}}, 0},
		{wire.Message{ID: "a", Status: "s", Detail: &wire.ProgressDetail{Current: 6}}, 2},
		{wire.Message{ID: "b", Status: "s", Detail: &wire.ProgressDetail{Current: 7}}, 1},
		{wire.Message{Status: "s", Detail: &wire.ProgressDetail{Current: 8}}, 1},
		{wire.Message{Status: "s", Detail: &wire.ProgressDetail{Current: 9}}, 1},
	} {
		m.Put(msg.Message, msg.counter)
	}
	close(g.open)
	if _, err := m.Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.SplitSeq(strings.TrimSpace(g.String()), "\r\n") {
		var msg jsonstream.Message
		if err := json.Unmarshal([]byte(line), &msg); err != nil {
			t.Fatal(err)
		}
		if msg.Progress != nil {
			got = append(got, msg.ID+fmt.Sprint(msg.Progress.Current))
		}
	}
	if want := "a2 b7 a4 a5 a6 8 9"; strings.Join(got, " ") != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestClientThatLeft(t *testing.T) {
	m := NewMessages(broken{}, func() {})
	m.Put(wire.Message{Status: "a"}, 0)
	for range 1000 {
		m.Put(wire.Message{Status: "b"}, 0)
	}
	if _, err := m.Close(); err == nil {
		t.Error("Close = nil, want the client's absence")
	}
}

func TestNothingSent(t *testing.T) {
	m := NewMessages(&bytes.Buffer{}, func() {})
	if started, err := m.Close(); started || err != nil {
		t.Errorf("Close = %v, %v", started, err)
	}
	if started, err := m.Close(); started || err != nil { // twice is once
		t.Errorf("second Close = %v, %v", started, err)
	}
}
