package command

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"ply/internal/cli/client"
	"ply/internal/cli/config"
	"ply/internal/errs"
	"ply/internal/version"
)

// Engine returns the client. The first call negotiates the API version and, when the user named no engine and nothing listens
// at the default socket, starts plyd.
func (inv *Invocation) Engine(ctx context.Context) (*client.Client, error) {
	if inv.api != nil {
		return inv.api, nil
	}
	c, named, err := inv.client()
	if err != nil {
		return nil, err
	}
	if _, err := c.Ping(ctx); err != nil {
		if named {
			return nil, err
		}
		if err := inv.Daemon.Start(ctx, c, err, inv.Err); err != nil {
			return nil, err
		}
	}
	inv.api = c
	return c, nil
}

// Running returns the client of an engine that runs, and starts none.
func (inv *Invocation) Running(ctx context.Context) (*client.Client, error) {
	if inv.api != nil {
		return inv.api, nil
	}
	c, _, err := inv.client()
	if err != nil {
		return nil, err
	}
	_, err = c.Ping(ctx)
	return c, err
}

// Client returns a new client without contacting the engine, and without starting one.
func (inv *Invocation) Client() (*client.Client, error) {
	c, _, err := inv.client()
	return c, err
}

func (inv *Invocation) client() (c *client.Client, named bool, err error) {
	if name := inv.Global.context; name != "" && name != "default" {
		return nil, false, errs.New(errs.Unimplemented, "--context %s: ply has no contexts; name the engine with -H, PLY_HOST or DOCKER_HOST", name)
	}
	host, named, err := inv.Host()
	if err != nil {
		return nil, false, err
	}
	opts := client.Options{
		Host:       host,
		Headers:    inv.Config().Headers(),
		UserAgent:  "Ply-Client/" + version.Version + " (" + runtime.GOOS + ")",
		APIVersion: os.Getenv("DOCKER_API_VERSION"),
	}
	if inv.Global.Debug {
		opts.Trace = func(text string) { fmt.Fprintln(inv.Err, "DEBUG "+text) }
	}
	if strings.HasPrefix(host, "tcp://") || strings.HasPrefix(host, "https://") {
		if opts.TLS, err = inv.Global.tlsConfig(strings.HasPrefix(host, "https://")); err != nil {
			return nil, false, err
		}
	}
	c, err = client.New(opts)
	return c, named, err
}

// Host returns the engine's address, and reports whether the user named it.
func (inv *Invocation) Host() (host string, named bool, err error) {
	hosts := inv.Global.hosts
	if len(hosts) > 1 {
		return "", false, errs.New(errs.Invalid, "specify only one -H")
	}
	if len(hosts) == 1 {
		host = hosts[0]
	} else if host = os.Getenv("PLY_HOST"); host == "" {
		host = os.Getenv("DOCKER_HOST")
	}
	if host == "" {
		return inv.Daemon.Host, false, nil
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

// tlsConfig returns the TLS configuration for a tcp or https host, or nil for a plain connection.
func (g *Globals) tlsConfig(https bool) (*tls.Config, error) {
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
	cert, key := file(g.certFile, "cert.pem"), file(g.keyFile, "key.pem")
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
