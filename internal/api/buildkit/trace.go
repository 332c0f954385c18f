package buildkit

import (
	"context"
	"errors"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/timestamppb"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/errs"
)

const (
	// maxPending is how much progress, in bytes of logs, waits for a client that reads slowly. A step that prints more waits, as at a full pipe.
	maxPending = 4 << 20
	// stallLimit is how long a client may read nothing before its build fails.
	stallLimit = 2 * time.Minute
	// flushEvery is the shortest time between two messages of progress.
	flushEvery = 40 * time.Millisecond
)

// Trace is the progress of one build, for one reader. Safe for concurrent use.
type Trace struct {
	mu      sync.Mutex
	pending *controlapi.StatusResponse
	bytes   int
	ended   bool
	lossy   bool               // while nobody reads, logs that do not fit are dropped
	read    bool               // it has a reader
	broken  error              // why nobody reads any more
	drained chan struct{}      // closed and replaced when pending was taken
	wake    chan struct{}      // has a value when something is pending
	first   string             // the vertex to which warnings belong
	started map[string]*vertex // by digest
	now     func() time.Time
}

// vertex is one that began.
type vertex struct {
	msg      *controlapi.Vertex
	statuses map[string]*controlapi.VertexStatus // that have not ended, by ID
}

var _ build.Listener = (*Trace)(nil)

// NewTrace returns an empty trace.
func NewTrace() *Trace {
	return &Trace{
		pending: &controlapi.StatusResponse{}, drained: make(chan struct{}), wake: make(chan struct{}, 1), started: map[string]*vertex{}, now: time.Now,
	}
}

// add queues what put adds to the message that is sent next. n is what it takes of the bytes that may wait.
func (t *Trace) add(n int, put func(m *controlapi.StatusResponse)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lossy && !t.read && t.bytes > 0 && t.bytes+n > maxPending {
		return
	}
	var late <-chan time.Time
	for t.bytes > 0 && t.bytes+n > maxPending && t.broken == nil && !t.ended {
		if late == nil {
			timer := time.NewTimer(stallLimit)
			defer timer.Stop()
			late = timer.C
		}
		drained := t.drained
		t.mu.Unlock()
		select {
		case <-drained:
			t.mu.Lock()
		case <-late:
			t.mu.Lock()
			if t.broken == nil {
				t.broken = errs.New(errs.Unavailable, "the client has read no progress of its build for %s", stallLimit)
				t.signal()
			}
		}
	}
	if t.broken != nil || t.ended {
		return
	}
	put(t.pending)
	t.bytes += n
	t.signal()
}

// signal wakes the reader. The caller holds mu.
func (t *Trace) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// End tells Send that nothing more comes.
func (t *Trace) End() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.signal()
}

// setNow makes the next events those of a time.
func (t *Trace) setNow(at time.Time) { t.now = func() time.Time { return at } }

// claim makes the caller the reader, if there is none.
func (t *Trace) claim() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.read {
		return false
	}
	t.read = true
	return true
}

// Send passes the progress to send, some of it at a time, until End. It returns the error of send.
func (t *Trace) Send(ctx context.Context, send func(*controlapi.StatusResponse) error) error {
	for {
		select {
		case <-t.wake:
		case <-ctx.Done():
			return t.fail(context.Cause(ctx))
		}
		t.mu.Lock()
		m, ended, broken := t.pending, t.ended, t.broken
		t.pending, t.bytes = &controlapi.StatusResponse{}, 0
		close(t.drained)
		t.drained = make(chan struct{})
		t.mu.Unlock()
		if broken != nil {
			return broken
		}
		if len(m.Vertexes)+len(m.Statuses)+len(m.Logs)+len(m.Warnings) > 0 {
			for _, part := range split(m) {
				if err := send(part); err != nil {
					return t.fail(err)
				}
			}
		}
		if ended {
			return nil
		}
		select {
		case <-time.After(flushEvery):
		case <-ctx.Done():
		}
	}
}

// fail lets nobody wait for a reader that is gone.
func (t *Trace) fail(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken == nil {
		t.broken = err
		close(t.drained)
		t.drained = make(chan struct{})
	}
	return err
}

// maxLogs is how many bytes of logs one message has.
const maxLogs = 1 << 20

// split divides a message so that no part is too long for a client. Vertices that have ended are after their logs.
func split(m *controlapi.StatusResponse) []*controlapi.StatusResponse {
	printed := map[string]bool{}
	for _, l := range m.Logs {
		printed[l.Vertex] = true
	}
	var running, ended []*controlapi.Vertex
	for _, v := range m.Vertexes {
		if v.Completed == nil || !printed[v.Digest] {
			running = append(running, v)
		} else {
			ended = append(ended, v)
		}
	}
	out := []*controlapi.StatusResponse{{Vertexes: running, Statuses: m.Statuses, Warnings: m.Warnings}}
	if n := len(out[0].Vertexes) + len(out[0].Statuses) + len(out[0].Warnings); n == 0 {
		out = out[:0]
	}
	size := 0
	var part *controlapi.StatusResponse
	for _, l := range m.Logs {
		if part == nil || size+len(l.Msg) > maxLogs {
			part, size = &controlapi.StatusResponse{}, 0
			out = append(out, part)
		}
		part.Logs = append(part.Logs, l)
		size += len(l.Msg)
	}
	if len(out) > 1 && len(out[0].Logs) == 0 && size <= maxLogs && len(out) == 2 {
		out[0].Logs = out[1].Logs
		out = out[:1]
	}
	switch len(out) {
	case 0:
		out = append(out, &controlapi.StatusResponse{Vertexes: m.Vertexes})
	case 1:
		out[0].Vertexes = m.Vertexes // in their order
	default:
		out[len(out)-1].Vertexes = ended
	}
	return out
}

// Start implements solver.Progress.
func (t *Trace) Start(v *ops.Vertex) {
	msg := &controlapi.Vertex{Digest: v.Digest.String(), Name: v.Name, Started: timestamppb.New(t.now())}
	for _, in := range v.Inputs {
		if !in.IsZero() {
			msg.Inputs = append(msg.Inputs, in.Vertex.Digest.String())
		}
	}
	if v.Group != nil {
		msg.ProgressGroup = &pb.ProgressGroup{Id: v.Group.ID, Name: v.Group.Name, Weak: v.Group.Weak}
	}
	t.begin(msg)
}

func (t *Trace) begin(msg *controlapi.Vertex) {
	t.add(0, func(m *controlapi.StatusResponse) {
		if t.first == "" {
			t.first = msg.Digest
		}
		t.started[msg.Digest] = &vertex{msg: msg, statuses: map[string]*controlapi.VertexStatus{}}
		m.Vertexes = append(m.Vertexes, msg)
	})
}

// Log implements solver.Progress.
func (t *Trace) Log(v *ops.Vertex, stderr bool, data []byte) {
	l := &controlapi.VertexLog{Vertex: v.Digest.String(), Timestamp: timestamppb.New(t.now()), Stream: 1, Msg: append([]byte(nil), data...)}
	if stderr {
		l.Stream = 2
	}
	t.add(len(data)+100, func(m *controlapi.StatusResponse) { m.Logs = append(m.Logs, l) })
}

// Status implements solver.Progress.
func (t *Trace) Status(v *ops.Vertex, s solver.Status) {
	if s.ID == "" {
		return // which container runs the step is of no use to BuildKit's clients
	}
	t.status(v.Digest.String(), s)
}

func (t *Trace) status(vertex string, s solver.Status) {
	now := timestamppb.New(t.now())
	t.add(0, func(m *controlapi.StatusResponse) {
		v := t.started[vertex]
		if v == nil {
			return
		}
		msg := &controlapi.VertexStatus{ID: s.ID, Vertex: vertex, Name: s.ID, Current: s.Current, Total: s.Total, Timestamp: now, Started: now}
		if old := v.statuses[s.ID]; old != nil {
			msg.Started = old.Started
		}
		if s.Done {
			msg.Completed = now
			delete(v.statuses, s.ID)
		} else {
			v.statuses[s.ID] = msg
		}
		// Only the latest count matters to a reader that has not seen the one before.
		for i, o := range m.Statuses {
			if o.ID == s.ID && o.Vertex == vertex {
				m.Statuses[i] = msg
				return
			}
		}
		m.Statuses = append(m.Statuses, msg)
	})
}

// Done implements solver.Progress.
func (t *Trace) Done(v *ops.Vertex, o solver.Outcome) { t.end(v.Digest.String(), o.Cached, o.Err) }

func (t *Trace) end(d string, cached bool, err error) {
	now := timestamppb.New(t.now())
	t.add(0, func(m *controlapi.StatusResponse) {
		v := t.started[d]
		if v == nil {
			return
		}
		delete(t.started, d)
		msg := v.msg.CloneVT()
		msg.Completed, msg.Cached = now, cached
		if err != nil {
			msg.Error = err.Error()
			if step := (*solver.VertexError)(nil); errors.As(err, &step) {
				msg.Error = step.Err.Error() // the vertex says which step it is
			}
			if errors.Is(err, context.Canceled) {
				msg.Error = "CANCELED: context canceled" // as clients know it
			}
		}
		for _, s := range v.statuses {
			s = s.CloneVT()
			s.Completed = now
			m.Statuses = append(m.Statuses, s)
		}
		m.Vertexes = append(m.Vertexes, msg)
	})
}

// Warn implements build.Listener.
func (t *Trace) Warn(w dockerfile.Warning) {
	short := w.Message
	if w.Rule != "" {
		short = w.String()
	}
	msg := &controlapi.VertexWarning{Level: 1, Short: []byte(short), Url: w.URL}
	if w.Detail != "" {
		msg.Detail = [][]byte{[]byte(w.Detail)}
	}
	if len(w.File.Data) > 0 {
		msg.Info = &pb.SourceInfo{Filename: w.File.Name, Data: w.File.Data}
	}
	for _, r := range w.Ranges {
		msg.Ranges = append(msg.Ranges, &pb.Range{
			Start: &pb.Position{Line: int32(r.Start), Character: int32(r.StartChar)}, End: &pb.Position{Line: int32(r.End), Character: int32(r.EndChar)},
		})
	}
	t.add(len(w.File.Data), func(m *controlapi.StatusResponse) {
		if msg.Vertex = t.first; msg.Vertex == "" {
			msg.Vertex = digest.FromString("").String()
		}
		m.Warnings = append(m.Warnings, msg)
	})
}

// Step implements build.Listener.
func (t *Trace) Step(build.StepInfo) {}

// StepDone implements build.Listener.
func (t *Trace) StepDone(build.StepInfo) {}
