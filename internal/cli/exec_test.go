package cli

import (
	"bufio"
	"io"
	"strings"
	"testing"
)

// Exec sends its flags and returns the exit code of the command.
func TestExec(t *testing.T) {
	done := make(chan struct{})
	f := newFake(t, map[string]any{
		"GET /containers/c/json":  `{"Id":"` + cid1 + `"}`,
		"POST /containers/c/exec": `{"Id":"e1"}`,
		"POST /exec/e1/start": hijacked(t, func(in *bufio.Reader, out io.Writer) {
			// read the body of the request, which comes first on the connection
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
