package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hijacked answers an attach: it takes over the connection and calls echo.
func hijacked(t *testing.T, echo func(in *bufio.Reader, out io.Writer)) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		echo(rw.Reader, conn)
	}
}

// runWorld is an engine in which a new container echoes through echo and ends with the code exit.
func runWorld(t *testing.T, exit int, echo func(in *bufio.Reader, out io.Writer)) map[string]any {
	ended := make(chan struct{})
	return map[string]any{
		"POST /containers/create": `{"Id":"` + cid1 + `","Warnings":["careful"]}`,
		"POST /containers/" + cid1 + "/attach": hijacked(t, func(in *bufio.Reader, out io.Writer) {
			defer close(ended)
			echo(in, out)
		}),
		"POST /containers/" + cid1 + "/wait": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			<-ended
			fmt.Fprintf(w, `{"StatusCode":%d}`, exit)
		}),
		"POST /containers/" + cid1 + "/start":  status{204, ""},
		"POST /containers/" + cid1 + "/resize": status{200, ""},
		"POST /containers/" + cid1 + "/kill":   status{204, ""},
		"GET /containers/" + cid1 + "/json":    `{"Id":"` + cid1 + `","State":{"Running":true}}`,
	}
}

// An interactive run uses raw mode, follows the size of the terminal, and restores the terminal at the end.
func TestRunInteractive(t *testing.T) {
	p := newPTY(t, 33, 99)
	f := newFake(t, runWorld(t, 7, func(in *bufio.Reader, out io.Writer) {
		io.WriteString(out, "/ # ")
		for {
			line, err := in.ReadString('\r')
			if err != nil || line == "exit\r" {
				return
			}
			io.WriteString(out, strings.ToUpper(strings.TrimSuffix(line, "\r"))+"\r\n/ # ")
		}
	}))
	f.env()
	code := make(chan int, 1)
	go func() {
		code <- Run(context.Background(), p.invocation(), []string{"run", "--rm", "-it", "alpine", "sh"})
	}()
	p.until(t, "/ # ")
	// In raw mode, a carriage return is sent as it is, and the local terminal does not echo.
	io.WriteString(p.master, "hello\r")
	p.until(t, "HELLO")
	if strings.Contains(p.text(), "hello") {
		t.Errorf("the local terminal echoed: %q", p.text())
	}
	eventually(t, "first size is sent", func() bool { return f.seen("POST /containers/"+cid1+"/resize?h=33&w=99") != "" })
	p.resize(t, 40, 80)
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil { // the kernel does not, because the terminal is not the controlling terminal of this process
		t.Fatal(err)
	}
	eventually(t, "new size is sent", func() bool { return f.seen("POST /containers/"+cid1+"/resize?h=40&w=80") != "" })
	io.WriteString(p.master, "exit\r")
	if got := <-code; got != 7 {
		t.Errorf("exit code %d, want the container's 7", got)
	}
	tio, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil || tio.Lflag&unix.ICANON == 0 || tio.Lflag&unix.ECHO == 0 {
		t.Errorf("terminal was not restored: %v %v", tio, err)
	}
	create := f.seen("POST /containers/create")
	for _, want := range []string{`"ConsoleSize":[33,99]`, `"Tty":true`, `"OpenStdin":true`, `"AttachStdin":true`, `"StdinOnce":true`, `"AutoRemove":true`} {
		if !strings.Contains(create, want) {
			t.Errorf("create lacks %s: %s", want, create)
		}
	}
	f.order(t, "/create", "/attach", "/wait?condition=removed", "/start")
}

// After the detach keys, run ends with exit code 0.
func TestDetachKeys(t *testing.T) {
	p := newPTY(t, 24, 80)
	f := newFake(t, runWorld(t, 0, func(in *bufio.Reader, out io.Writer) {
		io.WriteString(out, "ready")
		in.ReadString(17) // the engine ends the stream after ctrl-p ctrl-q
	}))
	f.env()
	code := make(chan int, 1)
	go func() {
		code <- Run(context.Background(), p.invocation(), []string{"run", "-it", "alpine"})
	}()
	p.until(t, "ready")
	io.WriteString(p.master, "\x10\x11")
	if got := <-code; got != 0 {
		t.Errorf("detached with exit code %d", got)
	}
}

// Without a terminal, stdout and stderr stay separate, the end of the input is passed on, and warnings go to stderr.
func TestRunPiped(t *testing.T) {
	frame := func(stream byte, s string) string {
		return string([]byte{stream, 0, 0, 0, 0, 0, 0, byte(len(s))}) + s
	}
	f := newFake(t, runWorld(t, 3, func(in *bufio.Reader, out io.Writer) {
		b, _ := io.ReadAll(in) // returns when the client closes its side
		io.WriteString(out, frame(1, "out "+string(b))+frame(2, "err\n"))
	}))
	r := f.run("piped\n", "run", "-i", "alpine")
	if r.out != "out piped\n" || r.err != "WARNING: careful\nerr\n" || r.code != 3 {
		t.Errorf("got %+v", r)
	}
	f.order(t, "/create", "/attach", "/wait?condition=next-exit", "/start")
}

// The exit code of run tells why the start failed: 127 and 126 when the container's command cannot be run, 125 otherwise.
func TestStartFailureCodes(t *testing.T) {
	for text, want := range map[string]int{
		`exec: "/x": stat /x: no such file or directory`: 127,
		`exec: "x": executable file not found in $PATH`:  127,
		`exec: "/etc": permission denied`:                126,
		`exec: "/etc": is a directory`:                   126,
		`no space left on device`:                        125,
	} {
		w := runWorld(t, 0, func(in *bufio.Reader, _ io.Writer) { io.ReadAll(in) })
		w["POST /containers/"+cid1+"/start"] = status{500, text}
		f := newFake(t, w)
		r := f.run("", "run", "alpine")
		if r.code != want || !strings.Contains(r.err, "ply: Error response from daemon: "+text+"\n\nRun 'ply run --help'") {
			t.Errorf("%s: code %d, want %d: %s", text, r.code, want, r.err)
		}
	}
}

// Without a terminal, signals are forwarded to the container.
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
		t.Error("the signal that the Go runtime sends to itself was forwarded")
	}
}
