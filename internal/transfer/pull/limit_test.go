package pull_test

import (
	"net/http"
	"strings"
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
