package erofs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/durable"
	"ply/internal/durable/powercut"
	"ply/internal/oci"
)

// A layer whose Commit returned survives a power cut. One that was being written is there whole or not at all, and the
// driver opens.
func TestPowerCut(t *testing.T) {
	disk := powercut.New(t)
	var acknowledged []oci.Chain
	for i := range 8 {
		d, err := Open(durable.OS, disk.Dir, Options{})
		if err != nil {
			t.Fatalf("cut %d: open: %v", i, err)
		}
		if len(d.damaged) > 0 {
			t.Fatalf("cut %d: damaged %v", i, d.damaged)
		}
		for _, c := range acknowledged {
			if err := d.Verify(t.Context(), c); err != nil {
				t.Fatalf("cut %d: an acknowledged layer is lost: %v", i, err)
			}
		}
		chain := put(t, d, nil, pack(t, entry{name: "d/f", body: strings.Repeat(fmt.Sprint(i), 300_000)}))
		acknowledged = append(acknowledged, chain, put(t, d, chain, pack(t, entry{name: "l", kind: '1', link: "d/f"}, entry{name: "d/g"})))
		unacknowledged := pack(t, entry{name: "u", body: strings.Repeat(fmt.Sprint(-i), 400_000)})
		done := make(chan error, 1)
		go func() {
			_, err := commit(d, nil, unacknowledged)
			done <- err
		}()
		time.Sleep(time.Duration(i) * time.Millisecond) // the moment of the cut; nothing is waited for
		disk.Cut(i%2 == 0)
		if err := <-done; err == nil {
			acknowledged = append(acknowledged, oci.Chain{oci.DiffID(oci.DigestOf(unacknowledged))})
		}
		d.Close()
		disk.Restart()
	}
	d := open(t, disk.Dir, Options{})
	for _, c := range slices.Backward(acknowledged) {
		if err := d.Verify(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
}
