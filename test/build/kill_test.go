package build

import (
	"archive/tar"
	"bytes"
	"context"
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

// An engine that is killed at any point of a build leaves a store that checks clean and nothing of the build but what it has finished: the steps before the one that ran
// are in the cache of the next engine.
func TestKilledEngine(t *testing.T) {
	rounds := 3
	if os.Getenv("PLY_NIGHTLY") != "" {
		rounds = 100
	}
	e := startPly(t, "erofs")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	const steps = 8
	for round := range rounds {
		text := "FROM base AS a\n"
		for i := range steps {
			text += fmt.Sprintf("RUN echo executing step %d-%d. && echo %d > /f%d && sleep 0.05\nCOPY d /copy%d\n", round, i, i, i, i)
		}
		text += fmt.Sprintf("FROM base\nRUN echo other %d > /other && sleep 0.1\nCOPY --from=a / /all/\n", round)
		dir := write(t, map[string]string{"Dockerfile": text, "d/big": strings.Repeat(fmt.Sprint(round), 2<<20), "d/small": "x"})
		c := exec.Command(e.cli[0], "build", "--progress", "plain", "-t", fmt.Sprint("killed", round), ".")
		c.Dir, c.Env = dir, e.env
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
		again := exec.Command(e.cmd.Path, e.cmd.Args[1:]...)
		e.cmd = nil
		e.launch(t, again)
		if ids := e.ply(t, "ps", "-aq"); ids != "" {
			t.Errorf("round %d: containers of steps are left: %s", round, ids)
		}
		if report, code := e.try("", e.cli[0], "system", "check", "--full"); code != 0 {
			t.Fatalf("round %d: the check: exit code %d\n%s", round, code, report)
		}
		second, code := e.try(dir, e.cli[0], "build", "--progress", "plain", "-t", fmt.Sprint("killed", round), ".")
		if code != 0 {
			t.Fatalf("round %d: exit code %d\n%s\nafter\n%s", round, code, second, first)
		}
		began := func(out string, i int) bool { // the line of the command's output, not that of the instruction
			return regexp.MustCompile(fmt.Sprintf(`(?m)^[^&]*executing step %d-%d\.\r?$`, round, i)).MatchString(out)
		}
		hits := 0
		for i := range steps {
			done := whole || i+1 < steps && began(first, i+1)
			if done && began(second, i) {
				t.Errorf("round %d: step %d was finished, and was executed again\n%s\nafter\n%s", round, i, second, first)
			}
			if !began(second, i) {
				hits++
			}
			if !began(first, i) && !began(second, i) {
				t.Errorf("round %d: step %d was never executed\n%s\nafter\n%s", round, i, second, first)
			}
		}
		t.Logf("round %d: %d of %d steps in the cache", round, hits, steps)
		tr, err := e.saved(fmt.Sprint("killed", round))
		if err != nil {
			t.Fatal(err)
		}
		for i := range steps {
			if got := tr[fmt.Sprintf("/all/f%d", i)].data; got != fmt.Sprint(i, "\n") {
				t.Errorf("round %d: /all/f%d is %q", round, i, got)
			}
		}
		e.ply(t, "rmi", "-f", fmt.Sprint("killed", round))
	}
	left(t, e)
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
