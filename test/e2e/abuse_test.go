package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// load is what plyd holds: goroutines, descriptors, and the processes that belong to it. A shim's descriptors count as well.
type load struct{ goroutines, files, shims, processes int }

func (w *world) load() (l load) {
	w.t.Helper()
	r, err := w.client().Get("http://ply/info")
	if err != nil {
		w.t.Fatal(err)
	}
	var info struct{ NGoroutines int }
	err = json.NewDecoder(r.Body).Decode(&info)
	if cerr := r.Body.Close(); err != nil || cerr != nil {
		w.t.Fatal(err, cerr)
	}
	l.goroutines, l.files = info.NGoroutines, w.open()
	out, _ := exec.Command("pgrep", "-f", w.dir).Output() // it fails when there is none
	for _, pid := range strings.Fields(string(out)) {
		l.processes++
		if exe, err := os.Readlink("/proc/" + pid + "/exe"); err == nil && filepath.Base(exe) == "ply-shim" {
			fds, _ := os.ReadDir("/proc/" + pid + "/fd") // it may have ended
			l.shims += len(fds)
		}
	}
	return l
}

// fits reports whether a load is no larger than another, but for what a running engine needs now and then.
func (l load) fits(o load) bool {
	return l.goroutines <= o.goroutines+10 && l.files <= o.files+10 && l.shims <= o.shims+4 && l.processes <= o.processes
}

// send opens a connection and sends a text. It does not read.
func (c *clients) send(text string) net.Conn {
	c.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(c.t.Context(), "unix", c.w.sock)
	if err != nil {
		c.t.Fatal(err)
	}
	c.conns = append(c.conns, conn)
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// A thousand idle attaches, clients that never read, abandoned takeovers and nonsense on every route keep nobody from being served, and nothing is left of them.
// With PLY_NIGHTLY the nonsense is sent many times, and large.
func TestAbuse(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Cur < 10_000 {
		t.Skipf("a process may open only %d files here", files.Cur)
	}
	rounds := 1
	if os.Getenv("PLY_NIGHTLY") != "" {
		rounds = 30
	}
	w := newWorld(t)
	w.busybox()
	idle := w.ply("run", "-d", "-i", "--name", "idle", "busybox", "cat")
	loud := w.ply("run", "-d", "--log-opt", "max-size=1m", "busybox", "sh", "-c", "while :; do head -c 8192 /dev/zero | tr '\\0' a; echo; sleep 0.02; done")
	served := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, cli := range []string{"docker", "/usr/bin/docker"} {
			c := exec.CommandContext(ctx, cli, "exec", idle, "echo", "fine")
			c.Env = append(os.Environ(), w.clientEnv()...)
			if out, err := c.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "fine" {
				t.Errorf("%s exec %s: %v\n%.300s", cli, when, err, out)
			}
		}
	}
	served("before")
	warm := &clients{t: t, w: w}
	warm.stream(3, "POST", "/containers/"+idle+"/attach?stream=1&stdin=1&stdout=1&stderr=1", http.StatusSwitchingProtocols)
	warm.stream(1, "GET", "/containers/"+loud+"/logs?follow=1&stdout=1", http.StatusOK)
	warm.close()
	time.Sleep(time.Second) // for what warmed up to end; what is left then allows more, never less
	before := w.load()

	conns := &clients{t: t, w: w}
	defer conns.close()
	conns.stream(1000, "POST", "/containers/"+idle+"/attach?stream=1&stdin=1&stdout=1&stderr=1", http.StatusSwitchingProtocols)
	if l := w.load(); l.files < before.files+1000 {
		t.Errorf("1,000 attaches take %d descriptors: they are not there", l.files-before.files)
	}
	served("beside 1,000 idle attaches")

	for range 10 {
		for _, line := range []string{
			"GET /containers/" + loud + "/logs?follow=1&stdout=1&stderr=1", "GET /events", "GET /containers/" + loud + "/stats", "GET /containers/" + loud + "/export",
			"GET /images/get?names=busybox", "POST /containers/" + loud + "/attach?stream=1&stdout=1", "POST /containers/" + idle + "/wait", "GET /containers/" + loud + "/archive?path=/bin",
		} {
			conns.send(line + " HTTP/1.1\r\nHost: ply\r\n\r\n")
		}
	}
	served("beside 80 clients that never read")

	const upgrade = "Connection: Upgrade\r\nUpgrade: "
	for n := range 20 * rounds {
		for _, request := range []string{
			"POST /containers/" + idle + "/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: ply\r\n" + upgrade + "tcp\r\n\r\n",
			"POST /session HTTP/1.1\r\nHost: ply\r\n" + upgrade + fmt.Sprintf("h2c\r\nX-Docker-Expose-Session-Uuid: u%d\r\nX-Docker-Expose-Session-Name: n\r\n\r\n", n),
			"POST /grpc HTTP/1.1\r\nHost: ply\r\n" + upgrade + "h2c\r\n\r\n",
			"POST /exec/" + w.exec(idle) + "/start HTTP/1.1\r\nHost: ply\r\n" + upgrade + "tcp\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		} {
			c := &clients{t: t, w: w}
			conn := c.send(request)
			if n%2 == 0 {
				_, _ = conn.Read(make([]byte, 1)) // it was taken over
			}
			if n%4 == 2 {
				_, _ = io.WriteString(conn, "\x00\xffnonsense\r\n\r\n") // plyd may have closed it
			}
			c.close()
		}
	}
	served("after abandoned takeovers")

	w.ply("create", "--name", "victim", "busybox", "true")
	for range rounds {
		w.nonsense(rounds > 1)
	}
	served("after nonsense")
	conns.close()

	deadline := time.Now().Add(time.Minute)
	for l := w.load(); !l.fits(before); l = w.load() {
		if time.Now().After(deadline) {
			t.Errorf("before: %+v, afterwards: %+v", before, l)
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	log, err := os.ReadFile(w.log)
	if err != nil {
		t.Fatal(err)
	}
	if i := strings.Index(string(log), "panic"); i >= 0 {
		t.Errorf("plyd panicked: %.3000s", log[i:])
	}
	served("in the end")
}

// exec makes an exec that can be started.
func (w *world) exec(id string) string {
	w.t.Helper()
	r, err := w.client().Post("http://ply/containers/"+id+"/exec", "application/json", strings.NewReader(`{"Cmd":["sleep","1"],"AttachStdin":true,"AttachStdout":true}`))
	if err != nil {
		w.t.Fatal(err)
	}
	var made struct{ ID string }
	err = json.NewDecoder(r.Body).Decode(&made)
	if cerr := r.Body.Close(); err != nil || cerr != nil || made.ID == "" {
		w.t.Fatal(err, cerr, r.Status)
	}
	return made.ID
}

// nonsense sends bodies to every route that no handler can take. Objects that are named are not worth keeping.
func (w *world) nonsense(large bool) {
	w.t.Helper()
	routes, err := os.ReadFile(filepath.Join("..", "..", "internal", "api", "docker", "testdata", "routes.txt"))
	if err != nil {
		w.t.Fatal(err)
	}
	names := map[string]string{"containers": "victim", "images": "127.0.0.1:1/absent", "distribution": "127.0.0.1:1/absent", "networks": "absent", "volumes": "absent"}
	var work sync.WaitGroup
	queue := make(chan struct{}, 8)
	for line := range strings.Lines(string(routes)) {
		method, pattern, _ := strings.Cut(strings.TrimSpace(line), " ")
		parts := strings.Split(pattern, "/")
		for i, p := range parts {
			if strings.HasPrefix(p, "{") {
				if parts[i] = names[parts[i-1]]; parts[i] == "" {
					parts[i] = "absent"
				}
			}
		}
		junk := make([]byte, 200)
		for i := range junk {
			junk[i] = byte(rand.Intn(256))
		}
		head := method + " " + strings.Join(parts, "/") + " HTTP/1.1\r\nHost: ply\r\nContent-Type: application/json\r\n"
		size := 256 << 10
		if large {
			size = 12 << 20
		}
		for _, request := range []string{
			head + "Content-Length: 12\r\n\r\n{\"Image\":[[[", head + "Content-Length: 1000\r\n\r\n" + string(junk), head + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n", size) + strings.Repeat(`{"a":[`, size/6),
			strings.Replace(head, " HTTP/1.1", "?filters=%7B%00&path=%ff&names=%00&since=x&fromImage=%2f%2f&platform=%7B", 1) + "\r\n\r\n", strings.Replace(head, "application/json", "text/plain", 1) + "Content-Length: 2\r\n\r\n{}",
		} {
			queue <- struct{}{}
			work.Go(func() {
				defer func() { <-queue }()
				conn, err := net.DialTimeout("unix", w.sock, 10*time.Second)
				if err != nil {
					w.t.Error(err)
					return
				}
				_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					_, _ = io.WriteString(conn, request) // plyd may refuse it before its end
					_ = conn.(*net.UnixConn).CloseWrite()
				}()
				_, _ = io.ReadFull(conn, make([]byte, 12)) // it may be closed without an answer
				_ = conn.Close()
				<-sent
			})
		}
	}
	work.Wait()
}
