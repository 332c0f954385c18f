package source

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"ply/internal/build/ops"
	"ply/internal/durable"
	"ply/internal/errs"
)

// openSSH prepares ssh: the keys of hosts that the front end found, and the agent of the client.
func (f *Fetches) openSSH(ctx context.Context, g *repository, op *ops.Git, dir string) error {
	command := "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
	if op.KnownHosts != "" {
		name := filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(name, []byte(op.KnownHosts), 0o600); err != nil {
			return err
		}
		command = "ssh -F /dev/null -o BatchMode=yes -o UserKnownHostsFile='" + name + "'"
	}
	g.env = append(g.env, "GIT_SSH_COMMAND="+command, "GIT_SSH_VARIANT=ssh")
	if op.SSHSocket == "" {
		return nil
	}
	sock, end, err := f.agent(ctx, op.SSHSocket)
	if errors.Is(err, errs.NotFound) {
		return nil // the server may do without a key
	}
	if err != nil {
		return err
	}
	g.undo = append(g.undo, end)
	g.env = append(g.env, "SSH_AUTH_SOCK="+sock)
	return nil
}

// agent offers an agent of the client on a socket.
func (f *Fetches) agent(ctx context.Context, id string) (sock string, end func() error, err error) {
	probe, err := f.client.Agent(ctx, id)
	if err != nil {
		return "", nil, err
	}
	if err := probe.Close(); err != nil {
		return "", nil, err
	}
	sock = durable.TempName(f.s.o.Run)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		return "", nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			wg.Go(func() { f.relay(run, c, id) })
		}
	})
	end = func() error {
		cancel()
		err := l.Close()
		wg.Wait()
		return err
	}
	if err := os.Chmod(sock, 0o600); err != nil {
		return "", nil, errors.Join(err, end())
	}
	return sock, end, nil
}

// relay connects ssh with the agent.
func (f *Fetches) relay(ctx context.Context, c net.Conn, id string) {
	defer c.Close()
	a, err := f.client.Agent(ctx, id)
	if err != nil {
		return // ssh sees the end of the connection
	}
	defer a.Close()
	defer context.AfterFunc(ctx, func() { _, _ = c.Close(), a.Close() })()
	done := make(chan struct{}, 2)
	pipe := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from) // the end of one direction ends both
		done <- struct{}{}
	}
	go pipe(a, c)
	go pipe(c, a)
	<-done
}
