package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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

// Clients that are attached, wait or listen do not keep others from being served, however many they are. A flood of connections
// takes few descriptors and little memory, and clients get an answer while it lasts.
func TestManyClients(t *testing.T) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Cur < 10_000 {
		t.Skipf("a process may open only %d files here", files.Cur)
	}
	w := newWorld(t)
	w.busybox()
	id := w.ply("run", "-d", "busybox", "sleep", "1000")
	conns := &clients{t: t, w: w}
	defer conns.close()
	conns.stream(1100, "POST", "/containers/"+id+"/wait", http.StatusOK)
	conns.stream(60, "POST", "/containers/"+id+"/attach?stream=1&stdout=1", http.StatusSwitchingProtocols)
	conns.stream(60, "GET", "/events", http.StatusOK)
	conns.stream(20, "GET", "/containers/"+id+"/logs?follow=1&stdout=1", http.StatusOK)
	conns.stream(5, "GET", "/containers/"+id+"/stats", http.StatusOK)
	works := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := exec.CommandContext(ctx, "docker", "ps", "-q", "--no-trunc")
		c.Env = append(os.Environ(), w.clientEnv()...)
		if out, err := c.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != id {
			t.Errorf("docker ps %s: %v\n%.300s", when, err, out)
		}
	}
	works("beside 1,245 streams")
	if out := w.ply("exec", id, "echo", "fine"); out != "fine" {
		t.Errorf("exec beside 1,245 streams: %q", out)
	}
	before := w.open()

	// Connections that send nothing.
	conns.silent(3000)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "docker", "ps", "-q", "--no-trunc")
	c.Env = append(os.Environ(), w.clientEnv()...)
	if out, err := c.CombinedOutput(); ctx.Err() != nil || err != nil && !strings.Contains(string(out), "too many requests") {
		t.Errorf("docker ps in a flood: %v\n%.300s", err, out)
	}
	if n := w.open() - before; n > 1100 {
		t.Errorf("a flood of connections takes %d descriptors", n)
	}
	t.Logf("%d MiB with all of them", w.resident()>>20)
	conns.close()
	works("after the flood")
}

// open returns how many descriptors plyd has.
func (w *world) open() int {
	w.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.plyd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	return len(all)
}

// resident returns the memory of plyd.
func (w *world) resident() int64 {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(w.plyd.Process.Pid), "statm"))
	if err != nil {
		w.t.Fatal(err)
	}
	var size, pages int64
	if _, err := fmt.Sscan(string(b), &size, &pages); err != nil {
		w.t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// clients are connections to plyd that stay open.
type clients struct {
	t     *testing.T
	w     *world
	conns []net.Conn
}

// stream opens n connections, sends a request over each, and reads the header of its answer.
func (c *clients) stream(n int, method, path string, want int) {
	c.t.Helper()
	var work sync.WaitGroup
	var mu sync.Mutex
	queue := make(chan struct{}, 20)
	for range n {
		queue <- struct{}{}
		work.Go(func() {
			defer func() { <-queue }()
			conn, err := (&net.Dialer{}).DialContext(c.t.Context(), "unix", c.w.sock)
			if err != nil {
				c.t.Error(err)
				return
			}
			mu.Lock()
			c.conns = append(c.conns, conn)
			mu.Unlock()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			upgrade := ""
			if want == http.StatusSwitchingProtocols {
				upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
			}
			_, err = io.WriteString(conn, method+" "+path+" HTTP/1.1\r\nHost: ply\r\n"+upgrade+"Content-Length: 0\r\n\r\n")
			var resp *http.Response
			if err == nil {
				resp, err = http.ReadResponse(bufio.NewReader(conn), nil)
			}
			if err == nil && resp.StatusCode != want {
				err = errors.New(resp.Status)
			}
			if err != nil {
				c.t.Errorf("%s: %v", path, err)
			}
		})
		if c.t.Failed() {
			break
		}
	}
	work.Wait()
	if c.t.Failed() {
		c.t.FailNow()
	}
}

// silent opens n connections. The kernel's queue may take fewer.
func (c *clients) silent(n int) {
	for range n {
		conn, err := net.DialTimeout("unix", c.w.sock, 100*time.Millisecond)
		if err != nil {
			return
		}
		c.conns = append(c.conns, conn)
	}
}

func (c *clients) close() {
	for _, conn := range c.conns {
		_ = conn.Close() // plyd may have closed it
	}
	c.conns = nil
}
