package pull_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// At most Max layers are fetched at a time, and a layer that has to wait is reported as waiting.
func TestParallelLayers(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	var specs []remotetest.LayerSpec
	for i := range 6 {
		specs = append(specs, transfertest.Files(uint64(i+1), 1000))
	}
	img := remotetest.Make(t, oci.FormatOCI, specs...)
	reg.Add("r", "1", img)
	var now, most atomic.Int64
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if remotetest.LayerOf(r, img) == nil {
			return false
		}
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(20 * time.Millisecond)
		reg.Answer(w, r)
		now.Add(-1)
		return true
	}
	w := transfertest.New(t, transfertest.Options{Downloads: 6})
	w.Puller.SetMax(2)
	l := w.MustPull(reg.Addr() + "/r:1")
	if most.Load() > 2 {
		t.Errorf("%d layers at a time, want at most 2", most.Load())
	}
	if n := strings.Count(l.Text(), transfer.LayerWaiting.String()); n < 1 {
		t.Errorf("%d layers waited, want some:\n%s", n, l.Text())
	}
}

// A layer that is unpacked holds no place among the downloads: the next layer is fetched meanwhile.
func TestDownloadWhileUnpacking(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 1000), transfertest.Files(2, 1000), transfertest.Files(3, 1000))
	reg.Add("r", "1", img)
	w := transfertest.New(t, transfertest.Options{Downloads: 1})
	unpack := make(chan struct{})
	release := sync.OnceFunc(func() { close(unpack) })
	defer release()
	w.Driver.Creating = func() { <-unpack }
	ended := make(chan error, 1)
	go func() {
		ended <- w.Puller.Pull(t.Context(), transfertest.Ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, transfer.Discard)
	}()
	for _, l := range img.Layers {
		w.Await(func() bool { return len(reg.Log("GET /v2/r/blobs/"+string(l.Digest))) > 0 })
	}
	release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A layer that waits for those below it to be unpacked is shown as downloaded, not as one that is being extracted.
func TestWaitForLayersBelow(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 1000), transfertest.Files(2, 1000))
	reg.Add("r", "1", img)
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	defer release()
	reg.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if l := remotetest.LayerOf(r, img); l != nil && l.Digest == img.Layers[0].Digest {
			<-held
		}
		return false
	}
	w := transfertest.New(t, transfertest.Options{})
	upper := img.Layers[1].Digest.Short()
	var last atomic.Value
	lines := &transfertest.Lines{On: func(p transfer.Progress) {
		if p.Layer == upper {
			last.Store(p.State)
		}
	}}
	ended := make(chan error, 1)
	go func() {
		ended <- w.Puller.Pull(t.Context(), transfertest.Ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, lines.Sink)
	}()
	w.Await(func() bool { return w.Driver.Ended() == 1 && last.Load() == transfer.LayerDownloaded })
	time.Sleep(100 * time.Millisecond)
	if last.Load() != transfer.LayerDownloaded {
		t.Errorf("while it waits, the state is %v", last.Load())
	}
	release()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if last.Load() != transfer.LayerPulled {
		t.Errorf("the last state is %v", last.Load())
	}
}
