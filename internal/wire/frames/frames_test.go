package frames

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pair returns two ends of a unix socket.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

type message struct{ Text string }

// Files arrive with their message, also when messages without files stand before and after them in the socket.
func TestFilesComeWithTheirMessage(t *testing.T) {
	a, b := pair(t)
	from, to := New(a, nil), New(b, nil)
	dir := t.TempDir()
	go func() {
		for _, name := range []string{"", "one", "", "", "two", strings.Repeat("x", 200)} {
			var files []*os.File
			if name != "" {
				f, err := os.Create(filepath.Join(dir, name))
				if err != nil {
					t.Error(err)
					return
				}
				f.WriteString("content of " + name)
				f.Seek(0, io.SeekStart)
				files = append(files, f)
			}
			if err := from.Send(message{name + strings.Repeat(".", 100_000)}, files...); err != nil {
				t.Error(err)
			}
			for _, f := range files {
				f.Close()
			}
		}
		a.Close()
	}()
	for _, want := range []string{"", "one", "", "", "two", strings.Repeat("x", 200)} {
		var m message
		files, err := to.Receive(&m)
		if err != nil || strings.TrimRight(m.Text, ".") != want || (len(files) == 1) != (want != "") {
			t.Fatalf("message %.20q with %d files, %v; want %q", m.Text, len(files), err, want)
		}
		for _, f := range files {
			if b, err := io.ReadAll(f); err != nil || string(b) != "content of "+want {
				t.Errorf("file of %q: %q, %v", want, b, err)
			}
			f.Close()
		}
	}
	if _, err := to.Receive(&message{}); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

// A frame that is too long, cut off or not JSON is an error, and so are more files than a frame may have; none of them stays open.
func TestHostileFrames(t *testing.T) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for name, sent := range map[string][]byte{
		"long": binary.BigEndian.AppendUint32(nil, MaxSize+1), "cut": frame(`{"Text":"abc"}`)[:9], "cut in the length": {0, 0}, "no JSON": frame("abc"),
	} {
		a, b := pair(t)
		if _, err := a.Write(sent); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if _, err := New(b, nil).Receive(&message{}); err == nil || err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
	a, b := pair(t)
	var fds []int
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for range MaxFiles + 3 {
		fds = append(fds, int(null.Fd()))
	}
	before := openFiles(t)
	raw, err := a.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), frame(`{}`), unix.UnixRights(fds...), nil, 0)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	c := New(b, nil)
	if _, err := c.Receive(&message{}); err == nil {
		t.Error("too many files were accepted")
	}
	c.Discard()
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, before %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A connection that is no unix socket carries frames without files.
func TestWithoutFiles(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	go func() {
		if err := New(b, nil).Send(message{"x"}); err != nil {
			t.Error(err)
		}
	}()
	var m message
	c := New(a, nil)
	if c.CarriesFiles() {
		t.Error("a pipe carries files")
	}
	if _, err := c.Receive(&m); err != nil || m.Text != "x" {
		t.Errorf("%q, %v", m.Text, err)
	}
	if err := c.Send(message{}, os.Stdin); err == nil {
		t.Error("a file was sent over a pipe")
	}
}

// No bytes make Receive panic, return a message that was not sent whole, or read more than a frame says.
func FuzzReceive(f *testing.F) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	f.Add(frame(`{"Text":"a"}`))
	f.Add(append(frame(`{"Text":"a"}`), frame(`{"Text":"b"}`)...))
	f.Add(frame("abc"))
	f.Add(frame(""))
	f.Add([]byte{0, 0, 0, 9, '{'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		c := New(a, bytes.NewReader(data))
		for rest := data; ; {
			files, err := c.Receive(&message{})
			if len(files) > 0 {
				t.Fatal("files came without a socket")
			}
			if err != nil {
				if (err == io.EOF) != (len(rest) == 0) {
					t.Errorf("%v with %d bytes left", err, len(rest))
				}
				return
			}
			if len(rest) < 4 || len(rest) < 4+int(binary.BigEndian.Uint32(rest)) {
				t.Fatalf("a message out of %d bytes", len(rest))
			}
			rest = rest[4+binary.BigEndian.Uint32(rest):]
		}
	})
}
