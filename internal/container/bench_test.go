package container_test

import (
	"context"
	"testing"

	"ply/internal/container"
	"ply/internal/container/spec"
)

// BenchmarkRunRemoved is `run --rm box true` without client and network.
func BenchmarkRunRemoved(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		spec := spec.Spec{Image: "box", Cmd: []string{"true"}, NetworkMode: "host", AutoRemove: true}
		id := w.create(spec)
		gone := w.wait(id, container.WaitRemoved)
		w.start(id)
		if e := recv(b, gone); e.Code != 0 {
			b.Fatalf("exit %+v", e)
		}
	}
}

// BenchmarkCreateRemove is a container that never runs.
func BenchmarkCreateRemove(b *testing.B) {
	w := newWorld(b)
	for b.Loop() {
		id := w.create(spec.Spec{Image: "box", Cmd: []string{"true"}, NetworkMode: "host"})
		if err := w.s.Remove(context.Background(), id, false, false, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	w := newWorld(b)
	id := w.up(nil)
	for b.Loop() {
		w.exec(id, "true")
	}
}
