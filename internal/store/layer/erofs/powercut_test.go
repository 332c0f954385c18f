package erofs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ply/internal/durable"
	"ply/internal/oci"
)

// cutPower ends a file system as a power cut would: what was not flushed is gone. With journal, what ext4 has in
// its journal so far is kept.
func cutPower(t *testing.T, dir string, journal bool) {
	t.Helper()
	const shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
	flag := uint32(2)
	if journal {
		flag = 1
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flag))); errno != 0 {
		t.Fatalf("shut down: %v", errno)
	}
}

// A layer whose Commit returned survives a power cut; one that was being written is there whole or not at all, and
// the driver opens.
func TestPowerCut(t *testing.T) {
	base := t.TempDir()
	disk, at := filepath.Join(base, "disk"), filepath.Join(base, "at")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	// Each round on a copy: a mount namespace that somebody else made meanwhile may hold the dead file system, and mounting
	// the same disk again would then give that one.
	rounds := 0
	mountDisk := func() {
		t.Helper()
		rounds++
		next := filepath.Join(base, fmt.Sprint("disk-", rounds))
		if out, err := exec.Command("cp", "--sparse=always", disk, next).CombinedOutput(); err != nil {
			t.Fatalf("copy: %v\n%s", err, out)
		}
		if err := os.Remove(disk); err != nil {
			t.Fatal(err)
		}
		disk = next
		if out, err := exec.Command("mount", "-o", "loop", disk, at).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v\n%s", err, out)
		}
	}
	mountDisk()
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })

	var held []oci.Chain
	for i := range 8 {
		d, err := Open(durable.OS, at, Options{})
		if err != nil {
			t.Fatalf("cut %d: open: %v", i, err)
		}
		if len(d.damaged) > 0 {
			t.Fatalf("cut %d: damaged %v", i, d.damaged)
		}
		for _, c := range held {
			if err := d.Verify(t.Context(), c); err != nil {
				t.Fatalf("cut %d: an acknowledged layer is lost: %v", i, err)
			}
		}
		chain := put(t, d, nil, pack(t, entry{name: "d/f", body: strings.Repeat(fmt.Sprint(i), 300_000)}))
		held = append(held, chain, put(t, d, chain, pack(t, entry{name: "l", kind: '1', link: "d/f"}, entry{name: "d/g"})))
		unacknowledged := pack(t, entry{name: "u", body: strings.Repeat(fmt.Sprint(-i), 400_000)})
		done := make(chan error, 1)
		go func() {
			_, err := commit(d, nil, unacknowledged)
			done <- err
		}()
		time.Sleep(time.Duration(i) * time.Millisecond) // where the cut falls, not waiting for anything
		cutPower(t, at, i%2 == 0)
		if err := <-done; err == nil {
			held = append(held, oci.Chain{oci.DiffID(oci.DigestOf(unacknowledged))})
		}
		d.Close()
		if err := unix.Unmount(at, 0); err != nil {
			t.Fatalf("cut %d: unmount: %v", i, err)
		}
		mountDisk()
	}
	d := open(t, at, Options{})
	for _, c := range slices.Backward(held) {
		if err := d.Verify(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
}
