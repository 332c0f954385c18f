package command

import (
	"cmp"
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
	"ply/internal/cli/contexts"
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
	if inv.ctx != nil {
		if opts.TLS, err = contextTLS(inv.ctx); err != nil {
			return nil, false, err
		}
	} else if strings.HasPrefix(host, "tcp://") || strings.HasPrefix(host, "https://") {
		if opts.TLS, err = inv.Global.tlsConfig(strings.HasPrefix(host, "https://")); err != nil {
			return nil, false, err
		}
	}
	c, err = client.New(opts)
	return c, named, err
}

// envHost returns the address that the environment names, and the name of the variable.
func envHost() (host, variable string) {
	for _, variable := range []string{"PLY_HOST", "DOCKER_HOST"} {
		if host := os.Getenv(variable); host != "" {
			return host, variable
		}
	}
	return "", ""
}

// ContextName returns the name of the context in use, as docker chooses it: that of the flag, else "default" where an address is named, else that of the
// environment, else that of config.json.
func (inv *Invocation) ContextName() (string, error) {
	flag := inv.Global.context
	if flag != "" && len(inv.Global.hosts) > 0 {
		return "", errs.New(errs.Invalid, "conflicting options: cannot specify both --host and --context")
	}
	if flag != "" {
		return flag, nil
	}
	if host, _ := envHost(); len(inv.Global.hosts) > 0 || host != "" {
		return contexts.Default, nil
	}
	return cmp.Or(os.Getenv("DOCKER_CONTEXT"), inv.Config().CurrentContext(), contexts.Default), nil
}

// HostVariable returns the variable of the environment that names an engine and thereby sets the context aside; "" = none does.
func HostVariable() string {
	_, variable := envHost()
	return variable
}

// Contexts returns the store of contexts.
func (inv *Invocation) Contexts() *contexts.Store { return contexts.Open(inv.ConfigDir()) }

// Host returns the engine's address, and reports whether the user named it.
func (inv *Invocation) Host() (host string, named bool, err error) {
	name, err := inv.ContextName()
	if err != nil {
		return "", false, err
	}
	if name == contexts.Default {
		return inv.defaultHost()
	}
	if inv.ctx == nil || inv.ctx.Name != name {
		if inv.ctx, err = inv.Contexts().Get(name); err != nil {
			return "", false, err
		}
	}
	if inv.ctx.Endpoint.Host == "" {
		inv.ctx = nil // as docker: the engine of this machine
		return inv.Daemon.Host, false, nil
	}
	return inv.ctx.Endpoint.Host, true, nil
}

// DefaultHost returns the address of the engine in the context default.
func (inv *Invocation) DefaultHost() (string, error) {
	host, _, err := inv.defaultHost()
	return host, err
}

func (inv *Invocation) defaultHost() (host string, named bool, err error) {
	hosts := inv.Global.hosts
	if len(hosts) > 1 {
		return "", false, errs.New(errs.Invalid, "specify only one -H")
	}
	if len(hosts) == 1 {
		host = hosts[0]
	} else {
		host, _ = envHost()
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

// contextTLS returns the TLS configuration of a context, or nil for a plain connection.
func contextTLS(c *contexts.Context) (*tls.Config, error) {
	if len(c.TLS) == 0 && !c.Endpoint.SkipTLSVerify && !strings.HasPrefix(c.Endpoint.Host, "https://") || !strings.HasPrefix(c.Endpoint.Host, "tcp://") && !strings.HasPrefix(c.Endpoint.Host, "https://") {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.Endpoint.SkipTLSVerify}
	if ca, ok := c.TLS[contexts.CA]; ok {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errs.New(errs.Invalid, "context %q: %s holds no PEM certificate", c.Name, contexts.CA)
		}
	}
	if c.TLS[contexts.Cert] == nil && c.TLS[contexts.Key] == nil {
		return cfg, nil
	}
	pair, err := tls.X509KeyPair(c.TLS[contexts.Cert], c.TLS[contexts.Key])
	if err != nil {
		return nil, errs.New(errs.Invalid, "context %q: client certificate: %w", c.Name, err)
	}
	cfg.Certificates = []tls.Certificate{pair}
	return cfg, nil
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
