package docker

import (
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

func TestAttachOverWebSocket(t *testing.T) {
	sock := newWorld(t).serve(t)
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := websocket.NewConfig("ws://x/v1.51/containers/web/attach/ws?stream=1&stdin=1&stdout=1", "http://x")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(cfg, conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := ws.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"there and ", "back"} {
		if _, err := io.WriteString(ws, text); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, len(text))
		if _, err := io.ReadFull(ws, b); err != nil || string(b) != text {
			t.Errorf("read %q, %v, want %q", b, err, text)
		}
	}
	if err := ws.Close(); err != nil {
		t.Fatal(err)
	}
}
