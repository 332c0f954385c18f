package remote

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/fence"
)

// transportKey distinguishes connection pools that must not be shared.
type transportKey struct {
	host     string // whose certificates in certs.d are used; "" = none, for targets of redirects
	insecure bool
	fenced   bool // connects only to addresses in the endpoint's networks
	mirror   bool // has the short connect timeout
}

// pool is a connection pool with the state of the certificate files when it was made.
type pool struct {
	*http.Transport
	certs string
}

// transport returns the connection pool of an endpoint.
func (c *Client) transport(e *resolved) (*http.Transport, error) {
	key := transportKey{e.host, e.insecure, e.nets != nil, e.mirror}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, certs := c.transports[key], c.certsSeen(e.host)
	if old != nil && old.certs == certs {
		return old.Transport, nil
	}
	conf, err := c.tlsConfig(e.host)
	if err != nil {
		return nil, err
	}
	conf.InsecureSkipVerify = e.insecure //nolint:gosec // the user listed this host, or it is loopback
	timeout := connectTimeout
	if e.mirror {
		timeout = mirrorConnectTimeout
	}
	check := refuseMetadata(e.host)
	if nets := e.nets; nets != nil {
		check = within(nets)
	}
	t := newTransport(c.dialer(timeout, "", check), conf)
	if e.nets != nil {
		t.Proxy = nil // a proxy may be outside these networks and may connect outside them
	}
	if old != nil {
		old.CloseIdleConnections()
	}
	c.transports[key] = &pool{t, certs}
	return t, nil
}

// certsSeen returns a text that differs when the files that tlsConfig reads have changed, so that a new certificate is used at
// once.
func (c *Client) certsSeen(host string) string {
	var seen strings.Builder
	for _, dir := range c.opts.CertsDirs {
		dir = filepath.Join(dir, filepath.Base(host))
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // tlsConfig reports the error, unless the directory does not exist
		}
		for _, e := range entries {
			if st, err := os.Stat(filepath.Join(dir, e.Name())); err == nil {
				fmt.Fprintln(&seen, dir, e.Name(), st.Size(), st.ModTime().UnixNano())
			}
		}
	}
	return seen.String()
}

// elsewhere returns the pool for targets of redirects: it uses the roots of the system, no client certificates, and connects to no
// link-local address.
func (c *Client) elsewhere() *http.Transport {
	key := transportKey{}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.transports[key]
	if t == nil {
		conf := &tls.Config{MinVersion: tls.VersionTLS12}
		t = &pool{newTransport(c.dialer(connectTimeout, "", refuseMetadata("")), conf), ""}
		c.transports[key] = t
	}
	return t.Transport
}

func newTransport(d *fence.Dialer, conf *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            d.Dial,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  headerTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        64 << 10,
		DisableCompression:     true, // digests are of the bytes as the registry has them
		// No HTTP/2, so that every request has its own connection: ranges that share one are not faster than a single range.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// tlsConfig reads <dir>/<host>/ of every certificate directory. Files *.crt are roots in addition to those of the system, X.cert
// and X.key are a client certificate.
func (c *Client) tlsConfig(host string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, dir := range c.opts.CertsDirs {
		dir = filepath.Join(dir, filepath.Base(host))
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errs.New(errs.Invalid, "registry %s: certificates: %w", host, err)
		}
		for _, e := range entries {
			if err := addCert(conf, dir, e.Name()); err != nil {
				return nil, errs.New(errs.Invalid, "registry %s: certificates: %w", host, err)
			}
		}
	}
	return conf, nil
}

func addCert(conf *tls.Config, dir, name string) error {
	path := filepath.Join(dir, name)
	switch filepath.Ext(name) {
	case ".crt":
		pem, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if conf.RootCAs == nil {
			if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
				conf.RootCAs = x509.NewCertPool()
			}
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: holds no certificate", path)
		}
	case ".cert":
		pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		conf.Certificates = append(conf.Certificates, pair)
	case ".key":
		if _, err := os.Stat(strings.TrimSuffix(path, ".key") + ".cert"); err != nil {
			return fmt.Errorf("%s: has no certificate beside it (%s)", path, strings.TrimSuffix(name, ".key")+".cert")
		}
	}
	return nil
}

// dialer returns a dialer for the client's options. target is fence.Dialer.Target.
func (c *Client) dialer(timeout time.Duration, target string, check func(string, netip.Addr) error) *fence.Dialer {
	return &fence.Dialer{Timeout: timeout, Target: target, Check: check, Lookup: c.opts.Lookup, Connect: c.opts.Dial}
}

// within returns a check that allows only addresses in networks.
func within(nets []netip.Prefix) func(string, netip.Addr) error {
	return func(host string, ip netip.Addr) error {
		for _, n := range nets {
			if n.Contains(ip) {
				return nil
			}
		}
		return errs.New(errs.Forbidden, "%s is at %s, outside the networks for which it may be insecure", host, ip)
	}
}

// refuseMetadata returns a check that refuses link-local and metadata addresses, except an address that the user named as registry.
func refuseMetadata(named string) func(string, netip.Addr) error {
	return func(host string, ip netip.Addr) error {
		if fence.Refused(ip) {
			if h, _, err := net.SplitHostPort(named); (err == nil && h == host && h == ip.String()) || named == ip.String() {
				return nil
			}
			return errs.New(errs.Forbidden, "%s is at %s, an address that no registry may lead to", host, ip)
		}
		return nil
	}
}
