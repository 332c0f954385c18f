// Package listen opens the sockets on which the API is served: unix sockets, sockets from systemd, and TCP with TLS that
// verifies its clients. It decides who may connect and how many at the same time. What a client may ask is decided by the
// package that serves the requests.
package listen

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"

	"ply/internal/errs"
)

// Options are the options of Open.
type Options struct {
	Group string // group that owns a unix socket; "" is the group ply if it exists
	TLS   TLS
	// Limiter bounds the connections of all listeners that it is given to; nil means one for this listener alone.
	Limiter *Limiter
}

// TLS is the configuration of a TCP listener.
type TLS struct {
	CertFile, KeyFile string // certificate and key of the engine
	CAFile            string // clients need a certificate that this authority signed
	Verify            bool   // the setting tlsverify; without it Open refuses TCP
}

// Open opens an address of the API: unix:///path, tcp://host:port, fd:// for all sockets that systemd passes, or fd://N for
// one of them. A Limiter bounds how many connections are open at the same time. TCP needs TLS that verifies clients, because
// whoever reaches the API has the rights of root. Open returns errs.Invalid for an address that cannot be opened, and
// errs.Conflict when another engine serves it.
func Open(addr string, o Options) ([]net.Listener, error) {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		return nil, errs.New(errs.Invalid, "host %q: want unix://PATH, fd:// or tcp://HOST:PORT", addr)
	}
	if o.Limiter == nil {
		o.Limiter = NewLimiter(0, 0)
	}
	var listeners []net.Listener
	switch scheme {
	case "unix":
		l, err := listenUnix(rest, o.Group, o.Limiter)
		if err != nil {
			return nil, err
		}
		listeners = []net.Listener{l}
	case "fd":
		var err error
		if listeners, err = listenSystemd(rest, o); err != nil {
			return nil, err
		}
	case "tcp":
		l, err := listenTCP(addr, rest, o)
		if err != nil {
			return nil, err
		}
		listeners = []net.Listener{l}
	default:
		return nil, errs.New(errs.Invalid, "host %q: unknown scheme %q, want unix, fd or tcp", addr, scheme)
	}
	return listeners, nil
}

// listenSystemd returns the sockets that systemd opened for this process. which is the number of a descriptor, or "" for all.
func listenSystemd(which string, o Options) ([]net.Listener, error) {
	all, err := activation.Listeners()
	if err != nil {
		return nil, errs.New(errs.Invalid, "host fd://%s: %w", which, err)
	}
	if len(all) == 0 {
		return nil, errs.New(errs.Invalid, "host fd://%s: no sockets found via socket activation: make sure the service was started by systemd", which)
	}
	if which != "" && which != "*" {
		n, err := strconv.Atoi(which)
		if err != nil || n < 3 || n-3 >= len(all) {
			return nil, errs.New(errs.Invalid, "host fd://%s: systemd handed over descriptors 3 to %d", which, 2+len(all))
		}
		all = all[n-3 : n-2]
	}
	for i, l := range all {
		if l == nil {
			return nil, errs.New(errs.Invalid, "host fd://%s: descriptor %d is not a listening socket", which, i+3)
		}
		all[i] = limit(l, o.Limiter)
		if l.Addr().Network() == "unix" {
			continue
		}
		cfg, err := o.TLS.config(fmt.Sprintf("fd://%d", i+3))
		if err != nil {
			return nil, err
		}
		all[i] = tls.NewListener(all[i], cfg)
	}
	return all, nil
}

func listenTCP(addr, hostport string, o Options) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(hostport); err != nil {
		return nil, errs.New(errs.Invalid, "host %s: %w", addr, err)
	}
	cfg, err := o.TLS.config(addr)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", hostport)
	if err != nil {
		return nil, errs.New(errs.Unavailable, "host %s: %w", addr, err)
	}
	return tls.NewListener(limit(l, o.Limiter), cfg), nil
}

// config returns the configuration of a listener. It refuses one that does not verify clients.
func (t TLS) config(addr string) (*tls.Config, error) {
	if !t.Verify || t.CertFile == "" || t.KeyFile == "" || t.CAFile == "" {
		return nil, errs.New(errs.Invalid, "host %s: a TCP listener needs TLS that verifies its clients, because whoever reaches it is root", addr).
			WithHint("Set tlsverify, tlscacert, tlscert and tlskey, or use a unix socket, for example through ssh.")
	}
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "host %s: tlscert %s, tlskey %s: %w", addr, t.CertFile, t.KeyFile, err)
	}
	pem, err := os.ReadFile(t.CAFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "host %s: tlscacert: %w", addr, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errs.New(errs.Invalid, "host %s: tlscacert %s holds no certificate", addr, t.CAFile)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"http/1.1"}}, nil
}

// CertificateHosts returns the DNS names of a certificate, in lower case. They are the Hosts of docker.Options.
func CertificateHosts(certFile, keyFile string) ([]string, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "tlscert %s, tlskey %s: %w", certFile, keyFile, err)
	}
	var hosts []string
	for _, name := range cert.Leaf.DNSNames {
		hosts = append(hosts, strings.ToLower(name))
	}
	return hosts, nil
}
