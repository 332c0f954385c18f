package supervise_test

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/runspec"
	"ply/internal/container/shim"
	"ply/test/private"
)

// BenchmarkCreateStartWait runs /bin/true in a new container, from the runtime spec to the end of the process.
func BenchmarkCreateStartWait(b *testing.B) {
	bin, err := private.Shim()
	if err != nil {
		b.Fatal(err)
	}
	for _, tty := range []bool{false, true} {
		b.Run(fmt.Sprintf("tty=%v", tty), func(b *testing.B) {
			x := newBox(b, "/bin/true")
			x.cfg.Tty, x.in.Spec.Tty = tty, tty
			for b.Loop() {
				spec, _, err := runspec.Build(x.in)
				if err != nil {
					b.Fatal(err)
				}
				c, err := shim.Launch(b.Context(), bin, x.cfg, spec)
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Start(b.Context(), ""); err != nil {
					b.Fatal(err)
				}
				if _, err := c.Wait(b.Context(), ""); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := c.Shutdown(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkCreateStart creates and starts a container and does not measure its end.
func BenchmarkCreateStart(b *testing.B) {
	bin, err := private.Shim()
	if err != nil {
		b.Fatal(err)
	}
	x := newBox(b, "/bin/sleep", "100")
	for b.Loop() {
		spec, _, err := runspec.Build(x.in)
		if err != nil {
			b.Fatal(err)
		}
		c, err := shim.Launch(b.Context(), bin, x.cfg, spec)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Start(b.Context(), ""); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Kill(b.Context(), "", shim.KillArgs{Signal: int(unix.SIGKILL)}); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Wait(b.Context(), ""); err != nil {
			b.Fatal(err)
		}
		if err := c.Shutdown(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkExec runs /bin/true as an exec in a running container.
func BenchmarkExec(b *testing.B) {
	x := sh(b, "sleep 1000").launch().start()
	p := execProcess(x, "/bin/true")
	i := 0
	for b.Loop() {
		i++
		id := fmt.Sprint("x", i)
		if err := x.c.Exec(b.Context(), id, p, shim.ExecOptions{}); err != nil {
			b.Fatal(err)
		}
		if err := x.c.Start(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		if _, err := x.c.Wait(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

// maxPSS bounds the memory of a shim, in KiB of proportional set size.
const maxPSS = 8 << 10

func TestShimMemory(t *testing.T) {
	var boxes []*box
	for range 4 {
		b := sh(t, "seq 1 1000; sleep 100").launch().start()
		b.logged("1000")
		boxes = append(boxes, b)
	}
	for _, b := range boxes {
		if err := b.c.Exec(t.Context(), "x", execProcess(b, "/bin/true"), shim.ExecOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := b.c.Start(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.c.Wait(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1200 * time.Millisecond) // a shim returns memory one second after it has created its container
	for _, b := range boxes {
		kb := pss(t, b.c.Identity().PID)
		t.Logf("PSS of a shim with %d others: %d KiB", len(boxes)-1, kb)
		if kb > maxPSS {
			t.Errorf("PSS %d KiB is over %d", kb, maxPSS)
		}
	}
}

func pss(t *testing.T, pid int) (kb int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if strings.HasPrefix(sc.Text(), "Pss:") {
			if _, err := fmt.Sscanf(sc.Text(), "Pss: %d kB", &kb); err != nil {
				t.Fatal(err)
			}
		}
	}
	return kb
}
