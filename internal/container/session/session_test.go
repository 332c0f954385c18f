package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"ply/internal/container/logfile"
	"ply/internal/container/shim"
	"ply/internal/container/spec"
	"ply/internal/errs"
	"ply/internal/oci"
)

// fakeContainer runs nothing.
type fakeContainer struct {
	run     *Run
	blocked error
	removed chan struct{}
}

func (f *fakeContainer) ID() oci.ContainerID { return "c" }
func (f *fakeContainer) Running() (*Run, error) {
	if f.run == nil {
		return nil, errs.New(errs.Conflict, "container c is not running")
	}
	return f.run, nil
}
func (f *fakeContainer) CheckState(string) error    { return f.blocked }
func (f *fakeContainer) Streams() (tty, stdin bool) { return false, true }
func (f *fakeContainer) Log() (shim.Log, error)     { return LogConfig("none", nil) }
func (f *fakeContainer) Publish(string, ...string)  {}
func (f *fakeContainer) Removed() <-chan struct{}   { return f.removed }
func (f *fakeContainer) Process(spec.ExecSpec, [2]uint) (*specs.Process, error) {
	return nil, errors.New("not called")
}

func newSet() (*Set, *fakeContainer) {
	f := &fakeContainer{removed: make(chan struct{})}
	return NewSet(f, NewRegistry(context.Background(), &sync.WaitGroup{})), f
}

// An exec belongs to one run: it cannot be made after the end of the run, nor started.
func TestExecEndsWithItsRun(t *testing.T) {
	s, f := newSet()
	cmd := spec.ExecSpec{Cmd: []string{"true"}}
	if _, err := s.NewExec(cmd); !errors.Is(err, errs.Conflict) {
		t.Errorf("NewExec without a run = %v, want Conflict", err)
	}
	f.run = &Run{}
	s.Begin(f.run)
	e, err := s.NewExec(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Resize(t.Context(), 24, 80); err != nil || e.size != [2]uint{24, 80} {
		t.Errorf("Resize before the start: %v, size %v", err, e.size)
	}
	if err := e.Resize(t.Context(), 1<<16, 1); !errors.Is(err, errs.Invalid) {
		t.Errorf("Resize to 65536 = %v, want Invalid", err)
	}
	if ids := s.Execs(); len(ids) != 1 || ids[0] != e.ID() {
		t.Errorf("Execs = %v", ids)
	}
	s.End()
	// The container still reports the run for a moment.
	if _, err := s.NewExec(cmd); !errors.Is(err, errs.Conflict) {
		t.Errorf("NewExec after the end = %v, want Conflict", err)
	}
	if ids := s.Execs(); len(ids) != 0 {
		t.Errorf("Execs after the end = %v", ids)
	}
	if err := e.Start(t.Context(), AttachOptions{}, true, [2]uint{}); !errors.Is(err, errs.Conflict) {
		t.Errorf("Start after the end = %v, want Conflict", err)
	}
	if found, err := s.reg.Find(e.ID()); !errors.Is(err, errs.NotFound) {
		t.Errorf("an exec that can never start any more is found: %+v, %v", found, err)
	}
	f.blocked = errs.New(errs.Conflict, "container c is paused, unpause the container before exec")
	if _, err := s.NewExec(cmd); !errors.Is(err, f.blocked) {
		t.Errorf("NewExec while paused = %v, want %v", err, f.blocked)
	}
}

// A client that attaches before the start waits until the container is removed, or until it leaves itself.
func TestAttachWaits(t *testing.T) {
	for name, end := range map[string]func(*Set, *fakeContainer, context.CancelFunc){
		"removed": func(_ *Set, f *fakeContainer, _ context.CancelFunc) { close(f.removed) },
		"dropped": func(s *Set, _ *fakeContainer, _ context.CancelFunc) { s.Drop() },
		"left":    func(_ *Set, _ *fakeContainer, leave context.CancelFunc) { leave() },
	} {
		s, f := newSet()
		ctx, leave := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- s.Attach(ctx, AttachOptions{Stream: true, Stdout: &bytes.Buffer{}, Ready: func() error { close(ready); return nil }})
		}()
		<-ready
		select {
		case err := <-done:
			t.Fatalf("%s: Attach returned %v before the start", name, err)
		case <-time.After(10 * time.Millisecond):
		}
		end(s, f, leave)
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Attach = %v", name, err)
		}
		if len(s.waiting) != 0 {
			t.Errorf("%s: a client is still waiting", name)
		}
		leave()
	}
}

// A client that leaves before it is told that it is attached is not waiting any more.
func TestAttachOfClientThatLeft(t *testing.T) {
	s, _ := newSet()
	left := errors.New("left")
	if err := s.Attach(t.Context(), AttachOptions{Stream: true, Stdout: &bytes.Buffer{}, Ready: func() error { return left }}); !errors.Is(err, left) {
		t.Errorf("Attach = %v", err)
	}
	if len(s.waiting) != 0 {
		t.Error("the client is still waiting")
	}
}

func TestLogs(t *testing.T) {
	s, _ := newSet()
	if err := s.Logs(t.Context(), LogOptions{}, nil, nil); !errors.Is(err, errs.Invalid) {
		t.Errorf("Logs without a stream = %v, want Invalid", err)
	}
	if err := s.Logs(t.Context(), LogOptions{Stdout: true}, nil, nil); !errors.Is(err, errs.Unimplemented) {
		t.Errorf("Logs of the driver none = %v, want Unimplemented", err)
	}
	for _, c := range []struct {
		opts  map[string]string
		size  int64
		files int
	}{
		{nil, defaultLogSize, defaultLogFiles},
		{map[string]string{"max-size": "1m", "max-file": "2"}, 1 << 20, 2},
		{map[string]string{"max-size": "1m"}, 1 << 20, 1},
		{map[string]string{"max-file": "3"}, defaultLogSize, 3},
	} {
		l, err := LogConfig("json-file", c.opts)
		if err != nil || l.MaxSize != c.size || l.MaxFiles != c.files {
			t.Errorf("LogConfig(%v) = %+v, %v, want %d bytes in %d files", c.opts, l, err, c.size, c.files)
		}
	}
}

// Docker's clients take each write for a line. Records, which carry a place, are written together.
func TestLinesAreWrittenOneByOne(t *testing.T) {
	list := []logfile.Message{
		{Stream: shim.Stdout, Line: []byte("one\n")}, {Stream: shim.Stdout, Line: []byte("par")}, {Stream: shim.Stdout, Line: []byte("ted\n")}, {Stream: shim.Stderr, Line: []byte("error\n")},
	}
	var out, errOut writes
	w := lineWriter{out: [3]io.Writer{shim.Stdout: &out, shim.Stderr: &errOut}}
	if err := w.write(list); err != nil {
		t.Fatal(err)
	}
	if got := append(out, errOut...); !slices.Equal(got, []string{"one\n", "par", "ted\n", "error\n"}) {
		t.Errorf("writes %q", got)
	}
	var records writes
	w = lineWriter{out: w.out, opts: LogOptions{Record: func(_ byte, text []byte, _ LogPlace) error {
		_, err := records.Write(text)
		return err
	}}}
	if err := w.write(list); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(records, []string{"one\nparted\n", "error\n"}) {
		t.Errorf("records %q", records)
	}
}

// writes keeps what it is written, one by one.
type writes []string

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, string(p))
	return len(p), nil
}
