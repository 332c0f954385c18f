package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// victim is a plyd that is killed, and its clients.
type victim struct {
	t     *testing.T
	dir   string
	flags []string
	plyd  *exec.Cmd
}

func (v *victim) start() {
	v.t.Helper()
	log, err := os.OpenFile(filepath.Join(v.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		v.t.Fatal(err)
	}
	defer log.Close()
	v.plyd = exec.Command(filepath.Join(bin, "plyd"), v.flags...)
	v.plyd.Stdout, v.plyd.Stderr = log, log
	if err := v.plyd.Start(); err != nil {
		v.t.Fatal(err)
	}
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := v.ply(context.Background(), "version"); err == nil {
			return
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(filepath.Join(v.dir, "log"))
			v.t.Fatalf("plyd does not come up again:\n%s", b)
		}
	}
}

func (v *victim) kill() {
	_ = v.plyd.Process.Kill() // it runs
	_ = v.plyd.Wait()
}

func (v *victim) ply(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(bin, "ply"), args...)
	c.Env = append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(v.dir, "s"), "DOCKER_CONFIG="+v.dir)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	if err != nil {
		err = fmt.Errorf("ply %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), err
}

// fact is what a worker knows about one of its objects.
type fact int

const (
	unknown fact = iota // the last operation on it was not acknowledged
	present
	absent
)

// worker makes and removes objects with its own names and keeps a fact about each.
type worker struct {
	name   string
	make   func(ctx context.Context, n int) error
	remove func(ctx context.Context, n int) error
	check  func(n int) error // returns nil when the object is present and whole
	facts  map[int]fact
	next   int
}

// work runs until ctx ends or an operation fails. An operation that is interrupted leaves its fact unknown.
func (w *worker) work(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		if n := w.next - 1; w.facts[n] == present && r.IntN(2) == 0 {
			w.facts[n] = unknown
			if w.remove(ctx, n) != nil {
				return
			}
			w.facts[n] = absent
			continue
		}
		n := w.next
		w.next++
		w.facts[n] = unknown
		if w.make(ctx, n) != nil {
			return
		}
		w.facts[n] = present
	}
}

func (w *worker) verify(t *testing.T) {
	t.Helper()
	for n, f := range w.facts {
		err := w.check(n)
		switch {
		case f == present && err != nil:
			t.Errorf("%s %d was acknowledged and is missing: %v", w.name, n, err)
		case f == absent && err == nil:
			t.Errorf("%s %d was removed, which was acknowledged, and is present", w.name, n)
		case f == unknown && err == nil:
			w.facts[n] = present
		case f == unknown:
			w.facts[n] = absent
		}
	}
}

func (v *victim) workers(remote string) []*worker {
	image := func(name string) func(int) error {
		return func(n int) error {
			// save reads every byte of every layer and compares digests.
			_, err := v.ply(context.Background(), "save", "-o", filepath.Join(v.dir, filepath.Base(name)+".tar"), fmt.Sprintf("%s:%d", name, n))
			return err
		}
	}
	run := func(ctx context.Context, format string, args ...any) error {
		_, err := v.ply(ctx, strings.Fields(fmt.Sprintf(format, args...))...)
		return err
	}
	ws := []*worker{
		{name: "tagged", check: image("tagged"),
			make:   func(ctx context.Context, n int) error { return run(ctx, "tag base:1 tagged:%d", n) },
			remove: func(ctx context.Context, n int) error { return run(ctx, "rmi tagged:%d", n) }},
		{name: "committed", check: image("committed"),
			make:   func(ctx context.Context, n int) error { return run(ctx, "commit -m %d old committed:%d", n, n) },
			remove: func(ctx context.Context, n int) error { return run(ctx, "rmi committed:%d", n) }},
		{name: "imported", check: image("imported"),
			make:   func(ctx context.Context, n int) error { return run(ctx, "import -m %d %s imported:%d", n, rootfs, n) },
			remove: func(ctx context.Context, n int) error { return run(ctx, "rmi imported:%d", n) }},
		{name: "pulled", check: func(int) error {
			_, err := v.ply(context.Background(), "save", "-o", filepath.Join(v.dir, "pulled.tar"), remote)
			return err
		},
			make:   func(ctx context.Context, _ int) error { return run(ctx, "pull -q %s", remote) },
			remove: func(ctx context.Context, _ int) error { return run(ctx, "rmi %s", remote) }},
		{name: "ran",
			make: func(ctx context.Context, n int) error {
				return run(ctx, "run --network none --name ran%d base:1 echo said %d", n, n)
			},
			remove: func(ctx context.Context, n int) error { return run(ctx, "rm -f ran%d", n) },
			check: func(n int) error {
				out, err := v.ply(context.Background(), "logs", fmt.Sprintf("ran%d", n))
				if err == nil && strings.TrimSpace(out) != fmt.Sprintf("said %d", n) {
					out2, _ := v.ply(context.Background(), "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", fmt.Sprintf("ran%d", n))
					err = fmt.Errorf("log is %q, state %s", out, out2)
				}
				return err
			}},
	}
	for _, w := range ws {
		w.facts = map[int]fact{}
	}
	return ws
}

// TestKill kills plyd at random moments while clients use it. After every start, what was acknowledged must be there.
func TestKill(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "ply-kill.")
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{t: t, dir: dir}
	v.flags = []string{"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "-H", "unix://" + filepath.Join(dir, "s"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge", "plykill0", "--config-file", filepath.Join(dir, "daemon.json")}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	reg := remotetest.StartFake(t, false)
	img := remotetest.Make(t, oci.FormatDocker, remotetest.LayerSpec{}, remotetest.LayerSpec{})
	for n := range 500 {
		reg.Add("some/image", strconv.Itoa(n), img)
	}
	remote := strings.TrimPrefix(reg.URL, "http://") + "/some/image"
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))

	v.start()
	ctx := context.Background()
	for _, args := range [][]string{{"import", "-c", `CMD ["sh"]`, rootfs, "base:1"}, {"run", "--network", "none", "--name", "old", "base:1", "sh", "-c", "echo changed >/new"}} {
		if _, err := v.ply(ctx, args...); err != nil {
			t.Fatal(err)
		}
	}
	ws := v.workers(remote)
	const cycles = 15
	for cycle := range cycles {
		workCtx, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for i, w := range ws {
			wg.Go(func() { w.work(workCtx, rand.New(rand.NewPCG(seed, uint64(cycle*100+i)))) })
		}
		time.Sleep(time.Duration(50+r.IntN(1200)) * time.Millisecond)
		v.kill()
		stop()
		wg.Wait()
		v.start()
		if r.IntN(4) == 0 { // kill the next plyd too, during its start-up
			v.kill()
			v.start()
		}
		for _, w := range ws {
			w.verify(t)
		}
		if t.Failed() {
			break
		}
	}
	made := 0
	for _, w := range ws {
		made += w.next
		if w.next < cycles/3 {
			t.Errorf("worker %s made only %d objects, too few for the test to show anything", w.name, w.next)
		}
	}
	t.Logf("%d objects made", made)
	v.end()
}

// end removes everything and checks that nothing is left.
func (v *victim) end() {
	t := v.t
	if ids, err := v.ply(context.Background(), "ps", "-aq"); err != nil {
		t.Error(err)
	} else if f := strings.Fields(ids); len(f) > 0 {
		if _, err := v.ply(context.Background(), append([]string{"rm", "-f"}, f...)...); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		b, _ := os.ReadFile(filepath.Join(v.dir, "log"))
		t.Logf("plyd:\n%s", b)
	}
	if err := v.plyd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = v.plyd.Wait() // its exit code is not the point here
	temporaries(t, filepath.Join(v.dir, "data"), "at the end")
	if n := mountCount(t, v.dir); n > 0 {
		t.Errorf("%d mounts are left", n)
	}
	if out, _ := exec.Command("pgrep", "-af", v.dir).Output(); len(out) > 0 {
		t.Errorf("processes are left:\n%s", out)
	}
	if err := os.RemoveAll(v.dir); err != nil {
		t.Error(err)
	}
}
