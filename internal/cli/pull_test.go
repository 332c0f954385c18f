package cli

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// On a terminal, pull draws bars in place.
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

// A cancelled pull ends the request and says what is kept.
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
	case <-time.After(time.Minute):
		t.Error("the request to the engine was not ended")
	}
}
