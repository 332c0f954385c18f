package relay

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
)

func TestListen(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "s")
	far := make(chan net.Conn, 1)
	var refuse atomic.Bool
	end, err := Listen(t.Context(), sock, func(context.Context) (io.ReadWriteCloser, error) {
		if refuse.Load() {
			return nil, errors.New("no agent")
		}
		near, f := net.Pipe()
		far <- f
		return near, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	say := func(to io.Writer, from io.Reader, line string) {
		t.Helper()
		if _, err := io.WriteString(to, line+"\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(from).ReadString('\n'); err != nil || got != line+"\n" {
			t.Fatalf("%q, %v instead of %q", got, err, line)
		}
	}
	ends := func(r io.Reader) {
		t.Helper()
		if _, err := r.Read(make([]byte, 1)); err == nil {
			t.Fatal("the connection goes on")
		}
	}

	c := dial()
	f := <-far
	say(c, f, "question")
	say(f, c, "answer")
	f.Close()
	ends(c) // the end of one is the end of both

	c = dial()
	f = <-far
	say(c, f, "question")
	c.Close()
	ends(f)

	first := dial()
	f = <-far
	say(first, f, "question")
	refuse.Store(true)
	c = dial()
	ends(c)

	if err := end(); err != nil {
		t.Fatal(err)
	}
	ends(first)
	ends(f)
	if _, err := net.Dial("unix", sock); err == nil {
		t.Fatal("the socket is still open")
	}
}
