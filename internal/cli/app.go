package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"ply/internal/cli/client"
	"ply/internal/cli/config"
	"ply/internal/cli/terminal"
	"ply/internal/errs"
	"ply/internal/version"
)

// DefaultHost is where plyd listens.
const DefaultHost = "unix:///run/ply.sock"

// App is one invocation of the command line.
type App struct {
	In       io.Reader
	Out, Err io.Writer
	InTerm   *terminal.Term // nil when In is no terminal
	OutTerm  *terminal.Term
	ErrTerm  *terminal.Term

	daemon daemonPaths
	global globals
	cfg    *config.File
	api    *client.Client
}

type globals struct {
	configDir                string
	context                  string
	debug                    bool
	hosts                    []string
	logLevel                 string
	tls, tlsVerify           bool
	caFile, certFile, keyFle string
	version                  bool
}

// NewApp makes an App on the process's own streams.
func NewApp() *App {
	return &App{
		daemon: defaultDaemon,
		In:     os.Stdin, Out: os.Stdout, Err: os.Stderr,
		InTerm: terminal.Of(os.Stdin), OutTerm: terminal.Of(os.Stdout), ErrTerm: terminal.Of(os.Stderr),
	}
}

// config reads config.json once; a damaged file is a warning, the command goes on without it.
func (a *App) config() *config.File {
	if a.cfg == nil {
		dir := a.global.configDir
		if dir == "" {
			dir = config.Dir()
		}
		f, err := config.Load(dir)
		if err != nil {
			fmt.Fprintf(a.Err, "WARNING: Error loading config file: %v\n", err)
		}
		a.cfg = f
	}
	return a.cfg
}

// host gives the engine's address and whether the user named it.
func (a *App) host() (host string, named bool, err error) {
	if len(a.global.hosts) > 1 {
		return "", false, errs.New(errs.Invalid, "specify only one -H")
	}
	if len(a.global.hosts) == 1 {
		host = a.global.hosts[0]
	} else if host = os.Getenv("PLY_HOST"); host == "" {
		host = os.Getenv("DOCKER_HOST")
	}
	if host == "" {
		return a.daemon.host, false, nil
	}
	host = strings.TrimSpace(host)
	if !strings.Contains(host, "://") {
		if strings.HasPrefix(host, "/") {
			host = "unix://" + host
		} else {
			host = "tcp://" + host
		}
	}
	return host, true, nil
}

// engine gives the client; the first call settles the version and, when the default socket is absent, starts plyd.
func (a *App) engine(ctx context.Context) (*client.Client, error) {
	if a.api != nil {
		return a.api, nil
	}
	c, named, err := a.newClient()
	if err != nil {
		return nil, err
	}
	if _, err := c.Ping(ctx); err != nil {
		if named {
			return nil, err
		}
		if err := a.startDaemon(ctx, c, err); err != nil {
			return nil, err
		}
	}
	a.api = c
	return c, nil
}

// newClient makes the client without touching the network.
func (a *App) newClient() (c *client.Client, named bool, err error) {
	if a.global.context != "" && a.global.context != "default" {
		return nil, false, errs.New(errs.Unimplemented, "--context %s: ply has no contexts; name the engine with -H, PLY_HOST or DOCKER_HOST", a.global.context)
	}
	host, named, err := a.host()
	if err != nil {
		return nil, false, err
	}
	opts := client.Options{
		Host:       host,
		Headers:    a.config().Headers(),
		UserAgent:  "Ply-Client/" + version.Version + " (" + runtime.GOOS + ")",
		APIVersion: os.Getenv("DOCKER_API_VERSION"),
	}
	if a.global.debug {
		opts.Trace = func(text string) { fmt.Fprintln(a.Err, "DEBUG "+text) }
	}
	if strings.HasPrefix(host, "tcp://") || strings.HasPrefix(host, "https://") {
		if opts.TLS, err = a.tlsConfig(strings.HasPrefix(host, "https://")); err != nil {
			return nil, false, err
		}
	}
	c, err = client.New(opts)
	return c, named, err
}

func (a *App) tlsConfig(https bool) (*tls.Config, error) {
	g := &a.global
	verify := g.tlsVerify || os.Getenv("DOCKER_TLS_VERIFY") != ""
	if !verify && !g.tls && os.Getenv("DOCKER_TLS") == "" && !https {
		return nil, nil
	}
	dir := os.Getenv("DOCKER_CERT_PATH")
	if dir == "" {
		dir = config.Dir()
	}
	file := func(flag, name string) string {
		if flag != "" {
			return flag
		}
		return filepath.Join(dir, name)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: !verify && !https}
	if verify {
		ca := file(g.caFile, "ca.pem")
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, errs.New(errs.Invalid, "TLS: CA certificate: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errs.New(errs.Invalid, "TLS: %s holds no PEM certificate", ca)
		}
	}
	cert, key := file(g.certFile, "cert.pem"), file(g.keyFle, "key.pem")
	if _, err := os.Stat(cert); err != nil && g.certFile == "" {
		return cfg, nil // a client certificate is optional
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, errs.New(errs.Invalid, "TLS: client certificate: %w", err)
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
}

// size is the output's, for progress and for tables that draw themselves; nil when it is no terminal.
func (a *App) size() func() (int, int) {
	if a.OutTerm == nil {
		return nil
	}
	return a.OutTerm.Size
}
