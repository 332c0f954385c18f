package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"

	"ply/internal/errs"
	"ply/internal/wire"
)

// Conn is a hijacked connection: after the HTTP answer, both sides send raw bytes.
type Conn struct {
	net.Conn
	r         *bufio.Reader
	MediaType string // of the stream; empty when the engine does not send it
	Position  string // wire.PositionHeader
}

// Read reads what the engine sends, beginning with the bytes that came with the answer.
func (c *Conn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite ends the input of the engine; reading goes on.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Hijack sends r and takes over the connection. The end of ctx ends the attempt, and closes the connection later.
func (c *Client) Hijack(ctx context.Context, r Request) (*Conn, error) {
	if _, err := c.Ping(ctx); err != nil {
		return nil, err
	}
	body, header, err := encode(r)
	if err != nil {
		return nil, err
	}
	req, err := c.newRequest(ctx, http.MethodPost, "/v"+c.APIVersion()+r.Path, r.Query, body, header)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, c.connectError(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if tc, ok := conn.(*net.TCPConn); ok {
		tc.SetKeepAlive(true)
	}
	if c.opts.Trace != nil {
		c.opts.Trace("POST " + req.URL.RequestURI() + ": taken over")
	}
	if err := req.Write(conn); err != nil {
		stop()
		conn.Close()
		return nil, c.connectError(ctx, err)
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		stop()
		conn.Close()
		return nil, c.connectError(ctx, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols && resp.StatusCode != http.StatusOK {
		err := checkStatus(resp)
		stop()
		conn.Close()
		if err == nil {
			err = errs.New(errs.Internal, "%s: unable to upgrade to tcp, received %d", r.Path, resp.StatusCode)
		}
		return nil, err
	}
	return &Conn{Conn: conn, r: br, MediaType: resp.Header.Get("Content-Type"), Position: resp.Header.Get(wire.PositionHeader)}, nil
}

// Demux copies a multiplexed stream to stdout and stderr until it ends. A nil writer discards its part.
func Demux(stdout, stderr io.Writer, r io.Reader) error {
	br := bufio.NewReaderSize(r, 32<<10)
	var head [8]byte
	for {
		if _, err := io.ReadFull(br, head[:]); err != nil {
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("stream header: %w", err)
		}
		size := int64(binary.BigEndian.Uint32(head[4:]))
		var w io.Writer
		switch head[0] {
		case 0, 1:
			w = stdout
		case 2:
			w = stderr
		case 3:
			msg, err := io.ReadAll(io.LimitReader(br, min(size, maxError)))
			if err != nil {
				return err
			}
			return errs.New(errs.Internal, "error from daemon in stream: %s", msg)
		default:
			return errs.New(errs.Invalid, "stream: unrecognized input header %d", head[0])
		}
		if w == nil {
			w = io.Discard
		}
		if _, err := io.CopyN(w, br, size); err != nil {
			return fmt.Errorf("stream body: %w", err)
		}
	}
}
