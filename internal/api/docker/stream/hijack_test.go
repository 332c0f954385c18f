package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
)

// pair returns both ends of a connection.
func pair(t *testing.T, network, address string) (server *Conn, client net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &Conn{Conn: conn}, client
}

// Input that nobody has read does not take output with it when the connection is closed.
func TestFinishKeepsOutput(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			server, client := pair(t, network, address)
			if _, err := client.Write([]byte("unread input")); err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte("output"), 10_000)
			if _, err := server.Write(want); err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() { defer close(done); server.Finish(20 * time.Second) }()
			time.Sleep(200 * time.Millisecond) // a slow reader
			got, err := io.ReadAll(client)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the client got %d bytes of %d, %v", len(got), len(want), err)
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			<-done
		})
	}
}

// A client that stays does not keep the connection open for longer than the limit.
func TestFinishIsBounded(t *testing.T) {
	server, client := pair(t, "unix", filepath.Join(t.TempDir(), "s"))
	server.Finish(50 * time.Millisecond)
	if _, err := client.Write([]byte("x")); err == nil {
		t.Error("the connection is still open")
	}
}

// Docker's own demultiplexer fails with the message.
func TestFail(t *testing.T) {
	var buf, stdout, stderr bytes.Buffer
	m := NewMux(&buf)
	if _, err := m.Stdout().Write([]byte("partial")); err != nil {
		t.Fatal(err)
	}
	if err := m.Fail("the output is incomplete"); err != nil {
		t.Fatal(err)
	}
	_, err := stdcopy.StdCopy(&stdout, &stderr, &buf)
	if err == nil || !bytes.Contains([]byte(err.Error()), []byte("the output is incomplete")) || errors.Is(err, io.EOF) || stdout.String() != "partial" {
		t.Errorf("StdCopy = %v, output %q", err, stdout.String())
	}
}
