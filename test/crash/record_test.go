package crash

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/durable/crashstate"
)

// What recordOperation needs, as environment variables.
const (
	recordName   = "PLY_CRASH_RECORD" // of the operation
	recordDir    = "PLY_CRASH_DIR"
	recordDriver = "PLY_CRASH_DRIVER"
	recordBridge = "PLY_CRASH_BRIDGE"
	recordRemote = "PLY_CRASH_REMOTE"
	recordBin    = "PLY_CRASH_BIN"
	recordRootfs = "PLY_CRASH_ROOTFS"
)

// recordOperation runs one operation, in a process of its own whose system calls are recorded. It marks when the engine is open,
// and when the operation is acknowledged.
func recordOperation() error {
	b := &bed{dir: os.Getenv(recordDir), driver: os.Getenv(recordDriver), bridge: os.Getenv(recordBridge)}
	bin, rootfs = os.Getenv(recordBin), os.Getenv(recordRootfs)
	marks, err := os.OpenFile(b.marks(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer marks.Close()
	for _, o := range operations(os.Getenv(recordRemote)) {
		if o.name != os.Getenv(recordName) {
			continue
		}
		e, err := b.open(nil)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(marks, "open\n"); err != nil {
			return err
		}
		if err := o.do(b, e); err != nil {
			return err
		}
		if _, err := io.WriteString(marks, "acknowledged\n"); err != nil {
			return err
		}
		return e.Close()
	}
	return fmt.Errorf("no operation %q", os.Getenv(recordName))
}

func (b *bed) marks() string { return filepath.Join(b.dir, "marks") }

// TestRecordedCrashes records every system call by which an operation of the engine, with its shims, changes the data root: those
// of durable.FS, of the database, of the unpacker, of volumes, logs and exit files. It takes states in which a crash at some moment
// can leave the disk, if the disk keeps nothing but what was synced and any part of the rest, and opens the engine on each.
//
// Not recorded are the files that a container writes, and modes, owners and attributes, which are never lost here.
func TestRecordedCrashes(t *testing.T) {
	seed := seed(t)
	remote := remoteImage(t)
	for i, driver := range []string{"erofs", "overlay2", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			b := prepare(t, driver)
			for j, o := range operations(remote) {
				if driver != "erofs" && o.name != "pull" && o.name != "commit" && o.name != "run" {
					continue
				}
				t.Run(o.name, func(t *testing.T) {
					replay(t, b, o, remote, *states, rand.New(rand.NewPCG(seed, uint64(100*i+j))))
				})
			}
		})
	}
}

func replay(t *testing.T, b *bed, o op, remote string, states int, r *rand.Rand) {
	b.reset(t)
	rec := recordOn(t, b, o, remote)
	acked, total := rec.marks["acknowledged"], rec.log.Len()
	if rec.marks["open"] == 0 || acked <= rec.marks["open"] {
		t.Fatalf("marks %v in %d operations", rec.marks, total)
	}
	seen := map[[32]byte]bool{}
	tried := 0
	for i := range 4 * states {
		if tried == states {
			break
		}
		// Most crashes are during the operation and just after it; the others while the engine opens and closes.
		n := acked + r.IntN(total-acked+1)
		switch r.IntN(8) {
		case 0, 1:
			n = acked
		case 2:
		case 3:
			n = r.IntN(rec.marks["open"] + 1)
		default:
			n = rec.marks["open"] + r.IntN(acked-rec.marks["open"]+1)
		}
		choice := crashstate.Choice(crashstate.Random{Rand: r, Share: []int{10, 50, 90}[r.IntN(3)]})
		switch r.IntN(6) {
		case 0:
			choice = crashstate.KeepAll
		case 1:
			choice = crashstate.LoseAll
		}
		if i == 0 { // always tried: everything that is not synced is lost just after the acknowledgement
			n, choice = acked, crashstate.LoseAll
		}
		state := rec.log.State(n, choice)
		if sum := state.Sum(); seen[sum] {
			continue
		} else {
			seen[sum] = true
		}
		tried++
		if err := os.RemoveAll(b.root()); err != nil {
			t.Fatal(err)
		}
		if err := state.Write(b.root()); err != nil {
			t.Fatal(err)
		}
		problem := func() error {
			e, err := b.open(nil)
			if err != nil {
				return fmt.Errorf("the store does not open: %w", err)
			}
			if err := o.after(b, e, n >= acked); err != nil {
				_ = e.Close() // the other error says more
				return err
			}
			return e.Close()
		}()
		if problem != nil {
			last := "nothing"
			if n > 0 {
				last = rec.log.What(n - 1)
			}
			t.Errorf("crash after %d of %d operations (acknowledged after %d), the last of which was %s: %v\nlost: %s", n, total, acked, last, problem, state.Lost())
			return
		}
		temporaries(t, b.root(), fmt.Sprintf("after %d operations", n))
	}
	t.Logf("%d operations, %d states", total, tried)
}

// recordOn records an operation on the data root of a bed.
func recordOn(t *testing.T, b *bed, o op, remote string) *recording {
	t.Helper()
	if err := os.WriteFile(b.marks(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), recordName+"="+o.name, recordDir+"="+b.dir, recordDriver+"="+b.driver, recordBridge+"="+b.bridge, recordRemote+"="+remote,
		recordBin+"="+bin, recordRootfs+"="+rootfs)
	rec, err := record(b.root(), b.marks(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	// A container writes to its own directory, and the kernel to the work directory of an overlay.
	writable := func(path string) bool {
		return strings.HasPrefix(path, "containers/") && strings.Contains(path, "/rw/")
	}
	if err := rec.log.Adopt(b.root(), writable); err != nil {
		t.Fatalf("the recording is not complete: %v", err)
	}
	return rec
}
