package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ply/internal/store/layer/quota"
	"ply/test/private"
)

// TestScripts runs the stories, each against a plyd of its own. A file plyd.flags in a story adds flags. The condition [docker28] holds where
// the docker in PATH is the 28.2 client, [docker29] where test/setup/clients has installed docker29, [quota] where the directory of plyd enforces project quotas; Debian's own is docker20 everywhere.
func TestScripts(t *testing.T) {
	testscript.Run(t, stories(t, "script"))
}

// stories are the scripts below a directory of testdata, and what they may use.
func stories(t *testing.T, dir string) testscript.Params {
	return testscript.Params{
		Dir:                 filepath.Join("testdata", dir),
		WorkdirRoot:         t.TempDir(), // one of its own it would leave behind
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		Setup:               setup,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"ply": program("ply"), "docker": program("docker"), "docker20": program("docker20"),
			"registry": cmdRegistry, "plyregistry": cmdPlyRegistry, "endregistry": cmdEndRegistry, "replicas": cmdReplicas, "plyd": cmdPlyd, "http": cmdHTTP, "website": cmdWebsite, "waitfor": cmdWaitFor, "pty": cmdPty,
		},
		Condition: condition,
	}
}

func condition(name string) (bool, error) {
	switch name {
	case "docker28":
	case "docker29":
		_, err := os.Stat(filepath.Join(private.Clients(), name))
		if err != nil && os.Getenv("PLY_NIGHTLY") != "" {
			return false, fmt.Errorf("%w: test/setup/clients %s installs it", err, name)
		}
		return err == nil, nil
	case "criu": // it is installed, and the kernel has what it needs
		return exec.Command("criu", "check").Run() == nil, nil
	case "quota":
		return quota.Check("/var/tmp") == nil, nil
	default:
		return false, fmt.Errorf("unknown condition %q", name)
	}
	out, err := exec.Command("docker", "--version").Output()
	return err == nil && strings.HasPrefix(string(out), "Docker version 28.2"), nil
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func setup(env *testscript.Env) error {
	t, ok := env.T().(testing.TB)
	if !ok {
		return fmt.Errorf("no testing.TB behind %T", env.T())
	}
	var flags []string
	if b, err := os.ReadFile(filepath.Join(env.WorkDir, "plyd.flags")); err == nil {
		flags = append(flags, strings.Fields(string(b))...)
	}
	w := prepareWorld(t, flags...)
	if b, err := os.ReadFile(filepath.Join(env.WorkDir, "daemon.json")); err == nil {
		if err := os.WriteFile(filepath.Join(w.dir, "daemon.json"), b, 0o644); err != nil {
			return err
		}
	}
	w.startPlyd()
	env.Values[worldKey{}] = w
	env.Vars = append(env.Vars, w.clientEnv()...)
	env.Vars = append(env.Vars, "PATH="+bin+":"+os.Getenv("PATH")+":"+private.Clients())
	env.Vars = append(env.Vars, "ROOT="+root, "BIN="+bin, "IMAGES="+images, "DIR="+w.dir, "DATA="+filepath.Join(w.dir, "data"), "HOME="+env.WorkDir)
	return nil
}

// program runs ply or a docker client in the environment of the engine.
func program(name string) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := ts.Exec(worldOf(ts).program(name), args...)
		if err != nil && !neg {
			ts.Fatalf("%s %s: %v\nplyd:\n%s", name, strings.Join(args, " "), err, worldOf(ts).tail())
		}
		if err == nil && neg {
			ts.Fatalf("%s %s: unexpected success", name, strings.Join(args, " "))
		}
	}
}

// registry VAR [CONFIG] starts a registry and puts its address into $VAR.
func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: registry VAR [CONFIGFILE]")
	}
	more := ""
	if len(args) > 1 {
		more = os.Expand(ts.ReadFile(args[1]), ts.Getenv)
	}
	w := worldOf(ts)
	ts.Setenv(args[0], w.registry(more))
	w.regNames[args[0]] = w.regs[len(w.regs)-1]
}

// plyregistry VAR [FLAG]... starts a ply-registry and puts its address into $VAR.
func cmdPlyRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: plyregistry VAR [FLAG]...")
	}
	w := worldOf(ts)
	c := exec.Command(filepath.Join(bin, "ply-registry"), append([]string{"--addr=127.0.0.1:0", "--root=" + filepath.Join(w.dir, "ply-registry-"+args[0])}, args[1:]...)...)
	out, err := c.StdoutPipe()
	ts.Check(err)
	log := &bytes.Buffer{}
	c.Stderr = log
	ts.Check(c.Start())
	w.regs = append(w.regs, c)
	w.regNames[args[0]] = c
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		_ = c.Wait()
		ts.Fatalf("ply-registry: %v\n%s", err, log)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	ts.Setenv(args[0], strings.TrimSpace(line[strings.LastIndex(line, " ")+1:]))
}

// endregistry VAR ends a registry.
func cmdEndRegistry(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) != 1 || w.regNames[args[0]] == nil {
		ts.Fatalf("usage: endregistry VAR")
	}
	c := w.regNames[args[0]]
	ts.Check(c.Process.Kill())
	_ = c.Wait() // it was killed
	w.regs = slices.DeleteFunc(w.regs, func(r *exec.Cmd) bool { return r == c })
	delete(w.regNames, args[0])
}

// website VAR DIR offers the files below DIR on loopback, and the git repositories below DIR/git, and puts the address into $VAR. The files in DIR/hidden
// are sent to those who know the password only; DIR/requests gets a line per request.
func cmdWebsite(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: website VAR DIR")
	}
	dir := ts.MkAbs(args[1])
	out, err := exec.Command("git", "--exec-path").Output()
	ts.Check(err)
	repos := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), Root: "/git", Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Join(dir, "git"), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"},
	}
	files := http.FileServer(http.Dir(dir))
	var mu sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		log, err := os.OpenFile(filepath.Join(dir, "requests"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			fmt.Fprintln(log, r.Method, r.URL.Path)
			log.Close()
		}
		mu.Unlock()
		switch {
		case strings.HasPrefix(r.URL.Path, "/hidden/") && r.Header.Get("Authorization") != "Bearer password":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/metadata":
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		case strings.HasPrefix(r.URL.Path, "/git/"):
			repos.ServeHTTP(w, r)
		default:
			files.ServeHTTP(w, r)
		}
	}))
	ts.Defer(s.Close)
	ts.Setenv(args[0], s.URL)
}

// plyd kill9 | stop | start | hup
func cmdPlyd(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	for _, a := range args {
		switch a {
		case "kill9":
			w.kill9()
		case "stop":
			w.stopPlyd()
		case "start":
			w.startPlyd()
		case "hup":
			ts.Check(w.plyd.Process.Signal(syscall.SIGHUP))
		default:
			ts.Fatalf("usage: plyd kill9|stop|start|hup")
		}
	}
}

// http METHOD PATH [STATUS] [BODYFILE]: the Engine API or, with a full URL, anything else; the answer becomes stdout.
func cmdHTTP(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: http METHOD PATH|URL [STATUS] [BODYFILE]")
	}
	w := worldOf(ts)
	url, client := args[1], http.DefaultClient
	if strings.HasPrefix(url, "/") {
		url, client = "http://ply"+url, w.client()
	}
	var body io.Reader
	if len(args) > 3 {
		body = strings.NewReader(ts.ReadFile(args[3]))
	}
	req, err := http.NewRequest(args[0], url, body)
	ts.Check(err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	r, err := client.Do(req)
	if err != nil {
		if neg {
			return
		}
		ts.Fatalf("%v", err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), string(b))
	want := "200"
	if len(args) > 2 {
		want = args[2]
	}
	if got := fmt.Sprint(r.StatusCode); (got == want) == neg {
		ts.Fatalf("%s %s = %s, want %s: %s", args[0], args[1], got, want, b)
	}
}

// waitfor TEXT PROGRAM ARGS… repeats a program until its output holds TEXT, a minute at most.
func cmdWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: waitfor TEXT PROGRAM ARGS...")
	}
	w := worldOf(ts)
	deadline := time.Now().Add(time.Minute)
	for {
		o, e, err := w.run(args[1], args[2:]...)
		if strings.Contains(o+e, args[0]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s never said %q: %v\n%s%s", strings.Join(args[1:], " "), args[0], err, o, e)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// pty INPUTFILE PROGRAM ARGS… runs a program on a terminal of 40 rows and 120 columns and types the lines of the file: each line is
// "EXPECT⇥TYPE" (a tab between): wait until EXPECT was printed, then type TYPE, in which \n, \x10 and the like are
// read as Go does. What was printed becomes stdout.
func cmdPty(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: pty INPUTFILE PROGRAM ARGS...")
	}
	w := worldOf(ts)
	c := exec.Command(w.program(args[1]), args[2:]...)
	c.Env = append(os.Environ(), w.clientEnv()...)
	out, err := onTerminal(c, ts.ReadFile(args[0]))
	fmt.Fprint(ts.Stdout(), out)
	if (err != nil) != neg {
		ts.Fatalf("%s: %v\n%s", strings.Join(args[1:], " "), err, out)
	}
}
