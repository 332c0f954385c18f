package pull_test

import (
	"sync"
	"testing"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
	"ply/internal/transfer/transfertest"
)

// A collection between the layers of a pull takes none of them: no record of an image refers to them yet, and only the lease of
// the pull protects them.
func TestCollectionDuringAPull(t *testing.T) {
	img := remotetest.Make(t, oci.FormatOCI, transfertest.Files(1, 1000), transfertest.Files(2, 1000), transfertest.Files(3, 1000))
	reg := remotetest.StartFake(t, false)
	reg.Add("r", "1", img)
	w := transfertest.New(t, transfertest.Options{Downloads: 1})
	var chain oci.Chain
	for _, l := range img.Layers {
		chain = append(chain, l.DiffID)
	}
	var once sync.Mutex
	collections := 0
	err := w.Puller.Pull(t.Context(), transfertest.Ref(t, reg.Addr()+"/r:1"), transfer.PullOptions{}, func(p transfer.Progress) {
		if p.State != transfer.LayerPulled {
			return
		}
		once.Lock()
		defer once.Unlock()
		collections++
		for n := range chain {
			if _, err := w.Store.Reclaim(t.Context(), []oci.Chain{chain[:n+1]}, nil); err != nil {
				t.Errorf("collection: %v", err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if collections != len(chain) {
		t.Errorf("%d collections ran, want %d", collections, len(chain))
	}
	w.Holds(reg.Addr()+"/r:1", img)
}
