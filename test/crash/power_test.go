package crash

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"ply/internal/durable/powercut"
)

// TestPowerCut cuts the power of the machine at random moments while clients use plyd. After every boot, what was acknowledged
// must be there: images with every byte, volumes with what was synced to them, containers with their exit codes and logs; and what
// was removed must be gone.
//
// A machine is a process namespace and a mount namespace: its power is cut by a cut of its disk's power and the death of all its
// processes. What is on the exec root is lost, and the next boot has another ID.
func TestPowerCut(t *testing.T) {
	seed := seed(t)
	remote := registry(t)
	for i, c := range []struct {
		kind   powercut.Kind
		driver string
		parts  int // of 15
	}{
		{powercut.Ext4, "erofs", 4}, {powercut.XFS, "erofs", 3}, {powercut.Btrfs, "erofs", 4},
		{powercut.Ext4, "vfs", 1}, {powercut.XFS, "overlay2", 2}, {powercut.Btrfs, "overlay2", 1},
	} {
		t.Run(string(c.kind)+"/"+c.driver, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			disk := powercut.New(t, c.kind)
			v := newVictim(t, "cut"+strconv.Itoa(i), filepath.Join(disk.Dir, "data"), c.driver)
			v.machine()
			v.start()
			v.prepare()
			ws := v.workers(remote)
			ways := map[powercut.Cut]int{}
			rounds := *cuts * c.parts / 15
			for range rounds {
				v.round(ws, r, func() {
					how := c.kind.Cuts()[r.IntN(len(c.kind.Cuts()))]
					ways[how]++
					disk.Cut(how)
					v.kill()
					v.removeCgroups()
					disk.Restart()
				})
				if t.Failed() {
					break
				}
			}
			v.verify(ws, true)
			v.tally(ws, rounds)
			t.Logf("cuts: %v", ways)
			v.end()
		})
	}
}

// machine makes start boot a machine in which plyd runs. When its first process dies, all its processes and mounts are gone.
func (v *victim) machine() {
	boots := 0
	v.command = func(flags []string) *exec.Cmd {
		boots++
		id := filepath.Join(v.dir, "boot-id")
		if err := os.WriteFile(id, []byte("00000000-0000-0000-0000-"+strconv.Itoa(100_000_000_000+boots)+"\n"), 0o444); err != nil {
			v.t.Fatal(err)
		}
		script := `mount -t proc proc /proc
mount --bind "$1" /proc/sys/kernel/random/boot_id
mount -t tmpfs -o mode=711 run "$2"
shift 2
trap 'kill -TERM $!; wait $!; exit' TERM
"$@" & wait $!`
		args := append([]string{"-euc", script, "sh", id, filepath.Join(v.dir, "run"), filepath.Join(bin, "plyd")}, flags...)
		cmd := exec.Command("sh", args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		return cmd
	}
}
