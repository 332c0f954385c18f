package source

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"ply/internal/build/ops"
	"ply/internal/build/relay"
	"ply/internal/durable"
	"ply/internal/errs"
)

// openSSH prepares ssh: the forwarder to the host, the keys of hosts that the front end found, and the agent of the client.
func (f *Fetches) openSSH(ctx context.Context, g *repository, op *ops.Git, host, dir string) error {
	if !ops.IsSSHHost(host) {
		return errs.New(errs.Invalid, "git: %.200q is not the address of a repository", redact(op.Remote))
	}
	at, err := f.s.forward(ctx, g, host, "22")
	if err != nil {
		return err
	}
	ip, port, err := net.SplitHostPort(at)
	if err != nil {
		return err
	}
	g.ssh = true
	// The first value of an option counts, so the host and the port of the remote have no effect on where ssh connects to.
	command := "ssh -F /dev/null -o HostName=" + ip + " -o Port=" + port + " -o CheckHostIP=no -o HostKeyAlias='" + keyName(host) + "' -o BatchMode=yes -o LogLevel=ERROR"
	if op.KnownHosts != "" {
		name := filepath.Join(dir, "known_hosts")
		if err := os.WriteFile(name, []byte(op.KnownHosts), 0o600); err != nil {
			return err
		}
		command += " -o UserKnownHostsFile='" + name + "'"
	} else {
		command += " -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
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

// keyName returns the name that the keys of a host have in a file of known hosts.
func keyName(host string) string {
	u := url.URL{Host: strings.ToLower(host)}
	if p := u.Port(); p != "" && p != "22" {
		return "[" + u.Hostname() + "]:" + p
	}
	return u.Hostname()
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
