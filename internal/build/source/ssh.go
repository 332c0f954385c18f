package source

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"ply/internal/build/ops"
	"ply/internal/build/relay"
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
	end, err = relay.Listen(ctx, sock, func(ctx context.Context) (io.ReadWriteCloser, error) { return f.client.Agent(ctx, id) })
	if err != nil {
		return "", nil, err
	}
	if err := os.Chmod(sock, 0o600); err != nil {
		return "", nil, errors.Join(err, end())
	}
	return sock, end, nil
}
