package build

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/safepath/racetest"
)

// write makes a directory with files.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "context.")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// buildkit builds with the docker command line of Debian, which speaks BuildKit's protocol of sessions.
func (e *engine) buildkit(dir string, args ...string) (string, int) {
	c := *e
	c.env = append(slices.Clone(e.env), "DOCKER_BUILDKIT=1", "BUILDKIT_PROGRESS=plain")
	return c.try(dir, "/usr/bin/docker", append([]string{"build"}, args...)...)
}

// Secrets, keys of an ssh agent and the passwords of proxies are in no file of the data root, in no image and in no log: neither while a step runs, nor after it, nor
// after one that failed.
func TestSecretsLeaveNothing(t *testing.T) {
	canary := func() string {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		return "canary" + hex.EncodeToString(b[:])
	}
	file, variable, proxy := canary(), canary(), canary()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	needles := map[string][]byte{"the file": []byte(file), "the variable": []byte(variable), "the password of the proxy": []byte(proxy), "the key": key.Seed()}

	e := startPly(t, "erofs")
	secrets := write(t, map[string]string{"file": file, "variable": variable, "key": string(private)})
	if err := os.Chmod(filepath.Join(secrets, "key"), 0o600); err != nil {
		t.Fatal(err)
	}
	const mounts = "RUN --mount=type=secret,id=file,required=true --mount=type=secret,id=variable,env=TOKEN,required=true --mount=type=ssh,required=true "
	const use = `grep -q canary /run/secrets/file && env | grep -q TOKEN=canary && env | grep -q HTTP_PROXY=.*canary && test -S "$SSH_AUTH_SOCK" && `
	dir := write(t, map[string]string{
		"Dockerfile": "FROM base\n" + mounts + use + "echo used > /used\nCOPY a /a\n",
		"Failing":    "FROM base\n" + mounts + use + "exit 9\n",
		"Sleeping":   "FROM base\n" + mounts + use + "touch /tmp/up && sleep 4\n",
		"a":          "a\n",
	})
	flags := []string{
		"--secret", "id=file,src=" + filepath.Join(secrets, "file"), "--secret", "id=variable,src=" + filepath.Join(secrets, "variable"),
		"--ssh", "default=" + filepath.Join(secrets, "key"), "--build-arg", "HTTP_PROXY=http://user:" + proxy + "@127.0.0.1:9",
	}
	look := func(when string) {
		t.Helper()
		for what, needle := range needles {
			for _, name := range containing(t, filepath.Join(e.dir, "data"), needle) {
				t.Errorf("%s: %s is in %s", when, what, name)
			}
		}
	}
	var logs strings.Builder // what the clients show
	done := make(chan string, 1)
	go func() {
		out, code := e.buildkit(dir, append(slices.Clone(flags), "-f", "Sleeping", ".")...)
		if code == 0 {
			out = ""
		}
		done <- out
	}()
	for running := true; running && !t.Failed(); {
		select {
		case out := <-done:
			if out != "" {
				t.Errorf("the step did not get its secrets:\n%s", out)
			}
			running = false
		default:
			look("while a step runs")
		}
	}
	out, code := e.buildkit(dir, append(slices.Clone(flags), "-t", "secrets", ".")...)
	if logs.WriteString(out); code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	look("after a build")
	out, code = e.buildkit(dir, append(slices.Clone(flags), "-f", "Failing", ".")...)
	if logs.WriteString(out); code == 0 {
		t.Errorf("the build did not fail\n%s", out)
	}
	look("after a step that failed")
	for _, args := range [][]string{{"history", "--no-trunc", "secrets"}, {"image", "inspect", "secrets"}, {"system", "df", "-v"}} {
		logs.WriteString(e.ply(t, args...))
	}
	r, err := e.get("GET", "/images/secrets/get", nil)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for what, needle := range needles {
		for where, text := range map[string][]byte{"what was printed": []byte(logs.String()), "the image": saved, "plyd's log": []byte(e.log())} {
			if bytes.Contains(text, needle) {
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
	e.ply(t, "builder", "prune", "-af")
	left(t, e)
}

// containing returns the files below dir that contain needle.
func containing(t *testing.T, dir string, needle []byte) (names []string) {
	t.Helper()
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) {
			return nil // removed meanwhile
		}
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if bytes.Contains(data, needle) {
			names = append(names, p)
		}
		if os.IsNotExist(err) {
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A context whose directories and files are exchanged for links while they are read gives nothing from outside of it to the image.
func TestContextRaces(t *testing.T) {
	const canary = "from outside of the context"
	e := startPly(t, "overlay2")
	outside := write(t, map[string]string{"f": canary, "sub/g": canary})
	dir := write(t, map[string]string{"Dockerfile": "FROM base\nCOPY . /all/\nCOPY d/f* /one/\nADD d/sub /two/\n", "d/f": "inside", "d/sub/g": "inside", "h/f": "inside"})
	if err := os.Symlink(outside, filepath.Join(dir, "evil")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "f"), filepath.Join(dir, "g")); err != nil {
		t.Fatal(err)
	}
	stop := racetest.Exchange(t, [2]string{filepath.Join(dir, "d"), filepath.Join(dir, "evil")}, [2]string{filepath.Join(dir, "h/f"), filepath.Join(dir, "g")})
	built := 0
	for range 12 {
		if _, code := e.try(dir, e.cli[0], "build", "-q", "--no-cache", "-t", "raced", "."); code != 0 {
			continue // what it was to copy may be gone for a moment
		}
		built++
		tr, err := e.saved("raced")
		if err != nil {
			t.Fatal(err)
		}
		for p, n := range tr {
			if strings.Contains(n.data, canary) {
				t.Fatalf("%s is from outside of the context", p)
			}
		}
	}
	stop()
	t.Logf("%d of 12 builds succeeded", built)
	left(t, e)
}

// Mount points that a step makes out of links, and exchanges while another step's mounts are made, stay in the containers.
func TestMountsStayInContainers(t *testing.T) {
	e := startPly(t, "overlay2")
	host := write(t, map[string]string{"untouched": "x"})
	before := racetest.State(t, host)
	dir := write(t, map[string]string{
		"Links": "FROM base\nRUN --mount=type=cache,id=shared,target=/c ln -s " + host + " /c/evil; ln -s ../../../../../../../../.." + host + " /c/up; mkdir -p /c/a\n" +
			"RUN --mount=type=cache,id=shared,target=/c --mount=type=tmpfs,target=/c/evil/made touch /c/evil/made/x\n" +
			"RUN --mount=type=cache,id=shared,target=/c --mount=type=tmpfs,target=/c/up/made touch /c/up/made/x\n",
		"Swap":   "FROM base\nRUN --mount=type=cache,id=shared,target=/c i=0; while [ $i -lt 3000 ]; do mv /c/a /c/t; ln -s " + host + " /c/a; rm /c/a; mv /c/t /c/a; i=$((i+1)); done\n",
		"Use":    "FROM base\nRUN --mount=type=cache,id=shared,target=/c --mount=type=tmpfs,target=/c/a/made touch /c/a/made/x || true\n",
		"Source": "FROM base\nRUN --mount=type=cache,id=shared,source=../../../../.." + host + ",target=/m touch /m/x\n",
		"Names":  "FROM base\nRUN --mount=type=cache,id=../../../../../../.." + host + "/id,target=/m touch /m/x\n",
		"Bind":   "FROM base\nRUN --mount=type=bind,source=../../../../../.." + host + ",target=/m,rw touch /m/x\n",
	})
	build := func(file string) (string, int) {
		return e.try(dir, e.cli[0], "build", "-q", "--no-cache", "-f", file, "-t", "mounts", ".")
	}
	if out, code := build("Links"); code > 1 || strings.Contains(out, "panic") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	swapping := make(chan struct{})
	go func() { defer close(swapping); build("Swap") }()
	for i := 0; i < 6; i++ {
		build("Use")
	}
	<-swapping
	for _, file := range []string{"Source", "Names", "Bind"} {
		build(file) // refused, or done within the store
	}
	if after := racetest.State(t, host); !sameState(before, after) {
		t.Errorf("a directory of the host was touched:\n%v\nwas\n%v", after, before)
	}
	left(t, e)
}

func sameState(a, b map[string]unix.Stat_t) bool {
	if len(a) != len(b) {
		return false
	}
	for p, st := range a {
		if b[p] != st {
			return false
		}
	}
	return true
}

// A file that changes without a new size or modification time is seen.
func TestStaleContext(t *testing.T) {
	e := startPly(t, "overlay2")
	dir := write(t, map[string]string{"Dockerfile": "FROM base\nCOPY f /f\n", "f": "0000"})
	old := time.Unix(1_500_000_000, 0)
	for i := range 6 {
		text := fmt.Sprintf("%04d", i)
		p := filepath.Join(dir, "f")
		if i%2 == 0 {
			if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(p+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		} else if err := os.Rename(p+".new", p); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, old, old); err != nil {
			t.Fatal(err)
		}
		e.run(t, "sh", "-c", "cd "+dir+" && exec "+e.cli[0]+" build -q -t stale .")
		tr, err := e.saved("stale")
		if err != nil {
			t.Fatal(err)
		}
		if got := tr["/f"].data; got != text {
			t.Fatalf("the image has %q, the context %q", got, text)
		}
	}
}

// Dockerfiles that ask for endless work, or that no one can read, fail with exit code 1 and a line, and cost plyd little memory.
func TestHostileDockerfiles(t *testing.T) {
	e := startPly(t, "overlay2")
	many := func(n int, line string) string { return strings.Repeat(line, n) }
	for _, c := range []struct{ name, text, want string }{
		{"variables that double", "FROM base\nENV A=xxxxxxxxxxxxxxxx\n" + many(40, "ENV A=$A$A$A$A\n"), "Dockerfile:"},
		{"arguments that double", "ARG A=xxxxxxxxxxxxxxxx\n" + many(40, "ARG A=$A$A$A$A\n") + "FROM base\n", "Dockerfile:"},
		{"nested modifiers", "FROM base\nENV A=" + many(20000, "${B:-") + "x" + many(20000, "}") + "\n", "Dockerfile:"},
		{"too many instructions", "FROM base\n" + many(100_000, "LABEL a=b\n"), "Dockerfile:"},
		{"too many stages", many(20_000, "FROM base\n"), "Dockerfile:"},
		{"one long line", "FROM base\nLABEL a=" + many(3<<20, "x") + "\n", ""},
		{"a descriptor of the runtime", "FROM base\nWORKDIR /proc/self/fd/7\nRUN true\n", "/proc/self/fd/7"},
		{"no end of a heredoc", "FROM base\nCOPY <<A <<B /\nx\nA\n", "Dockerfile:2"},
		{"binary", "\x00\x01\x02\xff\xfe" + many(1000, "\x00"), "Dockerfile:1"},
		{"a stage that copies from itself", "FROM base AS a\nCOPY --from=a /x /x\n", ""},
		{"a pattern without an end", "FROM base\nCOPY " + many(3000, "*?[a-z]") + "[ /x/\n", "Dockerfile:2"},
		{"a chain of links", "FROM base\nRUN ln -s /l /l\nCOPY a /l/x\n", "Dockerfile:3"},
		{"a path above the root", "FROM base\nCOPY a ../../../../etc/../../x/" + many(2000, "../") + "\n", ""},
		{"a long name", "FROM base\nWORKDIR /" + many(300, "n") + "\n", "Dockerfile:2"},
		{"a deep path", "FROM base\nWORKDIR /" + many(3000, "d/") + "\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := write(t, map[string]string{"Dockerfile": c.text, "a": "a\n"})
			out, code := e.try(dir, e.cli[0], "build", "--no-cache", "-t", "hostile", ".")
			if c.want == "" && code == 0 {
				return // it may be built, in bounds
			}
			if code != 1 || !strings.Contains(out, c.want) {
				t.Errorf("exit code %d, want 1 and %q\n%.2000s", code, c.want, out)
			}
		})
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb int
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil && kb > 400<<10 {
			t.Errorf("plyd took %d MB of memory", kb>>10)
		}
	}
	left(t, e)
}

// A build that is cancelled ends the processes of its steps and leaves nothing.
func TestCancel(t *testing.T) {
	e := startPly(t, "erofs")
	dir := write(t, map[string]string{"Dockerfile": "FROM base\nRUN trap '' TERM INT; echo up; while true; do sleep 1234; done\n"})
	c := exec.Command(e.cli[0], "build", ".")
	c.Dir, c.Env = dir, e.env
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	processes := func() bool { return exec.Command("pgrep", "-f", "^sleep 1234$").Run() == nil }
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s\n%s", what, out.String())
			}
		}
	}
	wait("the step does not start", processes)
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil {
		t.Error("a build that was cancelled succeeded")
	}
	wait("the step goes on", func() bool { return !processes() })
	wait("a container is left", func() bool { return e.ply(t, "ps", "-aq") == "" })
	left(t, e)
}

// Odd names in a context are names in the image, whichever protocol brings them. Names that mean a removal in a layer are refused wherever they appear, and remove nothing.
func TestHostileNames(t *testing.T) {
	e := startPly(t, "erofs")
	odd := []string{"a\nb", "\t", " x", "-rf", "*", "[b]", `back\slash`, `quo"te`, "$HOME", "ü\u202e\U0001F600", strings.Repeat("x", 255), "wh.etc", ".whx", ".wh"}
	files := map[string]string{"Dockerfile": "FROM base\nCOPY d /d/\nFROM base\nCOPY --from=0 /d/ /e/\n"}
	for _, name := range odd {
		files["d/"+name] = name
	}
	dir := write(t, files)
	notUTF8 := write(t, map[string]string{"Dockerfile": files["Dockerfile"], "d/\xff\xfe": "bytes"})
	for _, b := range protocols {
		if out, code := b.build(e, dir, "-t", "names", "."); code != 0 {
			t.Errorf("%s: exit code %d\n%s", b.name, code, out)
			continue
		}
		tr, err := e.saved("names")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range odd {
			if got := tr["/e/"+name].data; got != name {
				t.Errorf("%s: %q has the content %q", b.name, name, got)
			}
		}
		// The messages of BuildKit's sessions are UTF-8.
		if out, code := b.build(e, notUTF8, "."); (code != 0) != (b.name == "buildkit") || code != 0 && !strings.Contains(out, "UTF-8") {
			t.Errorf("%s: a name that is not UTF-8: exit code %d\n%s", b.name, code, out)
		}
	}
	archive := filepath.Join(notUTF8, "a.tar")
	if err := os.WriteFile(filepath.Join(notUTF8, ".wh.etc"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", notUTF8, "-cf", archive, ".wh.etc").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{
		"COPY w /", "COPY w/.wh.etc /", "COPY f /.wh.etc", "COPY f /.wh.etc/f", "COPY --link w /", "ADD a.tar /", "WORKDIR /.wh.etc", "WORKDIR /.wh..wh..opq/x", "COPY <<.wh.etc /\nx\n.wh.etc",
	} {
		dir := write(t, map[string]string{"Dockerfile": "FROM base\n" + step + "\n", "w/.wh.etc": "", "f": "", "a.tar": string(data)})
		for _, b := range protocols {
			if b.name == "classic" && strings.Contains(step, "<<") {
				continue // its command line refuses it
			}
			if out, code := b.build(e, dir, "-t", "whiteout", "."); code == 0 || !strings.Contains(out, "names that start with .wh. are reserved") {
				t.Errorf("%s: %s: exit code %d\n%s", b.name, step, code, out)
			}
		}
	}
	left(t, e)
}
