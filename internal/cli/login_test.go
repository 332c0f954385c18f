package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Login stores credentials, pull sends them to this registry only, and logout removes them.
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
