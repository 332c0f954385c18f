package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLogin(t *testing.T) {
	var auth string
	w := map[string]any{
		"POST /auth": `{"Status":"Login Succeeded"}`,
		"POST /images/create": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			auth = r.Header.Get("X-Registry-Auth")
			pullAnswer(w, r)
		}),
	}
	f := newFake(t, w)
	f.env()
	dir := os.Getenv("DOCKER_CONFIG")
	call := func(stdin string, args ...string) result {
		var out, errw bytes.Buffer
		inv := invocation(strings.NewReader(stdin), &out, &errw)
		return result{code: Run(context.Background(), inv, args), out: out.String(), err: errw.String()}
	}
	r := call("s3cret\n", "login", "-u", "mhk", "--password-stdin", "h:5000")
	if r.code != 0 || r.out != "\nLogin Succeeded\n" || !strings.Contains(r.err, "stored unencrypted in '"+dir+"/config.json'") {
		t.Fatalf("%+v", r)
	}
	if got := f.seen("POST /auth"); !strings.HasSuffix(got, `{"username":"mhk","password":"s3cret","serveraddress":"h:5000"}`) {
		t.Errorf("sent %s", got)
	}
	if r := call("", "pull", "-q", "h:5000/a/b"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	b, err := base64.URLEncoding.DecodeString(auth)
	var got map[string]string
	if err != nil || json.Unmarshal(b, &got) != nil || got["username"] != "mhk" || got["password"] != "s3cret" {
		t.Errorf("pull sent %q %v", b, err)
	}
	if r := call("", "pull", "-q", "other/a"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if b, _ := base64.URLEncoding.DecodeString(auth); strings.Contains(string(b), "s3cret") {
		t.Errorf("another registry got the password: %s", b)
	}
	if r := call("", "logout", "h:5000"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "config.json")); strings.Contains(string(b), "h:5000") {
		t.Errorf("still in the file: %s", b)
	}
}

// The password prompt does not echo.
func TestLoginPrompt(t *testing.T) {
	p := newPTY(t, 24, 80)
	f := newFake(t, map[string]any{"POST /auth": `{"Status":"Login Succeeded"}`})
	f.env()
	code := make(chan int, 1)
	go func() { code <- Run(context.Background(), p.invocation(), []string{"login", "h:5000"}) }()
	p.until(t, "Username: ")
	io.WriteString(p.master, "mhk\n")
	p.until(t, "Password: ")
	eventually(t, "echo is off", func() bool {
		tio, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
		return err == nil && tio.Lflag&unix.ECHO == 0
	})
	io.WriteString(p.master, "s3cret\n")
	if got := <-code; got != 0 || strings.Contains(p.text(), "s3cret") {
		t.Errorf("code %d, terminal %q", got, p.text())
	}
}

func TestExec(t *testing.T) {
	done := make(chan struct{})
	f := newFake(t, map[string]any{
		"GET /containers/c/json":  `{"Id":"` + cid1 + `"}`,
		"POST /containers/c/exec": `{"Id":"e1"}`,
		"POST /exec/e1/start": hijacked(t, func(in *bufio.Reader, out io.Writer) {
			// the request's body comes first on the same connection
			io.ReadAll(in)
			io.WriteString(out, "\x01\x00\x00\x00\x00\x00\x00\x03out")
			close(done)
		}),
		"GET /exec/e1/json": `{"ID":"e1","Running":false,"ExitCode":9}`,
	})
	r := f.run("", "exec", "-e", "A=1", "-w", "/w", "-u", "me", "--privileged", "c", "cmd", "-x", "y")
	<-done
	if r.out != "out" || r.code != 9 {
		t.Errorf("%+v", r)
	}
	body := f.seen("POST /containers/c/exec")
	for _, want := range []string{`"Cmd":["cmd","-x","y"]`, `"Env":["A=1"]`, `"WorkingDir":"/w"`, `"User":"me"`, `"Privileged":true`, `"AttachStdin":false`, `"AttachStdout":true`} {
		if !strings.Contains(body, want) {
			t.Errorf("exec lacks %s: %s", want, body)
		}
	}
}

// Without a terminal signals are the container's.
func TestSignalsAreForwarded(t *testing.T) {
	end := make(chan struct{})
	f := newFake(t, runWorld(t, 4, func(in *bufio.Reader, _ io.Writer) { <-end }))
	code := make(chan int, 1)
	f.env()
	go func() {
		inv := invocation(strings.NewReader(""), io.Discard, io.Discard)
		code <- Run(context.Background(), inv, []string{"run", "alpine"})
	}()
	eventually(t, "started", func() bool { return f.seen("POST /containers/"+cid1+"/start") != "" })
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "signal is forwarded", func() bool { return f.seen("POST /containers/"+cid1+"/kill?signal=USR1") != "" })
	close(end)
	if got := <-code; got != 4 {
		t.Errorf("exit code %d", got)
	}
	if got := f.seen("POST /containers/" + cid1 + "/kill?signal=URG"); got != "" {
		t.Error("the Go runtime's own signal went to the container")
	}
}

func TestBuildContext(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM x\n", "a": "a", "b.log": "no", "keep.log": "yes", "sub/c.log": "no", "sub/d": "d", ".dockerignore": "**/*.log\n!keep.log\nDockerfile\n"} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, []byte(text), 0o644)
	}
	other := filepath.Join(t.TempDir(), "D")
	os.WriteFile(other, []byte("FROM y\n"), 0o644)
	var names []string
	var query map[string][]string
	answer := ""
	f := newFake(t, map[string]any{"POST /build": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		names, query = nil, r.URL.Query()
		tr := tar.NewReader(r.Body)
		for h, err := tr.Next(); err == nil; h, err = tr.Next() {
			names = append(names, h.Name)
		}
		slices.Sort(names)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer)
	})})
	answer = `{"stream":"Step 1/1 : FROM x\n"}{"stream":" ---> abc\n"}{"aux":{"ID":"sha256:abc"}}{"stream":"Successfully built abc\n"}`
	iid := filepath.Join(t.TempDir(), "iid")
	r := f.run("", "build", "-t", "n", "--build-arg", "A=1", "--iidfile", iid, dir)
	if r.code != 0 || r.out != "Step 1/1 : FROM x\n ---> abc\nSuccessfully built abc\n" {
		t.Errorf("%+v", r)
	}
	if want := []string{".dockerignore", "Dockerfile", "a", "keep.log", "sub/", "sub/d"}; !slices.Equal(names, want) {
		t.Errorf("context %q, want %q", names, want)
	}
	if b, _ := os.ReadFile(iid); string(b) != "sha256:abc" || query["t"][0] != "n:latest" || query["buildargs"][0] != `{"A":"1"}` || query["dockerfile"][0] != "Dockerfile" {
		t.Errorf("iid %s, query %v", b, query)
	}
	if r := f.run("", "build", "-q", "-f", other, dir); r.code != 0 || r.out != "sha256:abc\n" || !strings.HasPrefix(query["dockerfile"][0], ".dockerfile.") || !slices.Contains(names, query["dockerfile"][0]) {
		t.Errorf("%+v %v %v", r, names, query)
	}
	if r := f.run("FROM z\n", "build", "-"); r.code != 0 || !slices.Equal(names, []string{"Dockerfile"}) {
		t.Errorf("%+v %v", r, names)
	}
	answer = `{"stream":"Step 1/1 : RUN false\n"}{"errorDetail":{"code":7,"message":"the command returned 7"},"error":"the command returned 7"}`
	if r := f.run("", "build", "-q", dir); r.code != 7 || r.err != "Step 1/1 : RUN false\nthe command returned 7\n" {
		t.Errorf("%+v", r)
	}
	for _, bad := range [][]string{{"build", "/nonexistent"}, {"build", "-f", "/nonexistent", dir}, {"build", other}} {
		if r := f.run("", bad...); r.code != 1 || r.err == "" {
			t.Errorf("%v: %+v", bad, r)
		}
	}
}

// Files appear under their name only when whole; terminals are refused.
func TestSaveToFile(t *testing.T) {
	cut := false
	f := newFake(t, map[string]any{"GET /images/get": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if cut {
			w.Header().Set("Content-Length", "100")
		}
		io.WriteString(w, "archive")
	})})
	name := filepath.Join(t.TempDir(), "x.tar")
	if r := f.run("", "save", "-o", name, "a", "b"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if b, _ := os.ReadFile(name); string(b) != "archive" || f.seen("GET /images/get?names=a&names=b") == "" {
		t.Errorf("file %q", b)
	}
	cut = true
	os.WriteFile(name, []byte("old"), 0o600)
	if r := f.run("", "save", "-o", name, "a"); r.code != 1 {
		t.Errorf("a cut archive was taken: %+v", r)
	}
	if b, _ := os.ReadFile(name); string(b) != "old" {
		t.Errorf("the old file was lost: %q", b)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(name), ".ply-tmp-*")); len(left) > 0 {
		t.Errorf("left behind %q", left)
	}
	p := newPTY(t, 24, 80)
	if code := Run(context.Background(), p.invocation(), []string{"save", "a"}); code != 1 {
		t.Errorf("wrote to a terminal, code %d", code)
	}
	p.until(t, "cowardly refusing to save to a terminal")
}
