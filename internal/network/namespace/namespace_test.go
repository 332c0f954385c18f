package namespace_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"ply/internal/network/namespace"
	"ply/test/private"
)

// The tests make namespaces, so they run in one of their own.
func TestMain(m *testing.M) { private.Main(m, nil) }

// However many namespaces were made and entered, the main thread, whose namespaces /proc shows as those of the process, has stayed where it was.
func TestMainThreadStays(t *testing.T) {
	at := fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	before, err := os.Readlink(at)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept")
	if err := namespace.Make(kept); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := namespace.Remove(kept); err != nil {
			t.Error(err)
		}
	}()
	for i := range 300 {
		var group sync.WaitGroup
		for n := range 4 {
			group.Go(func() {
				if n > 0 || i%10 > 0 {
					inside := ""
					err := namespace.Do(kept, func() (err error) {
						inside, err = os.Readlink("/proc/thread-self/ns/net")
						return err
					})
					if err != nil || inside == before {
						t.Errorf("in the namespace: %s, %v", inside, err)
					}
					return
				}
				path := filepath.Join(dir, fmt.Sprint(i))
				if err := namespace.Make(path); err != nil {
					t.Error(err)
				}
				if err := namespace.Remove(path); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if after, err := os.Readlink(at); err != nil || after != before {
			t.Fatalf("after %d rounds the main thread is in %s, was in %s (%v)", i+1, after, before, err)
		}
	}
}
