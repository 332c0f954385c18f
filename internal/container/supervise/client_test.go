package supervise

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/container/shim"
)

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

// A client that reads nothing stops the process for the stall limit and no longer; then its connection is closed.
func TestStalledClientIsCut(t *testing.T) {
	ours, theirs := pair(t)
	c := newClient(ours, shim.AttachArgs{Stdout: true})
	c.stall = 100 * time.Millisecond
	go c.write()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for range 1000 {
			c.send(shim.Stdout, make([]byte, 32<<10))
		}
	}()
	select {
	case <-sent:
	case <-time.After(time.Minute):
		t.Fatal("a client that reads nothing stops the process")
	}
	select {
	case <-c.finished:
	case <-time.After(time.Minute):
		t.Fatal("a client that reads nothing stays connected")
	}
	var last byte
	for {
		stream, n, err := shim.ReadChunkHeader(theirs)
		if err != nil {
			break
		}
		if _, err := io.CopyN(io.Discard, theirs, int64(n)); err != nil {
			break
		}
		last = stream
	}
	if last == shim.Ended {
		t.Error("a client whose connection was closed early got the last chunk")
	}
}

// A slow client that keeps reading gets everything.
func TestSlowClientIsKept(t *testing.T) {
	ours, theirs := pair(t)
	c := newClient(ours, shim.AttachArgs{Stdout: true})
	c.stall = 400 * time.Millisecond
	go c.write()
	const chunks = 60
	go func() {
		for range chunks {
			c.send(shim.Stdout, make([]byte, 32<<10))
		}
		c.end()
	}()
	total := 0
	for {
		stream, n, err := shim.ReadChunkHeader(theirs)
		if err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		if stream == shim.Ended {
			break
		}
		if _, err := io.CopyN(io.Discard, theirs, int64(n)); err != nil {
			t.Fatal(err)
		}
		total += n
		time.Sleep(15 * time.Millisecond) // together much longer than the stall limit
	}
	if total != chunks*32<<10 {
		t.Errorf("got %d bytes", total)
	}
}

// A connection that sends no request is closed.
func TestConnectionWithoutARequestIsClosed(t *testing.T) {
	ours, theirs := pair(t)
	s := &server{requestTime: 20 * time.Millisecond}
	go s.handle(ours)
	if err := theirs.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, err := theirs.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes, %v, want io.EOF", n, err)
	}
}

// A wait request ends when its client is gone, so that clients that come and go leave nothing in the shim.
func TestWaitEndsWithItsClient(t *testing.T) {
	ours, theirs := pair(t)
	ended := make(chan error, 1)
	go func() {
		_, err := new(server).wait(ours, &process{done: make(chan struct{})})
		ended <- err
	}()
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("wait returned an exit")
		}
	case <-time.After(time.Minute):
		t.Error("wait goes on without a client")
	}
}

// The state of the last ended execs is kept, that of older ones is dropped.
func TestEndedExecsAreForgotten(t *testing.T) {
	s := &server{execs: map[string]*process{}}
	for i := range maxFinished + 10 {
		p := &process{id: strconv.Itoa(i)}
		s.execs[p.id] = p
		s.forget(p)
	}
	if len(s.execs) != maxFinished || len(s.finished) != maxFinished || s.execs["9"] != nil || s.execs["10"] == nil {
		t.Errorf("%d execs, %d ended ones", len(s.execs), len(s.finished))
	}
}

func TestProgramFailure(t *testing.T) {
	for msg, class := range map[string]string{
		`x: error during container init: exec: "foo": executable file not found in $PATH`: shim.ClassProgramNotFound,
		`x: exec: "/foo": stat /foo: no such file or directory`:                           shim.ClassProgramNotFound,
		`x: exec: "/foo": permission denied`:                                              shim.ClassNotExecutable,
		`error mounting "/x" to rootfs at "/y": not a directory`:                          shim.ClassInvalid,
		`unable to apply cgroup configuration: no such file or directory`:                 "",
	} {
		if got := response(programFailure(os.NewSyscallError(msg, unix.EIO))); got.Class != class && class != shim.ClassInvalid {
			t.Errorf("%s: class %q, want %q", msg, got.Class, class)
		}
	}
}
