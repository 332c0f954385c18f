package docker

import (
	"context"
	"errors"
	"io"
	"net/http"

	"golang.org/x/net/websocket"

	"ply/internal/container/session"
	"ply/internal/errs"
)

// attachWebSocket serves attach over a web socket. The output of the container comes in binary messages, without Docker's
// frames, and the messages of the client are its input.
func (h sessionHandlers) attachWebSocket(c *call) error {
	if _, err := h.containers.Get(c.ctx(), c.vars["id"], false); err != nil {
		return err
	}
	if c.r.Header.Get("Upgrade") == "" {
		return errs.New(errs.Invalid, "attach/ws: not a web socket request: the Upgrade header is missing")
	}
	done, err := c.stream()
	if err != nil {
		return err
	}
	defer done()
	// net/http does not watch a connection that was taken over.
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx()))
	defer cancel()
	server := websocket.Server{
		Handshake: func(*websocket.Config, *http.Request) error { return nil }, // guard has refused requests of web pages
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			err := h.serveWebSocket(ctx, cancel, c, ws)
			if err != nil && !errors.Is(err, session.ErrDetached) && !errors.Is(err, context.Canceled) {
				_, _ = io.WriteString(ws, messageOf(err)+"\r\n") // the status was sent already
			}
		},
	}
	server.ServeHTTP(c.w, c.r)
	return nil
}

func (h sessionHandlers) serveWebSocket(ctx context.Context, cancel context.CancelFunc, c *call, ws *websocket.Conn) error {
	opts := session.AttachOptions{Logs: c.bool("logs"), Stream: c.bool("stream"), DetachKeys: c.get("detachKeys"), Ready: func() error { return nil }}
	// Clients in browsers name no stream when they want all of them.
	all := !c.bool("stdin") && !c.bool("stdout") && !c.bool("stderr")
	sock := &socket{ws, cancel}
	if all || c.bool("stdin") {
		opts.Stdin = sock
	} else {
		go sock.drain() // notices when the client is gone; it ends with the socket
	}
	if all || c.bool("stdout") {
		opts.Stdout = sock
	}
	if all || c.bool("stderr") {
		opts.Stderr = sock
	}
	return h.sessions.Attach(ctx, c.vars["id"], opts)
}

// socket ends the work when its client is gone. A web socket cannot be half-closed, so the end of the input is the end.
type socket struct {
	ws     *websocket.Conn
	cancel context.CancelFunc
}

// Read reads what the client sends.
func (s *socket) Read(b []byte) (int, error) {
	n, err := s.ws.Read(b)
	if err != nil {
		s.cancel()
	}
	return n, err
}

// Write sends to the client.
func (s *socket) Write(b []byte) (int, error) {
	n, err := s.ws.Write(b)
	if err != nil {
		s.cancel()
	}
	return n, err
}

// drain discards what the client sends, until it is gone.
func (s *socket) drain() { _, _ = io.Copy(io.Discard, s) }
