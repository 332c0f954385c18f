package build

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ply/test/private"
)

// The BuildKit in Debian's dockerd takes the results of a build from the cache that ply has written into an image, and from a cache of its own. To the
// front end there, which is five years older, a RUN and some flags have other keys.
func TestBuildKitReadsOurCache(t *testing.T) {
	if os.Getenv("PLY_NIGHTLY") == "" {
		t.Skip("dockerd is started at night")
	}
	e, d := startPly(t, "overlay2"), startDocker(t)
	d.env = append(slices.Clone(d.env), "DOCKER_BUILDKIT=1", "BUILDKIT_PROGRESS=plain")
	r := startRegistry(t, t.TempDir()).Host
	e.ply(t, "tag", "base", r+"/base:1")
	e.ply(t, "push", "-q", r+"/base:1")
	dir := write(t, map[string]string{"Dockerfile": "FROM " + r + "/base:1\nCOPY a /a\nCOPY d /d/\n", "a": "alpha\n", "d/x": "x\n"})
	inline := r + "/app:1"
	e.run(t, e.cli[0], "build", "-q", "--push", "-t", inline, "--cache-to", "type=inline", dir)
	out, code := d.try(dir, d.cli[0], "build", "--cache-from", inline, "-t", "got", ".")
	if code != 0 || strings.Count(out, "CACHED") != 2 || !strings.Contains(out, "pulling sha256:") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	tr, err := d.saved("got")
	if err != nil {
		t.Fatal(err)
	}
	if tr["/a"].data != "alpha\n" || tr["/d/x"].data != "x\n" {
		t.Errorf("the image has %v %v", tr["/a"], tr["/d/x"])
	}
	// A cache of its own. This BuildKit describes a RUN in an older way, so it executes it; from a whole cache it takes what follows by the content.
	file := "FROM " + r + "/base:1 AS a\nCOPY a /a\nRUN cat /a /a > /b\nFROM " + r + "/base:1\nCOPY d /d/\nCOPY --from=a /b /b\n"
	dir = write(t, map[string]string{"Dockerfile": file, "a": "alpha\n", "d/x": "x\n"})
	for mode, want := range map[string][]string{"min": {"COPY d /d/"}, "max": {"COPY --from=a /b /b", "COPY a /a", "COPY d /d/"}} {
		ref := r + "/cache:" + mode
		e.run(t, e.cli[0], "build", "-q", "-t", "any", "--cache-to", "type=registry,image-manifest=false,mode="+mode+",ref="+ref, dir) // the form that its BuildKit knows
		d.run(t, d.cli[0], "builder", "prune", "-af")
		out, code := d.try(dir, d.cli[0], "build", "--cache-from", ref, "-t", "got", ".")
		if got := cachedSteps(out); code != 0 || !slices.Equal(got, want) {
			t.Errorf("mode=%s: exit code %d, from the cache: %q\n%s", mode, code, got, out)
			continue
		}
		if tr, err = d.saved("got"); err != nil {
			t.Fatal(err)
		}
		if tr["/b"].data != "alpha\nalpha\n" || tr["/d/x"].data != "x\n" {
			t.Errorf("mode=%s: the image has %v %v", mode, tr["/b"], tr["/d/x"])
		}
	}
}

// A BuildKit of today takes every step from caches that ply has written, and writes one from which ply takes every step. What is in the files is never made again.
func TestNewBuildKitReadsOurCache(t *testing.T) {
	buildkitd, buildx := filepath.Join(private.Clients(), "buildkitd"), filepath.Join(private.Clients(), "docker-buildx")
	for _, program := range []string{buildkitd, buildx} {
		if _, err := os.Stat(program); err != nil || os.Getenv("PLY_NIGHTLY") == "" {
			t.Skip("buildkitd is installed and started at night")
		}
	}
	e, dir := startPly(t, "overlay2"), t.TempDir()
	r := startRegistry(t, t.TempDir()).Host
	e.ply(t, "tag", "base", r+"/base:1")
	e.ply(t, "push", "-q", r+"/base:1")
	sock := "unix://" + filepath.Join(dir, "s")
	cmd := exec.Command(buildkitd, "--addr", sock, "--root", filepath.Join(dir, "root"), "--config", "/dev/null", "--containerd-worker=false",
		"--oci-worker-snapshotter", "native", "--oci-worker-net", "host")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	theirs := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(buildx, args...)
		cmd.Env = append(os.Environ(), "BUILDX_CONFIG="+filepath.Join(dir, "config"), "DOCKER_CONFIG="+filepath.Join(dir, "config"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	theirs("create", "--name", "b", "--driver", "remote", "--bootstrap", sock)
	from := "FROM " + r + "/base:1"
	src := write(t, map[string]string{
		"Dockerfile": from + " AS a\nARG WHO=you\nCOPY --chown=1:2 a /a\nRUN cat /a /a > /b; echo $WHO >> /b\n" + from +
			"\nENV E=1\nWORKDIR /w\nCOPY --exclude=*.no d /d/\nCOPY --from=a --chmod=600 /b /b\nRUN --mount=type=bind,from=a,target=/m,source=/b <<E\ncat /m > /w/m\nE\nADD --link a /l/\n",
		"a": "alpha\n", "d/x": "x\n", "d/x.no": "no\n"})
	const steps = 7 // WORKDIR is one
	for _, mode := range []string{"min", "max"} {
		registry, local := "type=registry,mode="+mode+",ref="+r+"/cache:"+mode, filepath.Join(dir, mode)
		e.run(t, e.cli[0], "build", "-q", "--cache-to", registry, "--cache-to", "type=local,mode="+mode+",dest="+local, src)
		for _, cache := range []string{registry, "type=local,src=" + local} {
			theirs("prune", "--builder", "b", "-af")
			dest := t.TempDir()
			out := theirs("build", "--builder", "b", "--progress", "plain", "--cache-from", cache, "--output", "type=local,dest="+dest, src)
			if got := cachedSteps(out); len(got) != steps {
				t.Errorf("%s: from the cache: %q\n%s", cache, got, out)
			}
			for name, want := range map[string]string{"b": "alpha\nalpha\nyou\n", "w/m": "alpha\nalpha\nyou\n", "l/a": "alpha\n", "d/x": "x\n"} {
				if got, err := os.ReadFile(filepath.Join(dest, name)); err != nil || string(got) != want {
					t.Errorf("%s: %s is %q, %v", cache, name, got, err)
				}
			}
		}
	}
	theirs("prune", "--builder", "b", "-af")
	back := r + "/cache:back"
	theirs("build", "--builder", "b", "--cache-to", "type=registry,mode=max,ref="+back, "--build-arg", "WHO=me", src)
	out, code := e.try(src, e.cli[0], "build", "--progress", "plain", "--build-arg", "WHO=me", "--cache-from", "type=registry,ref="+back, ".")
	if n := strings.Count(out, "Using cache"); code != 0 || strings.Contains(out, "Running in") || n == 0 {
		t.Errorf("exit code %d, %d steps from the cache\n%s", code, n, out)
	}
}

// cachedSteps returns the instructions that the plain progress of BuildKit calls cached, sorted.
func cachedSteps(out string) (steps []string) {
	names := map[string]string{}
	for line := range strings.Lines(out) {
		id, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, name, ok := strings.Cut(rest, "] "); ok && strings.HasPrefix(rest, "[") {
			names[id] = name
		} else if rest == "CACHED" {
			steps = append(steps, names[id])
		}
	}
	slices.Sort(steps)
	return steps
}
