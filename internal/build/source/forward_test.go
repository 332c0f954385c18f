package source

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"

	"ply/internal/build/ops"
	"ply/internal/errs"
)

// listen serves connections to an address of loopback until the test ends.
func listen(t *testing.T, address string, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// gitDaemon serves the repositories below a directory by git's own protocol. Those of a host are in the directory with its name.
func gitDaemon(dir string) func(net.Conn) {
	return func(c net.Conn) {
		cmd := exec.Command("git", "daemon", "--inetd", "--export-all", "--interpolated-path="+dir+"/%H%D")
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			return
		}
		defer f.Close()
		cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
		cmd.Stdin, cmd.Stdout = f, f
		_ = cmd.Run()
	}
}

// sshServer runs the commands of those who come, and returns its key.
func sshServer(t *testing.T) (serve func(net.Conn), key string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	return func(c net.Conn) {
		_, channels, requests, err := ssh.NewServerConn(c, config)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(requests)
		for ch := range channels {
			session, asked, err := ch.Accept()
			if err != nil {
				return
			}
			env := os.Environ()
			for r := range asked {
				var v struct{ Name, Value string }
				if r.Type == "env" && ssh.Unmarshal(r.Payload, &v) == nil && v.Name == "GIT_PROTOCOL" {
					env = append(env, "GIT_PROTOCOL="+v.Value)
				}
				var p struct{ Command string }
				if r.Type != "exec" || ssh.Unmarshal(r.Payload, &p) != nil {
					_ = r.Reply(false, nil)
					continue
				}
				_ = r.Reply(true, nil)
				cmd := exec.Command("sh", "-c", p.Command)
				cmd.Env = env
				in, _ := cmd.StdinPipe()
				go func() { _, _ = io.Copy(in, session); _ = in.Close() }()
				cmd.Stdout = session
				status := struct{ Status uint32 }{}
				if cmd.Run() != nil {
					status.Status = 1
				}
				_, _ = session.SendRequest("exit-status", false, ssh.Marshal(&status))
				_ = session.Close()
			}
		}
	}, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// A remote by git or ssh is reached at the address that was checked, whatever its name means to others, and however often its name changes.
func TestGitConnectsToWhatWasChecked(t *testing.T) {
	for _, scheme := range []string{"git", "ssh"} {
		t.Run(scheme, func(t *testing.T) {
			o, w := newOrigin(t), newWorld(t, Limits{})
			serve, key := sshServer(t)
			path := o.dir + "/localhost/r"
			if scheme == "git" {
				serve, path = gitDaemon(o.dir), "/r"
			}
			port := listen(t, "127.0.0.2:0", serve)
			var strangers atomic.Int32 // to the system, localhost is 127.0.0.1
			listen(t, "127.0.0.1:"+port, func(net.Conn) { strangers.Add(1) })

			o.repo("localhost")
			o.repo("localhost/r")
			first := o.commit("localhost/r", map[string]string{"f": "one"})
			second := o.commit("localhost/r", map[string]string{"f": "two"})
			good, evil := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("169.254.169.254")
			answers := [][]netip.Addr{{good}, {good}, {evil}}
			var mu sync.Mutex
			var dialed []string
			w.o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
				mu.Lock()
				defer mu.Unlock()
				a := answers[0]
				if len(answers) > 1 {
					answers = answers[1:]
				}
				return a, nil
			}
			w.o.Connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
				mu.Lock()
				dialed = append(dialed, addr)
				mu.Unlock()
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			remote := scheme + "://localhost:" + port + path
			op := func(ref string) *ops.Git {
				return &ops.Git{Remote: remote, Ref: ref, KnownHosts: "[localhost]:" + port + " " + key}
			}
			for ref, want := range map[string]string{first: "one", second: "two"} {
				if got := w.mustFetch(op(ref))["f"].data; got != want {
					t.Errorf("%s: %q, want %q", ref, got, want)
				}
			}
			if r, err := w.fetch(op("main")); !errors.Is(err, errs.Forbidden) || !strings.Contains(err.Error(), "metadata") {
				t.Errorf("now its name leads to a metadata service: %+v, %v", r, err)
			}
			if n := strangers.Load(); n > 0 {
				t.Errorf("%d connections to an address that was not checked", n)
			}
			if got := strings.Join(dialed, " "); got != "127.0.0.2:"+port+" 127.0.0.2:"+port {
				t.Errorf("connected to %s", got)
			}
			if _, err := w.fetch(&ops.Git{Remote: scheme + "://localhost:" + port + filepath.Join(path, "none"), Ref: "main"}); err == nil {
				t.Error("a repository that is not there")
			}
		})
	}
}

// ssh compares the key of the host with those that are known, under the name of the remote.
func TestGitSSHKnownHosts(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	serve, key := sshServer(t)
	_, other := sshServer(t)
	port := listen(t, "127.0.0.1:0", serve)
	o.repo("r")
	o.commit("r", map[string]string{"f": "x"})
	remote := "ssh://git@Own.test:" + port + o.dir + "/r"
	if got := w.mustFetch(&ops.Git{Remote: remote, KnownHosts: "[own.test]:" + port + " " + key})["f"].data; got != "x" {
		t.Errorf("%q", got)
	}
	if got := w.mustFetch(&ops.Git{Remote: remote, Ref: "main"})["f"].data; got != "x" { // as the front end of a build leaves it
		t.Errorf("no known key: %q", got)
	}
	for _, known := range []string{"[own.test]:" + port + " " + other, "127.0.0.1 " + key} {
		if r, err := w.fetch(&ops.Git{Remote: remote, Ref: "HEAD", KnownHosts: known}); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "Host key") {
			t.Errorf("%s: %+v, %v", known, r, err)
		}
	}
}

// No attempt to fetch a commit goes past the fence, also when the server has nothing of what the first attempts asked for.
func TestGitFetchesOnlyFromWhatWasChecked(t *testing.T) {
	o, w := newOrigin(t), newWorld(t, Limits{})
	o.repo("r")
	o.commit("r", map[string]string{"f": "x"})
	var strangers atomic.Int32
	port := listen(t, "127.0.0.1:0", func(net.Conn) { strangers.Add(1) })
	for _, addr := range []string{"169.254.169.254", "127.0.0.2"} { // refused, and another machine than the system would find
		w.o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(addr)}, nil
		}
		r, err := w.fetch(&ops.Git{Remote: "git://localhost:" + port + "/r", Ref: strings.Repeat("a1", 20)})
		if err == nil || addr == "169.254.169.254" && !errors.Is(err, errs.Forbidden) {
			t.Errorf("%s: %+v, %v", addr, r, err)
		}
	}
	if n := strangers.Load(); n > 0 {
		t.Errorf("%d connections to an address that was not checked", n)
	}
}
