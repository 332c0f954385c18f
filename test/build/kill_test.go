package build

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var kills = flag.Int("kills", 0, "how often TestKilledEngine kills the engine; 0 = 3 times, or 100 with PLY_NIGHTLY")

// An engine that is killed at any point of a build leaves a store that checks clean and nothing of the build but what it has finished: the steps before the one that ran
// are in the cache of the next engine, and no process, container, cgroup, mount or file is left.
func TestKilledEngine(t *testing.T) {
	rounds := *kills
	switch {
	case rounds > 0:
	case os.Getenv("PLY_NIGHTLY") != "":
		rounds = 100
	default:
		rounds = 3
	}
	e := startPly(t, "erofs")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	build := func(b builder, dir, tag string) *exec.Cmd {
		c := exec.Command(e.cli[0], "build", "--progress", "plain", "-t", tag, ".")
		c.Env = e.env
		if b.name != "ply" {
			c = exec.Command("/usr/bin/docker", "build", "-t", tag, ".")
			c.Env = append(slices.Clone(e.env), "BUILDKIT_PROGRESS=plain", map[string]string{"classic": "DOCKER_BUILDKIT=0", "buildkit": "DOCKER_BUILDKIT=1"}[b.name])
		}
		c.Dir = dir
		return c
	}
	// The first builds make directories that stay.
	for _, b := range protocols {
		if out, err := build(b, write(t, map[string]string{"Dockerfile": "FROM base\nRUN --network=none true\n"}), "first").CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", b.name, err, out)
		}
	}
	e.ply(t, "rmi", "-f", "first")
	e.ply(t, "builder", "prune", "-af")
	before := traces(t, e)
	const steps = 8
	for round := range rounds {
		b := protocols[random.IntN(len(protocols))]
		mounts := ""
		if b.name != "classic" {
			mounts = fmt.Sprintf("--mount=type=cache,id=c%d,from=base,target=/c --mount=type=tmpfs,target=/t --mount=type=bind,source=d,target=/b,rw ", round)
		}
		text := "FROM base AS a\n"
		for i := range steps {
			text += fmt.Sprintf("RUN %secho executing step %d-%d. && echo %d > /f%d && sleep 0.05\nCOPY d /copy%d\n", mounts, round, i, i, i, i)
		}
		all := "/all"
		if b.name == "classic" {
			all = "" // it shows the output of the last stage only
		} else {
			text += fmt.Sprintf("FROM base\nRUN echo other %d > /other && sleep 0.1\nCOPY --from=a / /all/\n", round)
		}
		tag := fmt.Sprint("killed", round)
		dir := write(t, map[string]string{"Dockerfile": text, "d/big": strings.Repeat(fmt.Sprint(round), 2<<20), "d/small": "x"})
		c := build(b, dir, tag)
		var out bytes.Buffer
		c.Stdout, c.Stderr = &out, &out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
		if err := e.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = e.cmd.Wait() // killed
		whole := c.Wait() == nil
		first := out.String()
		e.http.CloseIdleConnections()
		ran := containersOf(t, e)
		again := exec.Command(e.cmd.Path, e.cmd.Args[1:]...)
		e.cmd = nil
		e.launch(t, again)
		if ids := e.ply(t, "ps", "-aq"); ids != "" {
			t.Errorf("round %d: containers of steps are left: %s", round, ids)
		}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			rest := stillThere(e, ran)
			if rest == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: left of containers: %s", round, rest)
			}
		}
		if report, code := e.try("", e.cli[0], "system", "check", "--full"); code != 0 {
			t.Fatalf("round %d: the check: exit code %d\n%s", round, code, report)
		}
		answer, err := build(b, dir, tag).CombinedOutput()
		second := string(answer)
		if err != nil {
			t.Fatalf("round %d: %s: %v\n%s\nafter\n%s", round, b.name, err, second, first)
		}
		began := func(out string, i int) bool { // the line of the command's output, not that of the instruction
			return regexp.MustCompile(fmt.Sprintf(`(?m)^[^&]*executing step %d-%d\.\r?$`, round, i)).MatchString(out)
		}
		hits := 0
		for i := range steps {
			done := whole || i+1 < steps && began(first, i+1)
			if done && began(second, i) {
				t.Errorf("round %d: %s: step %d was finished, and was executed again\n%s\nafter\n%s", round, b.name, i, second, first)
			}
			if !began(second, i) {
				hits++
			}
			if !began(first, i) && !began(second, i) {
				t.Errorf("round %d: %s: step %d was never executed\n%s\nafter\n%s", round, b.name, i, second, first)
			}
		}
		t.Logf("round %d: %s: %d of %d steps in the cache, %d containers were there", round, b.name, hits, steps, len(ran))
		tr, err := e.saved(tag)
		if err != nil {
			t.Fatal(err)
		}
		for i := range steps {
			if got := tr[fmt.Sprintf("%s/f%d", all, i)].data; got != fmt.Sprint(i, "\n") {
				t.Errorf("round %d: %s/f%d is %q", round, all, i, got)
			}
		}
		e.ply(t, "rmi", "-f", tag)
	}
	left(t, e)
	// Without its cache, the engine has what it had before. What BuildKit's clients sent stays for their next builds, and so do cache mounts. A layer or a config that
	// is complete stays for as long as a collection leaves young objects alone.
	e.ply(t, "builder", "prune", "-af")
	var rest []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		rest = slices.DeleteFunc(traces(t, e), func(p string) bool {
			rel := strings.TrimPrefix(p, e.dir+"/")
			return regexp.MustCompile(`^data/(build/contexts|copies|layers/roots)/|^data/(build/mounts|blobs/sha256|layers/sha256)/[0-9a-f]{64}(\.json$|/|$)`).MatchString(rel) || slices.Contains(before, p)
		})
		if len(rest) == 0 {
			return
		}
	}
	t.Errorf("left:\n%s", strings.Join(rest, "\n"))
}

// containersOf returns the IDs of the containers that an engine has.
func containersOf(t *testing.T, e *engine) (ids []string) {
	t.Helper()
	for _, top := range []string{"data", "run"} {
		entries, err := os.ReadDir(filepath.Join(e.dir, top, "containers"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, d := range entries {
			if id := d.Name(); regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(id) && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// stillThere returns the cgroups, processes and directories of containers that are there.
func stillThere(e *engine, ids []string) string {
	var rest []string
	for _, id := range ids {
		for _, pattern := range []string{"/sys/fs/cgroup/*/" + id, "/sys/fs/cgroup/*/*/" + id, e.dir + "/*/containers/" + id} {
			found, _ := filepath.Glob(pattern) // the pattern is well-formed
			rest = append(rest, found...)
		}
		if out, _ := exec.Command("pgrep", "-af", id).Output(); len(out) > 0 {
			rest = append(rest, string(out))
		}
	}
	return strings.Join(rest, " ")
}

// traces are the files and mounts of an engine that a build may leave, and the cgroups of its containers.
func traces(t *testing.T, e *engine) (list []string) {
	t.Helper()
	for _, top := range []string{"data", "run"} {
		err := filepath.WalkDir(filepath.Join(e.dir, top), func(p string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err == nil && d.IsDir() && (strings.HasSuffix(p, "/build/history") || strings.HasSuffix(p, "/layers/inits")) {
				return fs.SkipDir // the builds that were cancelled, and directories that are made before a container needs them
			}
			list = append(list, p)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], e.dir+"/") {
			list = append(list, "mount "+f[1])
		}
	}
	slices.Sort(list)
	return list
}

// However a client leaves or cancels its build, the processes of the step end, and nothing of it stays: no process, container, cgroup, mount or file.
func TestCancelLeavesNothing(t *testing.T) {
	e := startPly(t, "erofs")
	client := func(sig syscall.Signal, b builder) func(t *testing.T, dir string, up func() int) {
		return func(t *testing.T, dir string, up func() int) {
			name, args, env := e.cli[0], []string{"build", "."}, e.env
			if b.name != "ply" {
				name, env = "/usr/bin/docker", append(slices.Clone(e.env), map[string]string{"classic": "DOCKER_BUILDKIT=0", "buildkit": "DOCKER_BUILDKIT=1"}[b.name])
			}
			c := exec.Command(name, args...)
			c.Dir, c.Env = dir, env
			var out bytes.Buffer
			c.Stdout, c.Stderr = &out, &out
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			up()
			if err := c.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := c.Wait(); err == nil {
				t.Errorf("a build that was cancelled succeeded\n%s", out.String())
			}
		}
	}
	// request builds over the API, until end ends it.
	request := func(query string, end func(cancel func())) func(t *testing.T, dir string, up func() int) {
		return func(t *testing.T, dir string, up func() int) {
			text, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
			if err != nil {
				t.Fatal(err)
			}
			var body bytes.Buffer
			w := tar.NewWriter(&body)
			if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(text))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(text); err != nil || w.Close() != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://e/build?"+query, &body)
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if r, err := e.http.Do(req); err == nil {
					_, _ = bytes.NewBuffer(nil).ReadFrom(r.Body) // until it ends
					r.Body.Close()
				}
			}()
			up()
			end(cancel)
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Error("the answer does not end")
			}
		}
	}
	const contexts = "data/build/contexts/" // what BuildKit's clients sent stays for their next build
	for i, way := range []struct {
		name   string
		cancel func(t *testing.T, dir string, up func() int)
		kept   string
	}{
		{"the first, which makes directories", client(syscall.SIGINT, plyBuilder), ""},
		{"ply interrupted", client(syscall.SIGINT, plyBuilder), ""},
		{"ply killed", client(syscall.SIGKILL, plyBuilder), ""},
		{"classic interrupted", client(syscall.SIGINT, classicBuilder), ""},
		{"classic killed", client(syscall.SIGKILL, classicBuilder), ""},
		{"buildkit interrupted", client(syscall.SIGINT, buildkitBuilder), contexts},
		{"buildkit killed", client(syscall.SIGKILL, buildkitBuilder), contexts},
		{"request ends", request("", func(cancel func()) { cancel() }), ""},
		{"request cancelled", request("version=2&buildid=mine", func(func()) {
			r, err := e.get("POST", "/build/cancel?id=mine", nil)
			if err != nil {
				t.Error(err)
				return
			}
			r.Body.Close()
		}), ""},
	} {
		t.Run(way.name, func(t *testing.T) {
			nap := fmt.Sprintf("sleep %d", 1_000_000+int64(os.Getpid())*1000+naps.Add(1))
			dir := write(t, map[string]string{"Dockerfile": "FROM base\nRUN --mount=type=tmpfs,target=/t --mount=type=bind,from=base,target=/b,rw trap '' TERM INT HUP; (while true; do " + nap + "; done) & touch /b/x /x; while true; do " + nap + "; done\n"})
			var groups []string
			before := append(traces(t, e), filepath.Join(e.dir, "data/build/contexts"))
			way.cancel(t, dir, func() int {
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
					if out, _ := exec.Command("pgrep", "-f", "^"+nap+"$").Output(); bytes.Count(out, []byte("\n")) == 2 {
						var pid int
						fmt.Sscan(string(out), &pid)
						groups = cgroups(t, pid)
						return pid
					}
					if time.Now().After(deadline) {
						t.Fatal("the step does not start")
					}
				}
			})
			began := time.Now()
			wait := func(what func() string) {
				t.Helper()
				for what() != "" {
					if time.Since(began) > 30*time.Second {
						t.Fatalf("left: %s\n%s", what(), e.log())
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
			wait(func() string { out, _ := exec.Command("pgrep", "-af", "^"+nap+"$").Output(); return string(out) })
			t.Logf("the processes were gone after %v", time.Since(began))
			wait(func() string { return e.ply(t, "ps", "-aq") })
			wait(func() string {
				return strings.Join(slices.DeleteFunc(slices.Clone(groups), func(p string) bool { _, err := os.Stat(p); return err != nil }), " ")
			})
			if i == 0 {
				return
			}
			wait(func() string {
				return strings.Join(slices.DeleteFunc(traces(t, e), func(p string) bool {
					kept := way.kept != "" && strings.HasPrefix(p, filepath.Join(e.dir, way.kept))
					return kept || slices.Contains(before, p)
				}), " ")
			})
		})
	}
	left(t, e)
}

// cgroups returns the directories of the cgroups of a process.
func cgroups(t *testing.T, pid int) (dirs []string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		w := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if dir := filepath.Join("/sys/fs/cgroup", w[1], w[2]); len(w[2]) > 10 {
			if _, err := os.Stat(dir); err == nil {
				dirs = append(dirs, dir)
			}
		}
	}
	if len(dirs) == 0 {
		t.Errorf("the cgroups of a step were not found:\n%s", b)
	}
	return dirs
}
