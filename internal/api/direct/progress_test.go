package direct

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"ply/internal/build/ops"
	"ply/internal/build/solver"
	"ply/internal/wire"
)

// A client that reads slowly holds up the output of its commands, and nothing else. It gets everything in order, and of the states of one thing the last.
func TestSlowClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		resume := make(chan struct{})
		r := newReporter(func(e *wire.BuildEvents) error {
			<-resume
			for _, v := range e.Vertexes {
				sent = append(sent, fmt.Sprintf("vertex %s %v", v.Name, v.Completed != nil))
			}
			for _, s := range e.Statuses {
				sent = append(sent, fmt.Sprintf("status %s %d", s.ID, s.Current))
			}
			for _, l := range e.Logs {
				sent = append(sent, fmt.Sprintf("log %d %d", l.Stream, len(l.Data)))
			}
			return nil
		}, false)
		v := &ops.Vertex{Digest: "d", Name: "v"}
		r.Start(v)
		synctest.Wait() // the first frame is under way
		for i := range 1000 {
			r.Status(v, solver.Status{ID: "layer", Current: int64(i)})
		}
		data := make([]byte, maxPending)
		r.Log(v, false, data)
		r.Log(v, true, []byte("x"))
		held := make(chan struct{})
		go func() { defer close(held); r.Log(v, false, []byte("y")) }()
		synctest.Wait()
		select {
		case <-held:
			t.Error("more output is kept than the limit")
		default:
		}
		r.Done(v, solver.Outcome{Err: errors.New("failed")})
		close(resume)
		<-held
		r.close()
		want := fmt.Sprintf("vertex v false, status layer 999, log 1 %d, log 2 1, vertex v true, log 1 1", maxPending)
		if got := strings.Join(sent, ", "); got != want {
			t.Errorf("the client got\n%s\nwant\n%s", got, want)
		}
	})
}

// Nothing waits for a client that has gone.
func TestProgressOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporter(func(*wire.BuildEvents) error { return errors.New("gone") }, false)
		v := &ops.Vertex{Digest: "d", Name: "v"}
		for range 5 {
			r.Log(v, false, make([]byte, maxPending+1))
			r.Start(v)
		}
		r.close()
		r.Log(v, false, []byte("x"))
		r.Done(v, solver.Outcome{})
		if len(r.next) != 0 {
			t.Error("something is kept for a client that has gone")
		}
	})
}
