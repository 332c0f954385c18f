package firewalld

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// defaultAddress is where the system's message bus listens.
const defaultAddress = "unix:path=/run/dbus/system_bus_socket"

const connectLimit = 10 * time.Second

var (
	errNoBus = errors.New("there is no message bus")
	errEnded = errors.New("the connection to the message bus has ended")
)

// Names of the bus itself (the D-Bus specification).
const (
	busName = "org.freedesktop.DBus"
	busPath = "/org/freedesktop/DBus"
)

// bus is a connection to the message bus.
type bus struct {
	conn      *dbus.Conn
	announced chan struct{} // something was announced

	expected atomic.Pointer[string] // the unique name of firewalld
	owners   atomic.Bool            // the owner of the name changed
	reloads  atomic.Bool
}

// socketOf returns the path of the socket in a list of addresses; "" when none is a socket in the file system.
func socketOf(list string) string {
	for address := range strings.SplitSeq(list, ";") {
		options, ok := strings.CutPrefix(address, "unix:")
		if !ok {
			continue
		}
		for option := range strings.SplitSeq(options, ",") {
			if value, ok := strings.CutPrefix(option, "path="); ok {
				if path, err := url.PathUnescape(value); err == nil {
					return path
				}
			}
		}
	}
	return ""
}

// connect connects to the bus. The error is errNoBus when nothing listens there.
func connect(ctx context.Context, address string) (_ *bus, err error) {
	path := socketOf(cmp.Or(address, os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"), defaultAddress))
	if path == "" {
		return nil, errNoBus
	}
	dialer := net.Dialer{Timeout: connectLimit}
	raw, err := dialer.DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errNoBus
	}
	if err != nil {
		return nil, fmt.Errorf("message bus: %w", err)
	}
	b := &bus{announced: make(chan struct{}, 1)}
	if err := raw.SetReadDeadline(time.Now().Add(connectLimit)); err != nil {
		return nil, errors.Join(fmt.Errorf("message bus: %w", err), raw.Close())
	}
	b.conn, err = dbus.NewConn(&bounded{Conn: raw}, dbus.WithContext(ctx), dbus.WithSignalHandler(b), dbus.WithIncomingInterceptor(repair))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("message bus: %w", err), raw.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("message bus: %w", err), b.conn.Close())
		}
	}()
	if err := b.conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		return nil, err
	}
	if err := b.conn.Hello(); err != nil {
		return nil, err
	}
	if err := raw.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	for _, rule := range []string{
		"type='signal',sender='" + busName + "',path='" + busPath + "',interface='" + busName + "',member='NameOwnerChanged',arg0='" + service + "'",
		"type='signal',sender='" + service + "',path='" + object + "',interface='" + service + "',member='Reloaded'",
	} {
		if _, err := b.call(ctx, busName, busPath, busName+".AddMatch", rule); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *bus) close() { _ = b.conn.Close() } // nothing was written that could be lost

func (b *bus) done() <-chan struct{} { return b.conn.Context().Done() }

func (b *bus) ended() bool { return b.conn.Context().Err() != nil }

// call calls a method. It never starts a service.
func (b *bus) call(ctx context.Context, name, path, method string, args ...any) ([]any, error) {
	limit := callLimit
	if strings.HasSuffix(method, ".reload") {
		limit = reloadLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := b.conn.Object(name, dbus.ObjectPath(path)).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...)
	if c.Err != nil {
		return nil, fmt.Errorf("%s: %w", method, c.Err)
	}
	return c.Body, nil
}

// owner returns the unique name of who owns a name; "" when nobody does.
func (b *bus) owner(ctx context.Context, name string) (string, error) {
	body, err := b.call(ctx, busName, busPath, busName+".GetNameOwner", name)
	var refused dbus.Error
	if errors.As(err, &refused) && refused.Name == busName+".Error.NameHasNoOwner" {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if len(body) == 1 {
		if owner, ok := body[0].(string); ok && strings.HasPrefix(owner, ":") {
			return owner, nil
		}
	}
	return "", errors.New("message bus: the answer is no name of an owner")
}

// process returns the process that has a unique name.
func (b *bus) process(ctx context.Context, unique string) (uint32, error) {
	body, err := b.call(ctx, busName, busPath, busName+".GetConnectionUnixProcessID", unique)
	if err != nil {
		return 0, err
	}
	if len(body) == 1 {
		if pid, ok := body[0].(uint32); ok {
			return pid, nil
		}
	}
	return 0, errors.New("message bus: the answer is no process")
}

// expect sets the unique name of firewalld, whose signals count.
func (b *bus) expect(unique string) { b.expected.Store(&unique) }

// ownerChanged reports whether the name of firewalld changed hands since the last call.
func (b *bus) ownerChanged() bool { return b.owners.Swap(false) }

// wasReloaded reports whether firewalld has reloaded since the last call.
func (b *bus) wasReloaded() bool { return b.reloads.Swap(false) }

var _ dbus.SignalHandler = (*bus)(nil)

// DeliverSignal implements dbus.SignalHandler. Every user of the host can send signals to this connection: only those of the bus and of firewalld count,
// and nothing of them is kept.
func (b *bus) DeliverSignal(iface, name string, s *dbus.Signal) {
	expected := b.expected.Load()
	switch {
	case iface == busName && name == "NameOwnerChanged" && s.Sender == busName:
		b.owners.Store(true)
	case iface == service && name == "Reloaded" && expected != nil && s.Sender == *expected:
		b.reloads.Store(true)
	default:
		return
	}
	select {
	case b.announced <- struct{}{}:
	default:
	}
}

// repair makes a message harmless on which the library would panic.
func repair(m *dbus.Message) {
	if m.Type != dbus.TypeSignal {
		return
	}
	if len(m.Body) > 0 {
		if _, ok := m.Body[0].(string); ok {
			return
		}
	}
	m.Body = []any{""}
}

// Bounds of what the bus sends.
const (
	maxAuth    = 16 << 10 // bytes before the first message
	maxHeader  = 64 << 10
	maxBody    = 1 << 20
	fixedBytes = 16 // of the header of a message
	writeLimit = 10 * time.Second
)

// bounded is a connection on which the other side can send neither endless lines, nor messages that are too long, nor what is no message.
type bounded struct {
	net.Conn
	messages atomic.Bool // the authentication has ended
	auth     int         // bytes that were read before
	head     []byte      // of the current message, not yet returned
	left     int         // bytes of the current message that follow head
}

// Write implements io.Writer. The client says with BEGIN that messages follow.
func (b *bounded) Write(p []byte) (int, error) {
	if string(p) == "BEGIN\r\n" {
		b.messages.Store(true)
	}
	if err := b.Conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	return b.Conn.Write(p)
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if !b.messages.Load() {
		n, err := b.Conn.Read(p)
		if b.auth += n; b.auth > maxAuth {
			return 0, errors.New("the message bus sends no messages")
		}
		return n, err
	}
	if len(b.head) == 0 && b.left == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	if len(b.head) > 0 {
		n := copy(p, b.head)
		b.head = b.head[n:]
		return n, nil
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// next reads the fixed part of the next message.
func (b *bounded) next() error {
	var fixed [fixedBytes]byte
	if _, err := io.ReadFull(b.Conn, fixed[:]); err != nil {
		return err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if fixed[0] == 'B' {
		order = binary.BigEndian
	}
	body, header := order.Uint32(fixed[4:]), order.Uint32(fixed[12:])
	if fixed[0] != 'l' && fixed[0] != 'B' || fixed[3] != 1 || body > maxBody || header > maxHeader {
		return errors.New("the message bus sends what is no message, or too long a one")
	}
	b.head, b.left = fixed[:], int((header+7)&^7+body)
	return nil
}
