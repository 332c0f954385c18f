package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"ply/internal/errs"
)

// sshArgs returns the arguments of ssh for a host ssh://[USER@]HOST[:PORT][/SOCKET]. On the other side ply connects the streams with its engine or, where there is
// no ply, docker.
func sshArgs(host string) ([]string, error) {
	u, err := url.Parse(host)
	if err != nil {
		return nil, errs.New(errs.Invalid, "host %q: %w", host, err)
	}
	if _, set := u.User.Password(); set {
		return nil, errs.New(errs.Invalid, "host ssh://%s: a password in a URL is not supported", u.Host).WithHint("Use a key, or an agent.")
	}
	if u.Hostname() == "" || strings.HasPrefix(u.Hostname(), "-") || strings.HasPrefix(u.User.Username(), "-") || u.RawQuery != "" || u.Fragment != "" {
		return nil, errs.New(errs.Invalid, "host %q: want ssh://[USER@]HOST[:PORT][/PATH/OF/SOCKET]", host)
	}
	args := []string{"-o", "ConnectTimeout=30", "-T"}
	if name := u.User.Username(); name != "" {
		args = append(args, "-l", name)
	}
	if port := u.Port(); port != "" {
		args = append(args, "-p", port)
	}
	socket := ""
	if u.Path != "" && u.Path != "/" {
		socket = " --host " + quoted("unix://"+u.Path)
	}
	script := "if command -v ply >/dev/null 2>&1; then exec ply" + socket + " system dial-stdio; else exec docker" + socket + " system dial-stdio; fi"
	return append(args, "--", u.Hostname(), "sh -c "+quoted(script)), nil
}

// quoted returns a word of a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// dialSSH connects through the program ssh.
func dialSSH(host string) (net.Conn, error) {
	args, err := sshArgs(host)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("ssh", args...)
	// As with docker: without a terminal, signals of the user's terminal do not end the connection, and ssh asks by SSH_ASKPASS only.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c := &sshConn{cmd: cmd}
	cmd.Stderr = &c.stderr
	if c.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// Not StdoutPipe, which Wait closes: what ssh wrote before it ended is still read after a write has failed.
	out, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, c.in.Close())
	}
	c.out, cmd.Stdout = out, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		out.Close()
		return nil, errs.New(errs.Unavailable, "ssh: %w", err)
	}
	return c, nil
}

// sshConn is a connection through a process.
type sshConn struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	stderr tailBuffer
	once   sync.Once
	failed error // valid after once
}

// Read reads the output of the process. When that ends without a byte because ssh failed, the error has the message of ssh.
func (c *sshConn) Read(p []byte) (int, error) {
	n, err := c.out.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		if werr := c.wait(); werr != nil {
			return 0, werr
		}
	}
	return n, err
}

// wait waits for the process, which has ended its output or takes no more input, and returns why it failed.
func (c *sshConn) wait() error {
	c.once.Do(func() {
		if err := c.cmd.Wait(); err != nil {
			c.failed = errs.New(errs.Unavailable, "ssh: %w", err)
			if text := c.stderr.String(); text != "" {
				c.failed = errs.New(errs.Unavailable, "ssh: %s", text)
			}
		}
	})
	return c.failed
}

func (c *sshConn) Write(p []byte) (int, error) {
	n, err := c.in.Write(p)
	if err != nil && n == 0 {
		if werr := c.wait(); werr != nil {
			return 0, werr
		}
	}
	return n, err
}

// CloseWrite ends the input of the engine.
func (c *sshConn) CloseWrite() error { return c.in.Close() }

// Close ends the connection and the process.
func (c *sshConn) Close() error {
	err := c.in.Close()
	t := time.AfterFunc(time.Second, func() { _ = c.cmd.Process.Kill() }) // it may have ended
	go func() {
		_, _ = io.Copy(io.Discard, c.out) // so that it can end
		_ = c.wait()
		c.out.Close()
		t.Stop()
	}()
	return err
}

type sshAddr struct{}

func (sshAddr) Network() string { return "ssh" }
func (sshAddr) String() string  { return "ssh" }

func (c *sshConn) LocalAddr() net.Addr              { return sshAddr{} }
func (c *sshConn) RemoteAddr() net.Addr             { return sshAddr{} }
func (c *sshConn) SetDeadline(time.Time) error      { return nil } // requests end with their contexts
func (c *sshConn) SetReadDeadline(time.Time) error  { return nil }
func (c *sshConn) SetWriteDeadline(time.Time) error { return nil }

// tailBuffer keeps the last bytes that were written, for an error.
type tailBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b.Write(p)
	t.b.Next(max(0, t.b.Len()-4096))
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.b.String())
}

// DialStdio connects a client's streams with the engine: what in has is sent, what the engine answers is written to out, until the engine has ended its side.
func (c *Client) DialStdio(ctx context.Context, in io.Reader, out io.Writer) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return c.connectError(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, in) // an engine that reads no more ends its answers, too
		if w, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		}
	}()
	if _, err := io.Copy(out, conn); err != nil {
		return fmt.Errorf("dial-stdio: %w", err)
	}
	return context.Cause(ctx)
}
