package direct

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"ply/internal/errs"
)

// Agent is an ssh agent: one behind a socket, or one that has some keys.
type Agent struct {
	socket string
	keys   agent.Agent
}

// NewAgent returns the agent behind a socket, or one with the keys of files. Errors: errs.Invalid.
func NewAgent(paths []string) (Agent, error) {
	a := Agent{}
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return a, errs.New(errs.Invalid, "ssh agent: %v", err)
		}
		if st.Mode().Type() == fs.ModeSocket {
			if len(paths) > 1 {
				return a, errs.New(errs.Invalid, "ssh agent: %s is a socket, and keys cannot be added to it", p)
			}
			return Agent{socket: p}, nil
		}
		if a.keys == nil {
			a.keys = agent.NewKeyring()
		}
		if err := addKey(a.keys, p); err != nil {
			return a, err
		}
	}
	return a, nil
}

// maxKey is the largest file of a key, in bytes.
const maxKey = 100 << 10

func addKey(to agent.Agent, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return errs.New(errs.Invalid, "ssh key: %v", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return errs.New(errs.Invalid, "ssh key %s: %v", name, err)
	}
	key, err := ssh.ParseRawPrivateKey(data)
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); locked {
		return errs.New(errs.Invalid, "ssh key %s has a passphrase: add it to an ssh agent, and name the agent's socket", name)
	}
	if err != nil {
		return errs.New(errs.Invalid, "ssh key %s: %v", name, err)
	}
	return to.Add(agent.AddedKey{PrivateKey: key})
}

// serve connects a stream with the agent until either side ends.
func (a Agent) serve(ctx context.Context, conn net.Conn) error {
	if a.keys != nil {
		if err := agent.ServeAgent(readOnly{a.keys}, conn); err != nil && !errors.Is(err, io.EOF) {
			return errs.New(errs.Unavailable, "ssh agent: %v", err)
		}
		return nil
	}
	var d net.Dialer
	agent, err := d.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return errs.New(errs.Unavailable, "ssh agent: %v", err)
	}
	defer agent.Close()
	defer context.AfterFunc(ctx, func() { _ = agent.Close() })()
	done := make(chan error, 2)
	pipe := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			err = errors.Join(err, half.CloseWrite())
		}
		done <- err
	}
	go pipe(agent, conn)
	pipe(conn, agent)
	<-done
	<-done
	return nil
}

// readOnly is an agent that a build can use and not change.
type readOnly struct{ agent.Agent }

var errReadOnly = errors.New("the keys of a build cannot be changed")

func (readOnly) Add(agent.AddedKey) error   { return errReadOnly }
func (readOnly) Remove(ssh.PublicKey) error { return errReadOnly }
func (readOnly) RemoveAll() error           { return errReadOnly }
func (readOnly) Lock([]byte) error          { return errReadOnly }
func (readOnly) Unlock([]byte) error        { return errReadOnly }
