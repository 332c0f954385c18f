package docker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"ply/internal/errs"
)

// Limits of the HTTP server.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 120 * time.Second
	maxHeader     = 64 << 10
	maxConns      = 1000 // a listener
)

// TLS says how a TCP listener proves itself and whom it lets in.
type TLS struct {
	CertFile, KeyFile string // the engine's own
	CAFile            string // clients must show a certificate signed by it
	Verify            bool   // tlsverify; without it no TCP listener is opened
}

// ListenOptions of Listen.
type ListenOptions struct {
	Group string // owner group of a unix socket; "" is ply, where that group exists
	TLS   TLS
}

// Listen opens an address of the API: unix:///path, fd:// (all sockets that systemd hands over) or fd://N, tcp://host:port.
// Each lets at most 1000 connections in at a time. TCP needs TLS that verifies clients: whoever reaches the API is root. Errors are errs.Invalid for an address that cannot
// be, errs.Conflict when another engine answers there.
func Listen(addr string, o ListenOptions) ([]net.Listener, error) {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		return nil, errs.New(errs.Invalid, "host %q: want unix://PATH, fd:// or tcp://HOST:PORT", addr)
	}
	var listeners []net.Listener
	switch scheme {
	case "unix":
		l, err := listenUnix(rest, o.Group)
		if err != nil {
			return nil, err
		}
		listeners = []net.Listener{l}
	case "fd":
		var err error
		if listeners, err = listenSystemd(rest, o.TLS); err != nil {
			return nil, err
		}
	case "tcp":
		l, err := listenTCP(addr, rest, o.TLS)
		if err != nil {
			return nil, err
		}
		listeners = []net.Listener{l}
	default:
		return nil, errs.New(errs.Invalid, "host %q: unknown scheme %q, want unix, fd or tcp", addr, scheme)
	}
	return listeners, nil
}

// defaultGroup may use the socket, where it exists.
const defaultGroup = "ply"

// listenUnix makes the socket file. One that is left over is replaced only when nobody answers on it.
func listenUnix(path, group string) (net.Listener, error) {
	if !filepath.IsAbs(path) || path != filepath.Clean(path) {
		return nil, errs.New(errs.Invalid, "host unix://%s: want a clean absolute path", path)
	}
	gid, err := socketGroup(group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	unlock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	// Made under another name and renamed when its owner and mode are right: nobody can connect before.
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.Internal, "socket %s: %w", temp, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chown(temp, 0, gid)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		err = nil // rootless: the socket is its user's
	}
	if err == nil {
		err = os.Chmod(temp, socketMode())
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp) // only tidying up
		return nil, errs.New(errs.Internal, "socket %s: %w", path, errors.Join(err, l.Close()))
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, errors.Join(err, l.Close()))
	}
	return limit(&unixListener{UnixListener: l, path: path, file: st}), nil
}

func socketMode() fs.FileMode {
	if os.Geteuid() != 0 {
		return 0o600
	}
	return 0o660
}

// lockSocket keeps two engines that start at once from taking the same path.
func lockSocket(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, errs.New(errs.Conflict, "socket %s: another engine is opening it", path)
	}
	return func() { _ = f.Close() }, nil // closing unlocks
}

// clearSocket removes a left-over socket file. It refuses to touch anything else.
func clearSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return errs.New(errs.Conflict, "socket %s: the path is taken by something that is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close() // only asked whether somebody is there
		return errs.New(errs.Conflict, "socket %s: another engine answers on it", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return errs.New(errs.Conflict, "socket %s: somebody may be using it: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return errs.New(errs.Internal, "socket %s: %w", path, err)
	}
	return nil
}

// socketGroup gives the group of the socket: one that was asked for must exist.
func socketGroup(name string) (int, error) {
	asked := name != ""
	if !asked {
		name = defaultGroup
	}
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		if asked {
			return 0, errs.New(errs.Invalid, "group %s: %w", name, err)
		}
		return 0, nil
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, errs.New(errs.Internal, "group %s: %w", name, err)
	}
	return gid, nil
}

// unixListener removes its socket file at the end, unless another engine has put its own there.
type unixListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
	once sync.Once
}

func (l *unixListener) Close() error {
	l.once.Do(func() {
		if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.file) {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// listenSystemd takes the sockets that systemd opened for this process.
func listenSystemd(which string, t TLS) ([]net.Listener, error) {
	all, err := activation.Listeners()
	if err != nil {
		return nil, errs.New(errs.Invalid, "host fd://%s: %w", which, err)
	}
	if len(all) == 0 {
		return nil, errs.New(errs.Invalid, "host fd://%s: no sockets found via socket activation: make sure the service was started by systemd", which)
	}
	if which != "" && which != "*" {
		n, err := strconv.Atoi(which)
		if err != nil || n < 3 || n-3 >= len(all) {
			return nil, errs.New(errs.Invalid, "host fd://%s: systemd handed over descriptors 3 to %d", which, 2+len(all))
		}
		all = all[n-3 : n-2]
	}
	for i, l := range all {
		if l == nil {
			return nil, errs.New(errs.Invalid, "host fd://%s: descriptor %d is not a listening socket", which, i+3)
		}
		all[i] = limit(l)
		if l.Addr().Network() == "unix" {
			continue
		}
		cfg, err := t.config(fmt.Sprintf("fd://%d", i+3))
		if err != nil {
			return nil, err
		}
		all[i] = tls.NewListener(all[i], cfg)
	}
	return all, nil
}

func listenTCP(addr, hostport string, t TLS) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(hostport); err != nil {
		return nil, errs.New(errs.Invalid, "host %s: %w", addr, err)
	}
	cfg, err := t.config(addr)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", hostport)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "host %s: %w", addr, err)
	}
	return tls.NewListener(limit(l), cfg), nil
}

// config refuses what would let anybody in.
func (t TLS) config(addr string) (*tls.Config, error) {
	if !t.Verify || t.CertFile == "" || t.KeyFile == "" || t.CAFile == "" {
		return nil, errs.New(errs.Invalid, "host %s: a TCP listener needs TLS that verifies its clients, because whoever reaches it is root", addr).
			WithHint("Set tlsverify, tlscacert, tlscert and tlskey, or use a unix socket, for example through ssh.")
	}
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "host %s: tlscert %s, tlskey %s: %w", addr, t.CertFile, t.KeyFile, err)
	}
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "host %s: tlscacert: %w", addr, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errs.New(errs.Invalid, "host %s: tlscacert %s holds no certificate", addr, t.CAFile)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"http/1.1"}}, nil
}

// CertificateHosts gives the DNS names of a certificate, in lower case: Options.Hosts of a TCP listener.
func CertificateHosts(certFile, keyFile string) ([]string, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "tlscert %s, tlskey %s: %w", certFile, keyFile, err)
	}
	var hosts []string
	for _, name := range cert.Leaf.DNSNames {
		hosts = append(hosts, strings.ToLower(name))
	}
	return hosts, nil
}

// NewServer gives an HTTP server with the limits of the API, to Serve what Listen opened. Its Shutdown does not wait for
// connections that attach and exec took over.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/2 cannot be taken over
		ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			logPeer(ctx, log, conn)
			return ctx
		},
	}
}

// logPeer notes who speaks on a unix socket.
func logPeer(ctx context.Context, log *slog.Logger, conn net.Conn) {
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	sc, ok := conn.(syscall.Conn)
	if !ok || conn.LocalAddr().Network() != "unix" {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	var cred *syscall.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, _ = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err == nil && cred != nil {
		log.Debug("connection", "pid", cred.Pid, "uid", cred.Uid, "gid", cred.Gid)
	}
}

// limit lets at most maxConns connections in at a time; more wait in the kernel's queue.
func limit(l net.Listener) net.Listener {
	return &limited{Listener: l, slots: make(chan struct{}, maxConns), done: make(chan struct{})}
}

type limited struct {
	net.Listener
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	release := sync.OnceFunc(func() { <-l.slots })
	switch conn := conn.(type) {
	case *net.UnixConn:
		return &limitedUnix{conn, release}, nil
	case *net.TCPConn:
		return &limitedTCP{conn, release}, nil
	}
	return &limitedConn{conn, release}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// One type a kind of connection, so that half-closing and looking at the socket still work.
type (
	limitedUnix struct {
		*net.UnixConn
		release func()
	}
	limitedTCP struct {
		*net.TCPConn
		release func()
	}
	limitedConn struct {
		net.Conn
		release func()
	}
)

// Close gives the slot back.
func (c *limitedUnix) Close() error { defer c.release(); return c.UnixConn.Close() }

// Close gives the slot back.
func (c *limitedTCP) Close() error { defer c.release(); return c.TCPConn.Close() }

// Close gives the slot back.
func (c *limitedConn) Close() error { defer c.release(); return c.Conn.Close() }
