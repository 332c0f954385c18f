package crash

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

var (
	seedFlag  = flag.Uint64("crash.seed", 0, "seed of the random kills and power cuts; 0 takes the time")
	kills     = flag.Int("crash.kills", 60, "how many times plyd is killed")
	allFaults = flag.Bool("crash.faults", false, "each operation of the disk fails with each error")
	states    = flag.Int("crash.states", 12, "how many states a crash can leave are tried for each operation")
	cuts      = flag.Int("crash.cuts", 45, "how many times the power is cut")
)

// seed returns and prints a seed.
func seed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-crash.seed %d", seed)
	return seed
}

// victim is a plyd that crashes, and its clients.
type victim struct {
	t       *testing.T
	dir     string // outlives crashes and holds the socket
	data    string // the data root
	name    string // of this victim among those that run at the same time
	command func(flags []string) *exec.Cmd
	flags   []string
	plyd    *exec.Cmd

	crashed atomic.Bool   // what is acknowledged from here on is not counted
	acks    chan struct{} // receives for every acknowledged operation; drops when nobody receives
}

func newVictim(t *testing.T, name, data, driver string) *victim {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "ply-crash.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // again, in case the test failed before end
	v := &victim{t: t, dir: dir, data: data, name: name, acks: make(chan struct{})}
	if data == "" {
		v.data = filepath.Join(dir, "data")
	}
	v.flags = []string{"--data-root", v.data, "--exec-root", filepath.Join(dir, "run"), "-H", "unix://" + filepath.Join(dir, "s"), "-s", driver,
		"--pidfile", filepath.Join(dir, "pid"), "--bridge", "ply" + name, "--cgroup-parent", v.cgroup(), "--config-file", filepath.Join(dir, "daemon.json")}
	v.command = func(flags []string) *exec.Cmd { return exec.Command(filepath.Join(bin, "plyd"), flags...) }
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o644), os.Mkdir(filepath.Join(dir, "run"), 0o711)); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *victim) cgroup() string { return "/plycrash-" + v.name + "-" + strconv.Itoa(os.Getpid()) }

func (v *victim) start() {
	v.t.Helper()
	log, err := os.OpenFile(filepath.Join(v.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		v.t.Fatal(err)
	}
	defer log.Close()
	v.plyd = v.command(v.flags)
	v.plyd.Stdout, v.plyd.Stderr = log, log
	if err := v.plyd.Start(); err != nil {
		v.t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, err := v.ply(context.Background(), "version"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			v.t.Fatalf("plyd does not come up again:\n%s", v.log())
		}
	}
	v.crashed.Store(false)
}

func (v *victim) log() string {
	b, _ := os.ReadFile(filepath.Join(v.dir, "log")) // shown in a failed test only
	return string(b)
}

// kill kills the process that start started.
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

func (v *victim) must(args ...string) {
	v.t.Helper()
	if _, err := v.ply(context.Background(), args...); err != nil {
		v.t.Fatal(err)
	}
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
	gone   func(n int) error // returns nil when nothing of the object is present; nil = not asked
	facts  map[int]fact
	recent map[int]bool // objects since the last verification
	slots  int          // how many different objects there are; 0 = no limit
	next   int          // how many were made
}

// object returns the number of the nth object that is made.
func (w *worker) object(n int) int {
	if w.slots > 0 && n >= 0 {
		return n % w.slots
	}
	return n
}

// work runs until ctx ends or an operation fails. An operation that is interrupted leaves its fact unknown.
func (w *worker) work(ctx context.Context, v *victim, r *rand.Rand) {
	for ctx.Err() == nil {
		n, op, fact := w.object(w.next-1), w.remove, absent
		if w.facts[n] != present || r.IntN(2) == 0 {
			n, op, fact = w.object(w.next), w.make, present
			w.next++
		}
		w.facts[n], w.recent[n] = unknown, true
		if op(ctx, n) != nil || v.crashed.Load() {
			return
		}
		w.facts[n] = fact
		select {
		case v.acks <- struct{}{}:
		case <-ctx.Done():
		default:
		}
	}
}

// verify checks the objects since the last verification, and all of them if every is set.
func (w *worker) verify(t *testing.T, every bool) {
	t.Helper()
	for n, f := range w.facts {
		if !every && !w.recent[n] {
			continue
		}
		err := w.check(n)
		if f == absent && err != nil && w.gone != nil {
			if left := w.gone(n); left != nil {
				t.Errorf("%s %d was removed, which was acknowledged, but: %v", w.name, n, left)
			}
		}
		switch {
		case f == present && err != nil:
			t.Errorf("%s %d was acknowledged and is missing: %v", w.name, n, err)
		case f == absent && err == nil:
			t.Errorf("%s %d was removed, which was acknowledged, and is present", w.name, n)
		case f == unknown && err == nil:
			w.facts[n] = present
		case f == unknown:
			delete(w.facts, n) // there may be a part of it
		}
	}
	w.recent = map[int]bool{}
}

// prepare makes what the workers use: the image base:1, the stopped container old, and archives of one image each.
func (v *victim) prepare() {
	v.t.Helper()
	v.must("import", "-c", `CMD ["sh"]`, rootfs, "base:1")
	v.must("run", "--network", "none", "--name", "old", "base:1", "sh", "-c", "echo changed >/new")
	for i := range archives {
		name := fmt.Sprintf("loaded:%d", i)
		v.must("import", "-m", name, rootfs, name)
		v.must("save", "-o", filepath.Join(v.dir, fmt.Sprintf("loaded-%d.tar", i)), name)
		v.must("rmi", name)
	}
}

// archives is how many archives there are to load, and remotes how many images to pull.
const (
	archives = 3
	remotes  = 40
)

// registry starts a registry with images that have a layer in common. It returns the repository of the tags 0 to remotes-1.
func registry(t *testing.T) string {
	reg := remotetest.StartFake(t, false)
	for n := range remotes {
		layer := func(seed int) remotetest.LayerSpec {
			return remotetest.LayerSpec{Files: []remotetest.File{{Name: fmt.Sprint("dir", seed, "/")}, {Name: fmt.Sprint("dir", seed, "/file"), Data: remotetest.Noise(uint64(seed), 60_000)}}}
		}
		reg.Add("some/image", strconv.Itoa(n), remotetest.Make(t, oci.FormatDocker, layer(1000+n%4), layer(n)))
	}
	return reg.Addr() + "/some/image"
}

func (v *victim) workers(remote string) []*worker {
	run := func(ctx context.Context, format string, args ...any) error {
		_, err := v.ply(ctx, strings.Fields(fmt.Sprintf(format, args...))...)
		return err
	}
	here := context.Background()
	// save reads every byte of every layer and compares digests.
	image := func(name string) func(int) error {
		return func(n int) error { return run(here, "save -o /dev/null %s:%d", name, n) }
	}
	untag := func(name string) func(context.Context, int) error {
		return func(ctx context.Context, n int) error { return run(ctx, "rmi %s:%d", name, n) }
	}
	inspect := func(kind, name, format, want string) error {
		out, err := v.ply(here, kind, "inspect", "-f", format, name)
		if err == nil && strings.TrimSpace(out) != want {
			err = fmt.Errorf("%s %s: %s is %q, want %q", kind, name, format, out, want)
		}
		return err
	}
	rm := func(name string) func(context.Context, int) error {
		return func(ctx context.Context, n int) error { return run(ctx, "rm -f %s%d", name, n) }
	}
	// A removed volume must be gone from the disk, and a new one of its name must be empty.
	vacant := func(name string) func(int) error {
		return func(n int) error {
			vol := fmt.Sprint(name, n)
			if _, err := os.Lstat(filepath.Join(v.data, "volumes", vol)); err == nil {
				return errors.New("its directory is there")
			}
			if err := run(here, "volume create %s", vol); err != nil {
				return err
			}
			if left, err := os.ReadDir(filepath.Join(v.data, "volumes", vol, "_data")); err != nil || len(left) > 0 {
				return fmt.Errorf("a new volume of that name has %v, %w", left, err)
			}
			return run(here, "volume rm %s", vol)
		}
	}
	holds := func(vol, file, want string) error {
		if err := inspect("volume", vol, "{{.Name}}", vol); err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(v.data, "volumes", vol, "_data", file))
		if err == nil && string(b) != want {
			err = fmt.Errorf("%s is %q", file, b)
		}
		return err
	}
	ws := []*worker{
		{name: "tagged", check: image("tagged"), remove: untag("tagged"),
			make: func(ctx context.Context, n int) error { return run(ctx, "tag base:1 tagged:%d", n) }},
		{name: "committed", check: image("committed"), remove: untag("committed"),
			make: func(ctx context.Context, n int) error { return run(ctx, "commit -m %d old committed:%d", n, n) }},
		{name: "imported", check: image("imported"), remove: untag("imported"),
			make: func(ctx context.Context, n int) error { return run(ctx, "import -m %d %s imported:%d", n, rootfs, n) }},
		{name: "loaded", check: image("loaded"), remove: untag("loaded"), slots: archives,
			make: func(ctx context.Context, n int) error {
				return run(ctx, "load -q -i %s", filepath.Join(v.dir, fmt.Sprintf("loaded-%d.tar", n)))
			}},
		{name: "pulled", check: image(remote), remove: untag(remote), slots: remotes,
			make: func(ctx context.Context, n int) error { return run(ctx, "pull -q %s:%d", remote, n) }},
		{name: "created", remove: rm("created"),
			make: func(ctx context.Context, n int) error {
				return run(ctx, "create --network none --name created%d base:1 sh -c :", n)
			},
			check: func(n int) error { return run(here, "start -a created%d", n) }},
		{name: "ran", remove: rm("ran"),
			make: func(ctx context.Context, n int) error {
				return run(ctx, "run --network none --name ran%d base:1 echo said %d", n, n)
			},
			check: func(n int) error {
				name := fmt.Sprint("ran", n)
				if err := inspect("container", name, "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", "exited 0"); err != nil {
					return err
				}
				out, err := v.ply(here, "logs", name)
				if err == nil && strings.TrimSpace(out) != fmt.Sprintf("said %d", n) {
					err = fmt.Errorf("log is %q", out)
				}
				return err
			}},
		// What a program in a container syncs to a volume is there.
		{name: "volume", gone: vacant("volume"),
			make: func(ctx context.Context, n int) error {
				if err := run(ctx, "volume create volume%d", n); err != nil {
					return err
				}
				_, err := v.ply(ctx, "run", "--rm", "--network", "none", "-v", fmt.Sprintf("volume%d:/data", n), "base:1", "sh", "-c",
					fmt.Sprintf("echo written %d | dd of=/data/f conv=fsync 2>/dev/null", n))
				return err
			},
			remove: func(ctx context.Context, n int) error { return run(ctx, "volume rm volume%d", n) },
			check:  func(n int) error { return holds(fmt.Sprint("volume", n), "f", fmt.Sprintf("written %d\n", n)) }},
		// What a new volume gets from the image is there before the container starts.
		{name: "filled", gone: vacant("filled"),
			make: func(ctx context.Context, n int) error {
				return run(ctx, "run --rm --network none -v filled%d:/vol base:1 sh -c :", n)
			},
			remove: func(ctx context.Context, n int) error { return run(ctx, "volume rm filled%d", n) },
			check:  func(n int) error { return holds(fmt.Sprint("filled", n), "from-image", "content\n") }},
	}
	for _, w := range ws {
		w.facts, w.recent = map[int]fact{}, map[int]bool{}
	}
	return ws
}

// aim chooses when to crash: at a random moment of the work of all workers, in the moment of an acknowledgement to one of all
// workers, or after an acknowledgement while nothing else writes to the disk. It starts the workers and returns when it is time.
func (v *victim) aim(ctx context.Context, ws []*worker, r *rand.Rand, run func(*worker)) {
	mode := r.IntN(3)
	if mode == 2 {
		ws = []*worker{ws[r.IntN(len(ws))]}
	}
	for _, w := range ws {
		run(w)
	}
	if mode == 0 {
		time.Sleep(time.Duration(20+r.IntN(600)) * time.Millisecond)
		return
	}
	limit := time.After(20 * time.Second)
	for range 1 + r.IntN(4*len(ws)) {
		select {
		case <-v.acks:
		case <-limit:
			return
		case <-ctx.Done():
			return
		}
	}
}

// round lets the workers work, crashes, starts again and checks what was acknowledged.
func (v *victim) round(ws []*worker, r *rand.Rand, crash func()) {
	v.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	v.aim(ctx, ws, r, func(w *worker) {
		own := rand.New(rand.NewPCG(r.Uint64(), 0))
		wg.Go(func() { w.work(ctx, v, own) })
	})
	v.crashed.Store(true)
	crash()
	stop()
	wg.Wait()
	v.start()
	v.verify(ws, false)
}

// verify checks what was acknowledged, by several clients at a time, and that everything that plyd stores agrees; with every, to
// the last byte.
func (v *victim) verify(ws []*worker, every bool) {
	v.t.Helper()
	var wg sync.WaitGroup
	for _, w := range ws {
		wg.Go(func() { w.verify(v.t, every) })
	}
	wg.Go(func() {
		check := []string{"system", "check"}
		if every {
			check = append(check, "--full")
		}
		if _, err := v.ply(context.Background(), check...); err != nil {
			v.t.Error(err)
		}
	})
	wg.Wait()
	// Every digest, index, reference and mount agrees.
	args := []string{"system", "check"}
	if every {
		args = append(args, "--full")
	}
	if out, err := v.ply(context.Background(), args...); err != nil {
		v.t.Errorf("%v\n%s", err, out)
	}
}

// tally checks that the workers made enough objects for the test to show anything.
func (v *victim) tally(ws []*worker, rounds int) {
	made := 0
	for _, w := range ws {
		made += w.next
		if w.next < rounds/8 {
			v.t.Errorf("worker %s made only %d objects in %d rounds, too few for the test to show anything", w.name, w.next, rounds)
		}
	}
	v.t.Logf("%d rounds, %d objects made", rounds, made)
}
