package listen

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"
)

// Limits of the HTTP server.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 120 * time.Second
	maxHeader     = 64 << 10
	maxCalls      = 250 // on one connection by HTTP/2
)

// NewServer returns an HTTP server with the limits of the API. It speaks HTTP/1.1, and HTTP/2 without TLS for clients of gRPC. Its Serve takes the listeners of Open. Its Shutdown does not
// wait for connections that attach and exec have taken over. A nil log discards.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Protocols: &protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxCalls, MaxReadFrameSize: 1 << 20},
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2 with TLS: attach needs connections that can be taken over
		ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			logPeer(ctx, log, conn)
			if s := slotOf(conn); s != nil {
				ctx = context.WithValue(ctx, slotKey{}, s) // for Stream
			}
			return ctx
		},
		ConnState: watchState,
	}
}

// logPeer logs which process connected to a unix socket.
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
