package pull_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// A download that fails says that its bytes are kept, and leaves a line in the log. The next pull reports them, and the size of the layer before its first byte.
func TestFailureAndResumptionAreReported(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 3<<20))
	layer := img.Layers[0]
	reg.Add("r", "1", img)
	var away atomic.Bool
	away.Store(true)
	var sent atomic.Bool
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !away.Load() || remotetest.LayerOf(r, img) == nil {
			return false
		}
		if !sent.Swap(true) {
			reg.ServeSome(w, r, &layer, 1<<20)
			remotetest.CutOff(w, false)
			return true
		}
		remotetest.Refuse(w, http.StatusServiceUnavailable, "UNAVAILABLE", "the registry is away")
		return true
	}
	w := transfertest.New(t, transfertest.Options{Remote: remote.Options{Retry: remote.Retry{Base: time.Millisecond, Max: 5 * time.Millisecond, GiveUp: 200 * time.Millisecond, MaxAfter: time.Second}}})
	ref := transfertest.Ref(t, reg.Addr()+"/r:1")
	err := w.Puller.Pull(t.Context(), ref, transfer.PullOptions{}, transfer.Discard)
	if err == nil || !strings.HasSuffix(err.Error(), ". What arrived is kept: the next pull goes on from there.") {
		t.Errorf("a download that fails: %v", err)
	}
	if log := w.Log.String(); !strings.Contains(log, `msg="pull failed" image=`+ref.Familiar()+" err=") || !strings.Contains(log, "the registry is away") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	away.Store(false)
	var size, kept, first atomic.Int64
	lines := &transfertest.Lines{On: func(p transfer.Progress) {
		switch p.State {
		case transfer.LayerQueued:
			size.Store(p.Size)
		case transfer.LayerDownloading:
			kept.Store(p.Kept)
			first.CompareAndSwap(0, p.Current)
		}
	}}
	if err := w.Puller.Pull(t.Context(), ref, transfer.PullOptions{}, lines.Sink); err != nil {
		t.Fatal(err)
	}
	if size.Load() != layer.Size || kept.Load() <= 0 || kept.Load() > first.Load() {
		t.Errorf("size %d of %d, kept %d, first reported %d", size.Load(), layer.Size, kept.Load(), first.Load())
	}
}

// A pull that has fetched nothing promises nothing.
func TestFailureWithoutBytes(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 1000))
	reg.Add("r", "1", img)
	reg.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if remotetest.LayerOf(r, img) != nil {
			remotetest.Refuse(w, http.StatusServiceUnavailable, "UNAVAILABLE", "the registry is away")
			return true
		}
		return false
	}
	w := transfertest.New(t, transfertest.Options{Remote: remote.Options{Retry: remote.Retry{Base: time.Millisecond, Max: 5 * time.Millisecond, GiveUp: 100 * time.Millisecond, MaxAfter: time.Second}}})
	err := w.Puller.Pull(t.Context(), transfertest.Ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, transfer.Discard)
	if err == nil || strings.Contains(err.Error(), "kept") {
		t.Errorf("%v", err)
	}
}
