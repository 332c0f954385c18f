package source

import (
	"context"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"

	"ply/internal/build/relay"
	"ply/internal/errs"
)

// refusal is why git got no connection. Git itself only says that it got none.
type refusal struct {
	mu  sync.Mutex
	err error
}

func (r *refusal) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// take returns the error and forgets it.
func (r *refusal) take() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.err
	r.err = nil
	return err
}

// forward listens on loopback and joins each connection with the host of a remote by git or ssh, through the dialer of this package: git and ssh
// connect to the address that it returns in place of the host, so they resolve no name themselves.
func (s *Sources) forward(ctx context.Context, g *repository, hostport, port string) (address string, err error) {
	u := url.URL{Host: hostport}
	if p := u.Port(); p != "" {
		port = p
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", errs.New(errs.Internal, "connections of git: %w", err)
	}
	g.undo = append(g.undo, relay.Serve(ctx, l, func(ctx context.Context) (io.ReadWriteCloser, error) {
		conn, err := s.dialer("").Dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
		if err != nil {
			g.refused.set(err)
		}
		return conn, err
	}))
	return l.Addr().String(), nil
}

// openGit has git fetch through the forwarder.
func (f *Fetches) openGit(ctx context.Context, g *repository, host string) error {
	at, err := f.s.forward(ctx, g, host, "9418")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(g.remote, "://")
	_, path, _ := strings.Cut(rest, "/")
	g.from = "git://" + at + "/" + path
	g.env = append(g.env, "GIT_OVERRIDE_VIRTUAL_HOST="+host) // the host that it names to the server
	return nil
}
