package pull_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// Two pulls share a layer, and one client stops reading the progress. The other pull ends all the same. When the first client reads
// again, it gets every state.
func TestListenerThatStopsReading(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 3<<20), transfertest.Files(2, 100))
	reg.Add("r", "1", img)
	w := transfertest.New(t, transfertest.Options{})
	read := make(chan struct{})
	stuck := &transfertest.Lines{On: func(transfer.Progress) { <-read }}
	first := make(chan error, 1)
	go func() {
		first <- w.Puller.Pull(t.Context(), transfertest.Ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, stuck.Sink)
	}()
	w.Await(func() bool { return len(reg.Log("GET /v2/r/blobs/"+string(img.Layers[0].Digest))) > 0 })
	w.MustPull(reg.Addr() + "/r:1")
	close(read)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	id := img.Layers[0].Digest.Short()
	var got []string
	for _, l := range strings.Split(stuck.Text(), "\n") {
		if state, ok := strings.CutSuffix(l, " "+id); ok {
			got = append(got, state)
		}
	}
	want := []string{"LayerQueued", "LayerDownloading", "LayerVerifying", "LayerDownloaded", "LayerExtracting", "LayerPulled"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
