package docker

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"

	"ply/internal/api/docker/stream"
)

// upgrade sends a request on a new connection. It returns the connection after reading the head of the answer.
func upgrade(t *testing.T, sock, request string, header ...string) (*net.UnixConn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\n%s\r\n", request, strings.Join(header, "")); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn), in, resp
}

const asksUpgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"

func TestAttachFramesAndHalfClose(t *testing.T) {
	for _, tc := range []struct {
		name, version, header string
		tty                   bool
		status                int
		typ                   string
	}{
		{"101 framed", "1.51", asksUpgrade, false, 101, stream.TypeMux},
		{"101 framed, old", "1.41", asksUpgrade, false, 101, stream.TypeRaw},
		{"101 terminal", "1.51", asksUpgrade, true, 101, stream.TypeRaw},
		{"200 framed", "1.51", "", false, 200, stream.TypeMux},
		{"200 terminal", "1.24", "", true, 200, stream.TypeRaw},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.containers.tty = tc.tty
			conn, in, resp := upgrade(t, w.serve(t), "POST /v"+tc.version+"/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1", tc.header)
			if resp.StatusCode != tc.status || resp.Header.Get("Content-Type") != tc.typ {
				t.Errorf("answer %d %s, want %d %s", resp.StatusCode, resp.Header.Get("Content-Type"), tc.status, tc.typ)
			}
			if (resp.Header.Get("Upgrade") == "tcp") != (tc.status == 101) {
				t.Errorf("headers = %v", resp.Header)
			}
			if _, err := conn.Write([]byte("there ")); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("and back")); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			if tc.tty {
				if _, err := io.Copy(&stdout, in); err != nil {
					t.Fatal(err)
				}
				if stdout.String() != "there and backbye\n" {
					t.Errorf("output %q", stdout.String())
				}
				return
			}
			if _, err := stdcopy.StdCopy(&stdout, &stderr, in); err != nil {
				t.Fatal(err)
			}
			if stdout.String() != "there and back" || stderr.String() != "bye\n" {
				t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
			}
		})
	}
}

// Bytes that a client sends together with its request are input too.
func TestAttachEarlyInput(t *testing.T) {
	sock := newWorld(t).serve(t)
	got := raw(t, sock, "POST /v1.51/containers/web/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: x\r\n"+asksUpgrade+"\r\nearly", "early")
	if !strings.HasSuffix(got, "early") {
		t.Errorf("answer %q", got)
	}
}

// When a client disappears, its work ends, even when the container writes nothing. No goroutine remains.
func TestAbandonedAttach(t *testing.T) {
	w := newWorld(t)
	w.containers.attached = make(chan struct{}, 100)
	sock := w.serve(t)
	before := runtime.NumGoroutine()
	const n = 50
	for range n {
		conn, _, resp := upgrade(t, sock, "POST /v1.51/containers/web/attach?stream=1&logs=1", asksUpgrade)
		if resp.StatusCode != 101 {
			t.Fatalf("answer %d", resp.StatusCode)
		}
		if err := conn.CloseWrite(); err != nil { // as docker does without -i
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		select {
		case <-w.containers.attached:
		case <-time.After(time.Minute):
			t.Fatal("an abandoned attach goes on")
		}
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if runtime.NumGoroutine() <= before+5 {
			return
		}
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

// A client that closes only its sending side still gets output.
func TestHalfClosedAttachGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.containers.attached = make(chan struct{}, 1)
	conn, _, _ := upgrade(t, w.serve(t), "POST /v1.51/containers/web/attach?stream=1", asksUpgrade)
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.containers.attached:
		t.Fatal("the attach ended although the client still listens")
	case <-time.After(watchEvery + 500*time.Millisecond):
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.containers.attached:
	case <-time.After(time.Minute):
		t.Error("the attach goes on without its client")
	}
}

func TestExecThatCannotRunSaysWhyInTheStream(t *testing.T) {
	got := raw(t, newWorld(t).serve(t), "POST /v1.51/exec/"+execBad+"/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"+asksUpgrade+"\r\n{}", "")
	if !strings.HasPrefix(got, "HTTP/1.1 101 ") || !strings.Contains(got, "\x02\x00\x00\x00") || !strings.HasSuffix(got, "executable file not found in $PATH\r\n") {
		t.Errorf("answer %q", got)
	}
}

// Output that was lost is an error for Docker's clients, which do not look at whether a stream ended early. A terminal shows it.
func TestLostOutputIsAnError(t *testing.T) {
	for _, tty := range []bool{false, true} {
		w := newWorld(t)
		w.containers.cut, w.containers.tty = true, tty
		conn, in, _ := upgrade(t, w.serve(t), "POST /v1.51/containers/web/attach?stream=1&stdout=1&stderr=1", asksUpgrade)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		if tty {
			if _, err := io.Copy(&stdout, in); err != nil || stdout.String() != "partialthe output is incomplete: connection cut\r\n" {
				t.Errorf("terminal got %q, %v", stdout.String(), err)
			}
			continue
		}
		_, err := stdcopy.StdCopy(&stdout, &stderr, in)
		if err == nil || !strings.Contains(err.Error(), "the output is incomplete: connection cut") || stdout.String() != "partial" || stderr.Len() > 0 {
			t.Errorf("StdCopy = %v, stdout %q, stderr %q", err, stdout.String(), stderr.String())
		}
	}
}

func TestAttachErrorHasAStatus(t *testing.T) {
	_, _, resp := upgrade(t, newWorld(t).serve(t), "POST /v1.51/containers/absent/attach?stream=1&stdout=1", asksUpgrade)
	if resp.StatusCode != 404 {
		t.Errorf("answer %d, want 404", resp.StatusCode)
	}
}

// wait sends its headers while the container runs, because clients start the container after them.
func TestWaitSendsItsHeadFirst(t *testing.T) {
	w := newWorld(t)
	w.containers.release = make(chan struct{})
	_, _, resp := upgrade(t, w.serve(t), "POST /v1.51/containers/web/wait?condition=next-exit")
	close(w.containers.release) // the container ends only now that the head is here
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != `{"StatusCode":3}`+"\n" {
		t.Errorf("body %q, %v", body, err)
	}
}

func TestFollowedLogsOpenAtOnceAndEndWithTheClient(t *testing.T) {
	w := newWorld(t)
	conn, _, resp := upgrade(t, w.serve(t), "GET /v1.51/containers/web/logs?stdout=1&follow=1")
	var b [18]byte
	if _, err := io.ReadFull(resp.Body, b[:]); err != nil || string(b[8:]) != "to stdout\n" {
		t.Errorf("logs = %q, %v", b, err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEventsStream(t *testing.T) {
	w := newWorld(t)
	conn, _, resp := upgrade(t, w.serve(t), "GET /v1.51/events")
	lines := bufio.NewReader(resp.Body)
	w.bus.Publish(eventStart)
	line, err := lines.ReadString('\n')
	want := `{"status":"start","id":"` + string(ctrWeb) + `","from":"busybox","Type":"container","Action":"start","Actor":{"ID":"` + string(ctrWeb) + `","Attributes":{"image":"busybox"}},"scope":"local","time":1772600767,"timeNano":1772600767000000890}` + "\n"
	if err != nil || line != want {
		t.Errorf("event %q, %v\nwant  %q", line, err, want)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
}

// A server that is closed while clients are attached frees everything.
func TestServerCloses(t *testing.T) {
	w := newWorld(t)
	sock := w.serve(t)
	for range 20 {
		upgrade(t, sock, "POST /v1.51/containers/web/attach?stream=1&stdout=1&stdin=1", asksUpgrade)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://x/_ping", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("20 idle clients block another: %v", err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
}
