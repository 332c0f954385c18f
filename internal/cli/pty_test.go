package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/cli/command"
	"ply/internal/cli/terminal"
)

// pty is a pseudo-terminal: the test holds the master, the command gets the slave.
type pty struct {
	master, slave *os.File
	fd            int // of master; Fd would make it blocking

	mu  sync.Mutex
	got bytes.Buffer
}

func newPTY(t *testing.T, rows, cols uint16) *pty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := os.NewFile(uintptr(fd), "/dev/ptmx") // pollable, so that Close ends a Read
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	s, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &pty{master: m, fd: fd, slave: s}
	p.resize(t, rows, cols)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := m.Read(buf)
			p.mu.Lock()
			p.got.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { m.Close(); <-done; s.Close() })
	return p
}

func (p *pty) resize(t *testing.T, rows, cols uint16) {
	if err := unix.IoctlSetWinsize(p.fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

func (p *pty) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got.String()
}

// until waits for text on the terminal.
func (p *pty) until(t *testing.T, want string) {
	t.Helper()
	eventually(t, "terminal shows "+want, func() bool { return strings.Contains(p.text(), want) })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: not within 5 s", what)
}

// invocation returns an invocation whose streams are all the terminal.
func (p *pty) invocation() *command.Invocation {
	inv := invocation(p.slave, p.slave, p.slave)
	term := terminal.Of(p.slave)
	inv.InTerm, inv.OutTerm, inv.ErrTerm = term, term, term
	return inv
}

// hijacked answers an attach: it echoes what it reads in upper case and ends at "exit\r".
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
	// raw mode: a carriage return goes through as it is, nothing is echoed here
	io.WriteString(p.master, "hello\r")
	p.until(t, "HELLO")
	if strings.Contains(p.text(), "hello") {
		t.Errorf("the local terminal echoed: %q", p.text())
	}
	eventually(t, "first size is sent", func() bool { return f.seen("POST /containers/"+cid1+"/resize?h=33&w=99") != "" })
	p.resize(t, 40, 80)
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil { // the test's process has another controlling terminal
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

// order checks that requests came in this order.
func (f *fake) order(t *testing.T, parts ...string) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	i := 0
	for _, r := range f.requests {
		if i < len(parts) && strings.Contains(r, parts[i]) {
			i++
		}
	}
	if i != len(parts) {
		t.Errorf("requests %q: want %q in order", f.requests, parts)
	}
}

func TestDetachKeys(t *testing.T) {
	p := newPTY(t, 24, 80)
	f := newFake(t, runWorld(t, 0, func(in *bufio.Reader, out io.Writer) {
		io.WriteString(out, "ready")
		in.ReadString(17) // the engine ends the stream at ctrl-p ctrl-q
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

// Without a terminal streams stay apart, the end of input is passed on, warnings go to stderr.
func TestRunPiped(t *testing.T) {
	frame := func(stream byte, s string) string {
		return string([]byte{stream, 0, 0, 0, 0, 0, 0, byte(len(s))}) + s
	}
	f := newFake(t, runWorld(t, 3, func(in *bufio.Reader, out io.Writer) {
		b, _ := io.ReadAll(in) // ends only when the client closes its half
		io.WriteString(out, frame(1, "out "+string(b))+frame(2, "err\n"))
	}))
	r := f.run("piped\n", "run", "-i", "alpine")
	if r.out != "out piped\n" || r.err != "WARNING: careful\nerr\n" || r.code != 3 {
		t.Errorf("got %+v", r)
	}
	f.order(t, "/create", "/attach", "/wait?condition=next-exit", "/start")
}

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

func TestPullOnTerminal(t *testing.T) {
	p := newPTY(t, 24, 120)
	f := newFake(t, world(time.Now()))
	f.env()
	if code := Run(context.Background(), p.invocation(), []string{"pull", "mysql:8"}); code != 0 {
		t.Fatal(code, p.text())
	}
	p.until(t, "docker.io/library/mysql:8")
	got := p.text()
	for _, want := range []string{
		"\x1b[1A\x1b[2K\r111111111111: Already exists\r\x1b[1B",
		"222222222222: Downloading [=========================>                         ]      50B/100B",
		"\x1b[1A\x1b[2K\r222222222222: Pull complete\r\x1b[1BDigest: sha256:",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("terminal lacks %q:\n%q", want, got)
		}
	}
}

// A cancelled pull closes the request and says what is kept.
func TestPullCancelled(t *testing.T) {
	w := world(time.Now())
	started, gone := make(chan struct{}), make(chan struct{})
	w["POST /images/create"] = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"status":"Pulling from library/mysql","id":"8"}`+"\n")
		w.(http.Flusher).Flush()
		close(started)
		<-r.Context().Done()
		close(gone)
	})
	f := newFake(t, w)
	f.env()
	ctx, cancel := context.WithCancelCause(context.Background())
	var out, errw bytes.Buffer
	inv := invocation(strings.NewReader(""), &out, &errw)
	code := make(chan int, 1)
	go func() { code <- Run(ctx, inv, []string{"pull", "mysql:8"}) }()
	<-started
	cancel(&signalError{unix.SIGINT})
	if got := <-code; got != 130 || !strings.Contains(errw.String(), "Finished layers are kept") {
		t.Errorf("code %d, stderr %q", got, errw.String())
	}
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the engine's request was not closed")
	}
}
