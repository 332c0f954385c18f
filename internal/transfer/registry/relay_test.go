package registry

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// TestDeafListener: one client of a shared layer stops reading its progress; the other's pull ends all the same, and when the
// first reads again it gets every state.
func TestDeafListener(t *testing.T) {
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatOCI, files(1, 3<<20), files(2, 100))
	reg.Add("r", "1", img)
	w := newWorld(t, Options{})
	hear := make(chan struct{})
	deaf := &lines{on: func(transfer.Progress) { <-hear }}
	first := make(chan error, 1)
	go func() {
		first <- w.c.Pull(t.Context(), ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, deaf.sink)
	}()
	w.await(func() bool { return len(reg.Log("GET /v2/r/blobs/"+string(img.Layers[0].Digest))) > 0 })
	w.mustPull(reg.Addr() + "/r:1")
	close(hear)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	id := img.Layers[0].Digest.Short()
	var got []string
	for _, l := range strings.Split(deaf.text(), "\n") {
		if strings.HasPrefix(l, id) {
			got = append(got, strings.TrimPrefix(l, id+": "))
		}
	}
	want := []string{"Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
