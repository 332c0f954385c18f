// Package remotetest provides registries for tests: Debian's docker-registry as a process on loopback, a token server for it, and a
// fake in the process of the test, which counts requests and simulates faults. It also makes images and uploads them without
// the client that is tested.
package remotetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// User and Password are the credentials that a registry with Htpasswd and the token server accept.
const (
	User     = "canary-user"
	Password = "s3cret-canary"

	// passwordHash is the bcrypt hash of Password, with a low cost because tests log in often.
	passwordHash = "$2b$05$dY3nVY9XbuIXidIzuisH9.rFxoEGzP.JLsif305iCIE3/PAGLD6pO"
)

// Options of Start. The zero value is an open registry.
type Options struct {
	Htpasswd bool         // Basic authentication with User and Password
	Token    *TokenServer // Bearer authentication
	Dir      string       // the directory for its data; "" = a temporary directory
	Addr     string       // "" = a free port of 127.0.0.1
}

// Registry is a running docker-registry.
type Registry struct {
	Addr string // host:port
	Dir  string
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

// Start runs docker-registry until the test ends.
func Start(t testing.TB, o Options) *Registry {
	t.Helper()
	r := &Registry{Addr: o.Addr, Dir: o.Dir, log: &bytes.Buffer{}}
	if r.Dir == "" {
		r.Dir = t.TempDir()
	}
	if r.Addr == "" {
		r.Addr = FreeAddr(t)
	}
	work := t.TempDir()
	conf := fmt.Sprintf("version: 0.1\nlog: {accesslog: {disabled: true}, level: warn}\nstorage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\n  maintenance: {uploadpurging: {enabled: false}}\nhttp: {addr: %q}\n", r.Dir, r.Addr)
	if o.Htpasswd {
		file := filepath.Join(work, "htpasswd")
		write(t, file, User+":"+passwordHash+"\n")
		conf += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", file)
	}
	if o.Token != nil {
		file := filepath.Join(work, "token.crt")
		write(t, file, o.Token.certPEM)
		conf += fmt.Sprintf("auth: {token: {realm: %q, service: %q, issuer: %q, rootcertbundle: %q}}\n", o.Token.URL+"/token", tokenService, tokenIssuer, file)
	}
	file := filepath.Join(work, "config.yml")
	write(t, file, conf)
	r.cmd = exec.Command("docker-registry", "serve", file) //nolint:noctx // ended by Stop
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	r.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := r.cmd.Start(); err != nil {
		t.Fatalf("docker-registry: %v", err)
	}
	t.Cleanup(r.Stop)
	r.await(t)
	return r
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// FreeAddr returns a loopback address on which nothing listens now. Its port is below those that Linux chooses for connections by default, so that none takes
// it before a server listens, or while the server is restarted.
func FreeAddr(t testing.TB) string {
	t.Helper()
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 26_000+rand.IntN(6_000))); err == nil { //nolint:noctx // returns at once
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal(err)
	return ""
}

func (r *Registry) await(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", r.Addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.Stop()
			t.Fatalf("docker-registry does not listen: %v\n%s", err, r.log)
		}
	}
}

// Stop ends the process. A second call does nothing.
func (r *Registry) Stop() {
	if r.cmd.ProcessState != nil {
		return
	}
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// Get fetches a path of the registry, with User and Password when auth is set.
func (r *Registry) Get(t testing.TB, path string, auth bool, accept string) (status int, h http.Header, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if auth {
		req.SetBasicAuth(User, Password)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, body
}
