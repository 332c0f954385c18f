package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// A plyd that is told to stop while it pulls stops at once, and the next one resumes the pull.
func TestTransferStopWhilePulling(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, noise(100, 7<<20))
	f.Add("team/app", "1", img)
	layer := img.Layers[0]
	g := newGate(t, f, layer.Blob, 6<<20)
	ref := f.Addr() + "/team/app:1"
	j := w.start(t, "pull", ref)
	until(t, func() bool { return w.prefix(layer.Digest) >= 4<<20 }, j.text)
	w.stopPlyd()
	if code := j.end(); code != 1 {
		t.Errorf("exit code %d:\n%s", code, j.text())
	}
	had := w.prefix(layer.Digest)
	until(t, func() bool { return g.busy.Load() == 0 }, func() string { return "the registry still answers" })
	g.open()
	g.asked.Store(0)
	w.startPlyd()
	w.ply("pull", ref)
	if got := g.asked.Load(); got != layer.Size-had {
		t.Errorf("second pull asked for %d bytes, want %d of %d", got, layer.Size-had, layer.Size)
	}
	w.content(t, ref, 100, 7<<20)
}

// A load leaves nothing when its input stops and its client ends, or when its client is killed.
func TestTransferCutLoad(t *testing.T) {
	w := newWorld(t)
	w.busybox()
	file := filepath.Join(w.dir, "x.tar")
	w.ply("save", "-o", file, "busybox")
	archive, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w.ply("rmi", "busybox")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		r, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		j := w.startFrom(t, r, "load")
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(archive[:len(archive)/2]); err != nil {
			t.Fatal(err)
		}
		until(t, func() bool { return len(w.temporaries(t)) > 0 }, func() string { return "plyd takes nothing in: " + j.text() })
		if err := j.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if code := j.end(); code != 130 && sig == syscall.SIGINT {
			t.Errorf("exit code %d: %s", code, j.text())
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		until(t, func() bool { return len(w.temporaries(t)) == 0 }, func() string {
			return "left: " + strings.Join(w.temporaries(t), " ")
		})
		if left := append(w.leftovers(t), w.ply("images", "-a", "-q")); strings.Join(left, "") != "" {
			t.Errorf("%v left %v", sig, left)
		}
	}
	w.ply("load", "-i", file)
	w.ply("run", "--rm", "busybox", "true")
}

// A cancelled push leaves no name in the registry; the next push sends what is missing.
func TestTransferCancelPush(t *testing.T) {
	w := newWorld(t)
	f := remotetest.StartFake(t, false)
	from := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, noise(110, 1000), noise(111, 9<<20))
	from.Add("app", "1", img)
	w.ply("pull", from.Addr()+"/app:1")
	ref := f.Addr() + "/app:1"
	w.ply("tag", from.Addr()+"/app:1", ref)
	var stuck atomic.Bool
	release := make(chan struct{})
	f.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch || r.ContentLength < 1<<20 {
			return false
		}
		_, _ = io.CopyN(io.Discard, r.Body, 1<<20) // the client goes away
		stuck.Store(true)
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
	j := w.start(t, "push", ref)
	until(t, stuck.Load, j.text)
	j.await(img.Layers[0].DiffID.Short() + ": Pushed")
	if err := j.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := j.end(); code != 130 {
		t.Errorf("exit code %d:\n%s", code, j.text())
	}
	close(release)
	if _, data := f.Manifest("app", "1"); data != nil {
		t.Errorf("the cancelled push left a manifest: %s", data)
	}
	f.Hook = nil
	wantAll(t, w.ply("push", ref), img.Layers[0].DiffID.Short()+": Layer already exists", img.Layers[1].DiffID.Short()+": Pushed", "1: digest: "+string(img.Digest()))
}
