package buildkit

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/protobuf/types/known/timestamppb"

	"ply/internal/build/dockerfile"
	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/oci"
)

func step(name string) *ops.Vertex {
	return &ops.Vertex{Digest: oci.DigestOf([]byte(name)), Name: name}
}

// The progress of a build arrives in order and whole, however slowly it is read.
func TestTrace(t *testing.T) {
	tr := NewTrace()
	base, run := step("FROM"), step("RUN")
	run.Inputs = []ops.Edge{{Vertex: base}}
	var want bytes.Buffer
	var work sync.WaitGroup
	work.Go(func() {
		tr.Start(base)
		tr.Status(base, solver.Status{ID: "layer", Current: 1, Total: 4})
		tr.Status(base, solver.Status{ID: "layer", Current: 4, Total: 4})
		tr.Done(base, solver.Outcome{Cached: true})
		tr.Start(run)
		tr.Warn(dockerfile.Warning{Rule: "R", Message: "odd", URL: "u", Detail: "d", File: dockerfile.File{Name: "F", Data: []byte("x")}, Ranges: []dockerfile.Range{{Start: 3, End: 4}}})
		for i := range 300 { // more than may wait for the reader
			line := bytes.Repeat([]byte{byte('a' + i%26)}, 40_000)
			want.Write(line)
			tr.Log(run, i%2 == 1, line)
		}
		tr.Done(run, solver.Outcome{Err: &solver.VertexError{Vertex: run, Err: errors.New("exit code: 3")}})
		tr.End()
	})
	var logs bytes.Buffer
	var events []string
	err := tr.Send(t.Context(), func(m *controlapi.StatusResponse) error {
		if m.SizeVT() > maxPending {
			t.Errorf("a message of %d bytes", m.SizeVT())
		}
		for _, v := range m.Vertexes {
			e := v.Name
			if v.Completed != nil {
				e += " done"
			}
			if v.Cached {
				e += " cached"
			}
			events = append(events, strings.TrimSpace(e+" "+v.Error))
		}
		for _, s := range m.Statuses {
			if s.Completed != nil && s.Current != 4 {
				t.Errorf("status %v", s)
			}
		}
		for _, l := range m.Logs {
			logs.Write(l.Msg)
		}
		for _, w := range m.Warnings {
			events = append(events, "warning "+string(w.Short)+" "+w.Url)
		}
		time.Sleep(time.Millisecond)
		return nil
	})
	work.Wait()
	if err != nil || !bytes.Equal(logs.Bytes(), want.Bytes()) {
		t.Errorf("%v, %d bytes of logs, want %d", err, logs.Len(), want.Len())
	}
	got := strings.Join(events, "; ")
	if !strings.HasPrefix(got, "FROM; FROM done cached; RUN") || !strings.HasSuffix(got, "RUN done exit code: 3") || !strings.Contains(got, "warning R: odd (line 3) u") {
		t.Error(got)
	}
}

// A reader that is gone holds nothing up, and neither does a build that nobody reads.
func TestTraceWithoutReader(t *testing.T) {
	v := step("RUN")
	fill := func(tr *Trace) {
		tr.Start(v)
		for range 200 {
			tr.Log(v, false, make([]byte, 100_000))
		}
		tr.Done(v, solver.Outcome{})
	}
	gone := errors.New("gone")
	tr := NewTrace()
	done := make(chan struct{})
	go func() { fill(tr); close(done) }()
	if err := tr.Send(t.Context(), func(*controlapi.StatusResponse) error { return gone }); !errors.Is(err, gone) {
		t.Error(err)
	}
	<-done
	lossy := NewTrace()
	lossy.lossy = true
	fill(lossy)
	lossy.End()
	if !lossy.claim() || lossy.claim() {
		t.Error("a trace has one reader")
	}
	size, vertices := 0, 0
	err := lossy.Send(t.Context(), func(m *controlapi.StatusResponse) error {
		for _, l := range m.Logs {
			size += len(l.Msg)
		}
		vertices += len(m.Vertexes)
		return nil
	})
	if err != nil || size > maxPending || size == 0 || vertices != 2 {
		t.Errorf("%v, %d bytes, %d vertices", err, size, vertices)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewTrace().Send(ended, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A vertex ends after all of its logs, however many messages these need.
func TestSplitKeepsTheOrder(t *testing.T) {
	at := timestamppb.Now()
	log := func(n int) *controlapi.VertexLog { return &controlapi.VertexLog{Vertex: "a", Msg: make([]byte, n)} }
	for _, logs := range [][]*controlapi.VertexLog{nil, {log(1)}, {log(maxLogs), log(maxLogs), log(1)}} {
		parts := split(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{{Digest: "a"}, {Digest: "a", Completed: at}, {Digest: "b"}}, Logs: logs})
		var n, began int
		for i, p := range parts {
			n += len(p.Logs)
			for _, v := range p.Vertexes {
				if v.Completed == nil {
					began++
				} else if i != len(parts)-1 {
					t.Errorf("%d logs: it ends in part %d of %d", len(logs), i+1, len(parts))
				}
			}
		}
		if n != len(logs) || began != 2 || len(parts) == 0 || len(parts[0].Vertexes) < 2 {
			t.Errorf("%d logs: %v", len(logs), parts)
		}
	}
	if parts := split(&controlapi.StatusResponse{Vertexes: []*controlapi.Vertex{{Digest: "a", Completed: at}}}); len(parts) != 1 || len(parts[0].Vertexes) != 1 {
		t.Errorf("an end alone: %v", parts)
	}
}
