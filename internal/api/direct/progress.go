package direct

import (
	"strings"
	"sync"
	"time"

	"ply/internal/build"
	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/oci"
	"ply/internal/wire"
)

// maxPending is how much output of commands waits for a slow client, in bytes. Then the commands wait.
const maxPending = 1 << 20

// reporter sends what happens in a build to its client. One goroutine sends; the others only add to what is to be sent, so that a slow
// client holds up the output of its own commands and nothing else.
type reporter struct {
	send    func(*wire.BuildEvents) error
	explain bool
	now     func() time.Time

	mu       sync.Mutex
	changed  sync.Cond
	next     []*wire.BuildEvents             // in the order in which things happened; each has one kind
	kind     kind                            // of the last of next
	statuses map[[2]string]*wire.BuildStatus // in next, by vertex and ID
	logs     int                             // bytes of output in next
	closed   bool
	done     chan struct{}
	started  map[oci.Digest]time.Time
}

var (
	_ build.Listener = (*reporter)(nil)
	_ build.Planner  = (*reporter)(nil)
)

func newReporter(send func(*wire.BuildEvents) error, explain bool) *reporter {
	r := &reporter{send: send, explain: explain, now: time.Now, statuses: map[[2]string]*wire.BuildStatus{}, done: make(chan struct{}), started: map[oci.Digest]time.Time{}}
	r.changed.L = &r.mu
	go r.run()
	return r
}

// kind is which list of events something belongs to.
type kind int

const (
	vertexes kind = iota + 1
	statuses
	logs
	warnings
	steps
)

// run sends until close, and what is left then.
func (r *reporter) run() {
	defer close(r.done)
	for {
		r.mu.Lock()
		for len(r.next) == 0 && !r.closed {
			r.changed.Wait()
		}
		out := r.next
		r.next, r.kind, r.logs = nil, 0, 0
		clear(r.statuses)
		r.changed.Broadcast()
		r.mu.Unlock()
		if len(out) == 0 {
			return
		}
		for _, e := range out {
			if err := r.send(e); err != nil {
				r.mu.Lock()
				r.closed, r.next = true, nil // the session ends the build
				r.changed.Broadcast()
				r.mu.Unlock()
				return
			}
		}
	}
}

// close waits until everything was sent.
func (r *reporter) close() {
	r.mu.Lock()
	r.closed = true
	r.changed.Broadcast()
	r.mu.Unlock()
	<-r.done
}

// add changes what is to be sent next.
func (r *reporter) add(k kind, change func(e *wire.BuildEvents)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	r.change(k, change)
}

// change is add for a caller that holds mu.
func (r *reporter) change(k kind, change func(e *wire.BuildEvents)) {
	if r.kind != k {
		r.next, r.kind = append(r.next, &wire.BuildEvents{}), k
	}
	change(r.next[len(r.next)-1])
	r.changed.Broadcast()
}

// Start implements solver.Progress.
func (r *reporter) Start(v *ops.Vertex) {
	r.add(vertexes, func(e *wire.BuildEvents) {
		now := r.now()
		r.started[v.Digest] = now
		x := vertexOf(v)
		x.Started = &now
		e.Vertexes = append(e.Vertexes, x)
	})
}

func vertexOf(v *ops.Vertex) wire.BuildVertex {
	x := wire.BuildVertex{Digest: string(v.Digest), Name: v.Name}
	for _, in := range v.Inputs {
		if !in.IsZero() {
			x.Inputs = append(x.Inputs, string(in.Vertex.Digest))
		}
	}
	return x
}

// Log implements solver.Progress.
func (r *reporter) Log(v *ops.Vertex, stderr bool, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.logs > maxPending && !r.closed {
		r.changed.Wait()
	}
	if r.closed {
		return
	}
	l := wire.BuildLog{Vertex: string(v.Digest), Stream: 1, Data: append([]byte(nil), data...), Timestamp: r.now()}
	if stderr {
		l.Stream = 2
	}
	r.logs += len(data)
	r.change(logs, func(e *wire.BuildEvents) { e.Logs = append(e.Logs, l) })
}

// Status implements solver.Progress. Of several states of one thing only the last is sent.
func (r *reporter) Status(v *ops.Vertex, s solver.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	now := r.now()
	x := &wire.BuildStatus{ID: s.ID, Vertex: string(v.Digest), Name: s.ID, Current: s.Current, Total: s.Total, Timestamp: now}
	if s.Container != "" {
		x.ID, x.Name, x.Container = "container", "", string(s.Container)
	}
	if s.Done {
		x.Completed = &now
	}
	key := [2]string{x.Vertex, x.ID}
	if old := r.statuses[key]; old != nil {
		*old = *x
		return
	}
	r.statuses[key] = x
	r.change(statuses, func(e *wire.BuildEvents) { e.Statuses = append(e.Statuses, x) })
}

// Done implements solver.Progress.
func (r *reporter) Done(v *ops.Vertex, o solver.Outcome) {
	r.add(vertexes, func(e *wire.BuildEvents) {
		now := r.now()
		x := vertexOf(v)
		if at, ok := r.started[v.Digest]; ok {
			x.Started = &at
		}
		x.Completed, x.Cached = &now, o.Cached
		if o.Err != nil {
			x.Error = strings.ToValidUTF8(o.Err.Error(), "\uFFFD")
		}
		if r.explain {
			x.Miss = o.Miss
		}
		e.Vertexes = append(e.Vertexes, x)
	})
}

// Warn implements build.Listener.
func (r *reporter) Warn(w dockerfile.Warning) {
	x := wire.BuildWarning{Level: 1, Short: []byte(w.String()), URL: w.URL}
	if w.Detail != "" {
		x.Detail = [][]byte{[]byte(w.Detail)}
	}
	if len(w.Ranges) > 0 {
		x.SourceInfo = &wire.BuildWarningFile{Filename: w.File.Name, Data: w.File.Data}
		for _, g := range w.Ranges {
			x.Range = append(x.Range, wire.BuildWarningSpan{Start: wire.BuildPosition{Line: g.Start, Character: g.StartChar}, End: wire.BuildPosition{Line: g.End, Character: g.EndChar}})
		}
	}
	if w.Note {
		x.Level = 0
	}
	r.add(warnings, func(e *wire.BuildEvents) { e.Warnings = append(e.Warnings, x) })
}

func stepOf(st *build.StepInfo, state string) wire.BuildInstruction {
	x := wire.BuildInstruction{
		Index: st.Index, Total: st.Total, Text: st.Text, State: state, Image: string(st.Image), Cached: st.Cached && state == wire.StepDone, Base: st.Name == "FROM",
	}
	if st.Vertex != nil {
		x.Vertex = string(st.Vertex.Digest)
	}
	return x
}

// Plan implements build.Planner.
func (r *reporter) Plan(list []build.StepInfo) {
	r.add(steps, func(e *wire.BuildEvents) {
		for i := range list {
			e.Steps = append(e.Steps, stepOf(&list[i], wire.StepPlanned))
		}
	})
}

// Step implements build.Listener.
func (r *reporter) Step(st build.StepInfo) {
	r.add(steps, func(e *wire.BuildEvents) { e.Steps = append(e.Steps, stepOf(&st, wire.StepStarted)) })
}

// StepDone implements build.Listener.
func (r *reporter) StepDone(st build.StepInfo) {
	r.add(steps, func(e *wire.BuildEvents) { e.Steps = append(e.Steps, stepOf(&st, wire.StepDone)) })
}
