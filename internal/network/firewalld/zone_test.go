package firewalld

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/godbus/dbus/v5"
)

// fake is a message bus on which a firewalld that keeps one zone runs.
type fake struct {
	t       *testing.T
	address string

	mu      sync.Mutex
	members []string
	calls   []string
	answer  func(call string) (body []any, known bool) // instead of what firewalld answers; nil = no answer
	refused map[string]string                          // errors of firewalld, by the name of the call
	raw     func(c net.Conn)                           // instead of messages, after the authentication
	conns   []net.Conn
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fake{t: t, address: "unix:path=" + filepath.Join(dir, "s")}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			serving.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.drop()
		serving.Wait()
	})
	return f
}

// drop ends all connections.
func (f *fake) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for answers := []string{"REJECTED EXTERNAL\r\n", "OK 0123456789abcdef0123456789abcdef\r\n", ""}; len(answers) > 0; answers = answers[1:] {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		io.WriteString(c, answers[0])
	}
	f.mu.Lock()
	raw := f.raw
	f.mu.Unlock()
	if raw != nil {
		raw(c)
		return
	}
	for {
		m, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		f.reply(c, m)
	}
}

func (f *fake) reply(c net.Conn, m *dbus.Message) {
	call, _ := m.Headers[dbus.FieldMember].Value().(string)
	f.mu.Lock()
	f.calls = append(f.calls, call)
	var arg string
	if len(m.Body) > 1 {
		arg, _ = m.Body[1].(string)
	}
	var body []any
	known := false
	if f.answer != nil {
		body, known = f.answer(call)
	}
	if !known && f.refused[call] == "" {
		switch call {
		case "Hello":
			body = []any{":1.7"}
		case "GetNameOwner":
			body = []any{":1.1"}
		case "GetConnectionUnixProcessID":
			body = []any{uint32(os.Getpid())}
		case "getZones":
			body = []any{[]string{ZoneName}}
		case "getPolicies":
			body = []any{[]string{policyName}}
		case "getInterfaces":
			body = []any{slices.Clone(f.members)}
		case "addInterface":
			f.members = append(f.members, arg)
		case "removeInterface":
			f.members = slices.DeleteFunc(f.members, func(m string) bool { return m == arg })
		}
	}
	refused := f.refused[call]
	f.mu.Unlock()
	if refused != "" {
		f.send(c, dbus.TypeError, map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(m.Serial()), dbus.FieldErrorName: dbus.MakeVariant(service + ".Exception"),
		}, refused)
		return
	}
	if known && body == nil {
		return
	}
	f.send(c, dbus.TypeMethodReply, map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(m.Serial())}, body...)
}

// send sends a message with a serial number, which the library does not set for a server.
func (f *fake) send(c net.Conn, typ dbus.Type, headers map[dbus.HeaderField]dbus.Variant, body ...any) {
	m := &dbus.Message{Type: typ, Headers: headers, Body: body}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		f.t.Error(err)
		return
	}
	binary.LittleEndian.PutUint32(b.Bytes()[8:], 1)
	c.Write(b.Bytes())
}

func (f *fake) signal(sender, iface, member string, body ...any) {
	f.mu.Lock()
	conns := slices.Clone(f.conns)
	f.mu.Unlock()
	for _, c := range conns {
		f.send(c, dbus.TypeSignal, map[dbus.HeaderField]dbus.Variant{
			dbus.FieldSender: dbus.MakeVariant(sender), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(object)),
			dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
		}, body...)
	}
}

func (f *fake) count(call string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == call {
			n++
		}
	}
	return n
}

// has waits until the zone has the bridges.
func (f *fake) has(when string, want ...string) {
	f.t.Helper()
	var got []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		f.mu.Lock()
		got = slices.Clone(f.members)
		f.mu.Unlock()
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
	}
	f.t.Errorf("%s: the zone has %q, want %q", when, got, want)
}

// record is a log that can be read.
type record struct {
	mu   sync.Mutex
	text strings.Builder
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) count(word string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.text.String(), word)
}

// running returns a zone whose goroutine runs until the end of the test.
func running(t *testing.T, address string) (*Zone, *record) {
	t.Helper()
	log := &record{}
	z := New(Options{Address: address, Log: slog.New(slog.NewTextHandler(log, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { z.Run(ctx) })
	t.Cleanup(func() { cancel(); run.Wait() })
	return z, log
}

// in waits until the zone is in the phase.
func in(t *testing.T, z *Zone, want phase) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		z.mu.Lock()
		got := z.phase
		z.mu.Unlock()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("phase %d, want %d", got, want)
		}
	}
}

func TestBridgesEnterAndLeaveTheZone(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.members = []string{"another0"}
	z, _ := running(t, f.address)
	z.Add("a0")
	z.Add("b0")
	z.Await(t.Context())
	f.has("after Await", "a0", "another0", "b0")
	z.Remove("a0")
	z.Remove("another0") // which this engine has not added
	z.Await(t.Context())
	f.has("after the removal", "another0", "b0")
	f.set(func() { f.members = nil })
	f.signal(":1.1", service, "Reloaded")
	f.has("after a reload", "b0")
	f.set(func() { f.members = nil })
	f.signal(busName, busName, "NameOwnerChanged", service, ":1.1", ":1.1")
	f.has("after firewalld started again", "b0")
	f.set(func() { f.members = nil })
	f.drop()
	f.has("after the bus started again", "b0")
}

// Every user of a host can send signals to a connection to the bus.
func TestSignalsOfStrangersDoNotCount(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	z, _ := running(t, f.address)
	z.Add("a0")
	z.Await(t.Context())
	before := f.count("getZones")
	for range 1000 {
		f.signal(":1.66", service, "Reloaded")
		f.signal(":1.66", busName, "NameOwnerChanged", service, ":1.1", "")
	}
	z.Add("b0")
	z.Await(t.Context())
	f.has("after the signals", "a0", "b0")
	if n := f.count("getZones"); n != before {
		t.Errorf("the zones were asked for %d times because of strangers", n-before)
	}
}

// A firewalld that does not answer delays the first caller only, and is reported once. What it missed is made good when it answers.
func TestSilentFirewalld(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.answer = func(call string) ([]any, bool) { return nil, call == "getZones" }
	z, log := running(t, f.address)
	z.Add("a0")
	z.Await(t.Context())
	in(t, z, silent)
	for _, name := range []string{"b0", "c0", "d0"} {
		z.Add(name)
		z.Await(t.Context()) // would take as long as the test if each waited for the limit
	}
	z.mu.Lock()
	if z.phase != silent {
		t.Error("a caller waits although firewalld did not answer the one before")
	}
	z.mu.Unlock()
	if n := log.count("WARN"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, log.text.String())
	}
	f.set(func() { f.answer = nil })
	f.drop()
	f.has("when it answers", "a0", "b0", "c0", "d0")
}

// Answers of the wrong types are errors, and the next try goes on.
func TestAnswersOfWrongTypes(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"GetNameOwner", "GetConnectionUnixProcessID", "getZones", "getPolicies", "getInterfaces"} {
		for _, wrong := range []any{uint32(7), "text", []string{}, []uint32{1}, map[string]dbus.Variant{}, dbus.MakeVariant("x"), []dbus.Variant{}} {
			if _, list := wrong.([]string); list && strings.HasPrefix(call, "get") {
				continue
			}
			if _, number := wrong.(uint32); number && call == "GetConnectionUnixProcessID" {
				continue
			}
			t.Run(fmt.Sprintf("%s answers %T", call, wrong), func(t *testing.T) {
				t.Parallel()
				f := newFake(t)
				f.answer = func(c string) ([]any, bool) { return []any{wrong}, c == call }
				z, log := running(t, f.address)
				z.Add("a0")
				in(t, z, silent)
				if log.count("WARN") == 0 {
					t.Error("no warning")
				}
				f.set(func() { f.answer = nil })
				f.has("after the right answer", "a0")
			})
		}
	}
}

// What a bus sends that is no message, or one on which the library would panic, ends the connection at most.
func TestHostileBus(t *testing.T) {
	t.Parallel()
	header := func(body, fields uint32) []byte {
		b := []byte{'l', 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}
		binary.LittleEndian.PutUint32(b[4:], body)
		binary.LittleEndian.PutUint32(b[12:], fields)
		return b
	}
	for name, raw := range map[string]func(c net.Conn){
		"zeros":             func(c net.Conn) { endless(c, make([]byte, 4096)) },
		"text":              func(c net.Conn) { endless(c, []byte("OK\r\n")) },
		"a long body":       func(c net.Conn) { endless(c, header(1<<27-100, 0)) },
		"a long header":     func(c net.Conn) { endless(c, header(0, 1<<27-100)) },
		"overflowing sizes": func(c net.Conn) { endless(c, header(1<<32-1, 1<<32-1)) },
		"half a message":    func(c net.Conn) { c.Write(header(100, 8)) },
		"nothing":           func(c net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.raw = raw
			z, _ := running(t, f.address)
			z.Add("a0")
			z.Await(t.Context())
			f.set(func() { f.raw = nil })
			f.drop()
			f.has("when it is a bus again", "a0")
		})
	}
	f := newFake(t)
	z, _ := running(t, f.address)
	z.Add("a0")
	z.Await(t.Context())
	for _, member := range []string{"NameLost", "NameAcquired", "NameOwnerChanged"} {
		f.signal(busName, busName, member)
		f.signal(busName, busName, member, uint32(1))
		f.signal(busName, busName, member, []string{"x"})
	}
	z.Add("b0")
	f.has("after signals of wrong types", "a0", "b0")
}

func endless(c net.Conn, b []byte) {
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// A bus that never ends its authentication is left.
func TestEndlessAuthentication(t *testing.T) {
	b := &bounded{Conn: readConn{Reader: iotest.OneByteReader(endlessReader{})}}
	n, err := io.Copy(io.Discard, b)
	if err == nil || n > maxAuth {
		t.Errorf("%d bytes were read, %v", n, err)
	}
}

type endlessReader struct{}

func (endlessReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

type readConn struct {
	net.Conn
	io.Reader
}

func (r readConn) Read(p []byte) (int, error) { return r.Reader.Read(p) }

// Where there is no bus, or no firewalld, nobody waits, and nothing is logged.
func TestWithoutFirewalld(t *testing.T) {
	t.Parallel()
	for name, address := range map[string]string{"no socket": "unix:path=" + filepath.Join(t.TempDir(), "none"), "an address of another kind": "tcp:host=192.0.2.1,port=9"} {
		z, log := running(t, address)
		z.Add("a0")
		z.Await(t.Context())
		in(t, z, absent)
		z.Remove("a0")
		z.Await(t.Context())
		if log.count("\n") != 0 {
			t.Errorf("%s: %s", name, log.text.String())
		}
	}
}

// A bus that appears after the engine is found.
func TestBusAppearsLater(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	link := filepath.Join(dir, "s")
	z, _ := running(t, "unix:path="+link)
	z.Add("a0")
	in(t, z, absent)
	f := newFake(t)
	if err := os.Symlink(strings.TrimPrefix(f.address, "unix:path="), link); err != nil {
		t.Fatal(err)
	}
	z.Add("b0") // asks again at once
	f.has("the bus is there", "a0", "b0")
}

// A firewalld whose rules are those of another network namespace is left alone.
func TestFirewalldOfAnotherNamespace(t *testing.T) {
	t.Parallel()
	other := exec.Command("sleep", "1000")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait() // killed
	})
	f := newFake(t)
	f.answer = func(call string) ([]any, bool) {
		return []any{uint32(other.Process.Pid)}, call == "GetConnectionUnixProcessID"
	}
	z, _ := running(t, f.address)
	z.Add("a0")
	z.Await(t.Context())
	if n := f.count("addInterface") + f.count("addZone2") + f.count("reload"); n != 0 {
		t.Fatalf("it was changed: %q", f.calls)
	}
	in(t, z, absent)
}

// A zone that firewalld has in its files but does not show makes it reload once, not again and again.
func TestOneReload(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.answer = func(call string) ([]any, bool) {
		return []any{[]string{"public"}}, call == "getZones"
	}
	f.refused = map[string]string{"addZone2": "NAME_CONFLICT: it exists"}
	z, log := running(t, f.address)
	z.Add("a0")
	in(t, z, silent)
	for deadline := time.Now().Add(time.Minute); f.count("addZone2") < 3 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
	}
	if a, n := f.count("addZone2"), f.count("reload"); a < 3 || n != 1 {
		t.Errorf("after %d tries firewalld was made to reload %d times, want once", a, n)
	}
	if log.count("WARN") == 0 {
		t.Error("no warning")
	}
}

// An administrator may have put a bridge into another zone.
func TestBridgeInAnotherZone(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.refused = map[string]string{"addInterface": "ZONE_CONFLICT: 'a0' already bound to 'trusted'", "removeInterface": "ZONE_CONFLICT: remove_interface(ply, a0)"}
	z, log := running(t, f.address)
	z.Add("a0")
	z.Await(t.Context())
	in(t, z, present)
	z.Remove("a0")
	z.Await(t.Context())
	if a, r := f.count("addInterface"), f.count("removeInterface"); a != 1 || r != 1 || log.count("WARN") != 0 {
		t.Errorf("%d calls to add, %d to remove, want one of each, and no warning:\n%s", a, r, log.text.String())
	}
}

// A bridge that firewalld fails to remove does not keep it from getting others.
func TestFailedRemoval(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.refused = map[string]string{"removeInterface": "COMMAND_FAILED: 'python-nftables' failed: Device or resource busy"}
	z, log := running(t, f.address)
	z.Add("a0")
	z.Await(t.Context())
	z.Remove("a0")
	z.Add("b0")
	z.Await(t.Context())
	f.has("after the removal", "a0", "b0")
	in(t, z, present)
	if n := f.count("removeInterface"); n != 1 || log.count("WARN") != 0 {
		t.Errorf("%d calls to remove, want one, and no warning:\n%s", n, log.text.String())
	}
}

func TestSocketOf(t *testing.T) {
	for list, want := range map[string]string{
		"unix:path=/run/dbus/system_bus_socket":   "/run/dbus/system_bus_socket",
		"unix:guid=1,path=/a%20b":                 "/a b",
		"tcp:host=x,port=1;unix:path=/second":     "/second",
		"unix:abstract=/x":                        "",
		"":                                        "",
		"unix:path=%zz;unix:path=/after-nonsense": "/after-nonsense",
	} {
		if got := socketOf(list); got != want {
			t.Errorf("socketOf(%q) = %q, want %q", list, got, want)
		}
	}
}

func TestCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{dbus.Error{Name: service + ".Exception", Body: []any{"ZONE_CONFLICT: 'x' is elsewhere"}}, "ZONE_CONFLICT"},
		{dbus.Error{Name: service + ".Exception", Body: []any{uint32(1)}}, ""},
		{dbus.Error{Name: service + ".Exception"}, ""},
		{dbus.Error{Name: "org.freedesktop.DBus.Error.Failed", Body: []any{"ZONE_CONFLICT"}}, ""},
		{errors.New("ZONE_CONFLICT"), ""},
		{nil, ""},
	} {
		if got := code(c.err); got != c.want {
			t.Errorf("code(%v) = %q, want %q", c.err, got, c.want)
		}
	}
}
