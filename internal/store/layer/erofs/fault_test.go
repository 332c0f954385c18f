package erofs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/durable/faultfs"
	"ply/internal/errs"
	"ply/internal/oci"
)

// Whatever part of a layer is damaged, Open works, the other layers are usable, and a new commit repairs the layer.
func TestDamageIsSetAside(t *testing.T) {
	content := strings.Repeat("x", 3000)
	data := pack(t, entry{name: "f", body: content, mode: 0o644})
	damages := map[string]func(dir string) error{
		"tar truncated":  func(dir string) error { return os.Truncate(filepath.Join(dir, tarName), 100) },
		"tar missing":    func(dir string) error { return os.Remove(filepath.Join(dir, tarName)) },
		"record garbled": func(dir string) error { return os.WriteFile(filepath.Join(dir, recordName), []byte("{"), 0o600) },
		"record empty":   func(dir string) error { return os.Truncate(filepath.Join(dir, recordName), 0) },
		"record of another": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, recordName), []byte(`{"version":1}`), 0o600)
		},
		"record with a bad version": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, recordName), []byte(`{"version":-2}`), 0o600)
		},
		"index missing":     func(dir string) error { return os.Remove(filepath.Join(dir, "index.erofs")) },
		"index empty":       func(dir string) error { return os.Truncate(filepath.Join(dir, "index.erofs"), 0) },
		"index record gone": func(dir string) error { return os.Remove(filepath.Join(dir, "index.json")) },
		"directory empty": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700))
		},
		"directory is a file": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600))
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			d := open(t, root, Options{})
			bad := put(t, d, nil, data)
			good := put(t, d, nil, pack(t, entry{name: "g", body: "good"}))
			if err := damage(d.layerDir(bad.Top())); err != nil {
				t.Fatal(err)
			}
			d = open(t, root, Options{})
			if _, err := d.Stat(t.Context(), bad); !errors.Is(err, errs.NotFound) {
				t.Errorf("Stat: %v, want class not found so that a pull heals", err)
			}
			err := d.View(t.Context(), bad, t.TempDir())
			if !errors.Is(err, errs.DataLoss) || !strings.Contains(err.Error(), "Pull or load") {
				t.Errorf("View: %v, want class data loss and the way out", err)
			}
			want(t, view(t, d, good), "g", "good")
			again := open(t, root, Options{})
			if err := again.View(t.Context(), bad, t.TempDir()); !errors.Is(err, errs.DataLoss) {
				t.Errorf("View after another start: %v, want class data loss", err)
			}
			want(t, view(t, again, put(t, again, nil, data)), "f", content)
			if left, _ := os.ReadDir(again.quar); len(left) != 0 {
				t.Errorf("quarantine still holds %v", left)
			}
		})
	}
}

// Each operation that changes the disk fails, once or from then on: afterwards the layer exists completely or not at all.
func TestCommitFaults(t *testing.T) {
	data := pack(t, entry{name: "d/f", body: strings.Repeat("x", 70_000)}, entry{name: "l", kind: tar.TypeLink, link: "g"})
	base := pack(t, entry{name: "g", body: "below"})
	type fault struct {
		Err            error
		Forever, Short bool
	}
	for _, fault := range []fault{{}, {Err: unix.ENOSPC, Forever: true}, {Short: true}} {
		t.Run(fmt.Sprintf("%v_forever=%v_short=%v", fault.Err, fault.Forever, fault.Short), func(t *testing.T) {
			for n := 1; ; n++ {
				root := t.TempDir()
				chain := put(t, open(t, root, Options{}), nil, base)
				f := &faultfs.FS{Under: durable.OS, Err: fault.Err, Forever: fault.Forever, Short: fault.Short}
				d, err := Open(f, root, Options{})
				if err != nil {
					t.Fatal(err)
				}
				f.FailAt = f.Count() + n
				full, err := commit(d, chain, data)
				if fault.Err == unix.ENOSPC && err != nil && !errors.Is(err, unix.ENOSPC) {
					t.Errorf("operation %d: %v does not say that the disk is full", n, err)
				}
				d.Close()
				after := open(t, root, Options{})
				if err == nil {
					want(t, view(t, after, full), "l", "below")
				} else {
					c := append(slices.Clone(chain), oci.DiffID(oci.DigestOf(data)))
					if _, serr := after.Stat(t.Context(), c); serr == nil {
						// It failed after the rename, so the layer must be complete.
						if verr := after.Verify(t.Context(), c); verr != nil {
							t.Errorf("operation %d: %v, and what is there is %v", n, err, verr)
						}
					}
					want(t, view(t, after, put(t, after, chain, data)), "l", "below")
				}
				if len(after.damaged) > 0 {
					t.Errorf("operation %d left damage: %v", n, after.damaged)
				}
				if !f.Hit() {
					if err != nil {
						t.Errorf("without a fault: %v", err)
					}
					return
				}
			}
		})
	}
}

// A disk that could not be read for a moment damages no layer: the next start uses it. In between, a commit of the same layer
// replaces it.
func TestReadErrorIsNoDamage(t *testing.T) {
	data := pack(t, entry{name: "f", body: strings.Repeat("x", 3000)})
	for _, heal := range []bool{false, true} {
		for n := 1; ; n++ {
			root := t.TempDir()
			chain := put(t, open(t, root, Options{}), nil, data)
			f := &faultfs.FS{Under: durable.OS, Reads: true, FailAt: n}
			d, err := Open(f, root, Options{})
			if err == nil {
				if tar, terr := d.Tar(t.Context(), chain); terr == nil {
					_, _ = io.Copy(io.Discard, tar) // it may fail
					tar.Close()
				}
				if heal {
					_, _ = commit(d, nil, data) // it may fail, when it is the one that reads
				}
				d.Close()
			}
			after := open(t, root, Options{})
			want(t, view(t, after, chain), "f", strings.Repeat("x", 3000))
			if left, _ := os.ReadDir(after.quar); len(left) > 0 || len(after.damaged) > 0 {
				t.Errorf("read %d failed: in quarantine %v, damaged %v", n, left, after.damaged)
			}
			if !f.Hit() {
				break
			}
		}
	}
}
