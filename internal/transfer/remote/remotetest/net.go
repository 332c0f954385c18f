package remotetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Net simulates names and addresses for a test. Its Dial and Lookup are for the options of the client. Connections to unknown
// addresses fail; Dialed returns them too.
type Net struct {
	Certs string // a certs.d directory in which every host of the network has the network's CA

	ca    *x509.Certificate
	caPEM []byte
	key   *ecdsa.PrivateKey

	mu      sync.Mutex
	names   map[string][]netip.Addr
	servers map[string]string // "ip:port" → the address on which the server listens
	dialed  []string
}

// NewNet makes an empty network.
func NewNet(t testing.TB) *Net {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "remotetest CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &Net{
		Certs: t.TempDir(), ca: ca, key: key, caPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		names: map[string][]netip.Addr{}, servers: map[string]string{},
	}
}

// Name makes a host name resolve to addresses.
func (n *Net) Name(host string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addrs {
		n.names[host] = append(n.names[host], netip.MustParseAddr(a))
	}
}

// Trust writes the CA of the network for a host, as an administrator does.
func (n *Net) Trust(t testing.TB, hostport string) {
	t.Helper()
	dir := filepath.Join(n.Certs, hostport)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ca.crt"), string(n.caPEM))
}

// Host runs a server for a name at an address of the network: with https and a certificate for the name at port 443, with http at
// port 80.
func (n *Net) Host(t testing.TB, name, addr string, h http.Handler) {
	t.Helper()
	n.Name(name, addr)
	n.Trust(t, name)
	secure := httptest.NewUnstartedServer(h)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{n.certificate(t, name)}, MinVersion: tls.VersionTLS12}
	secure.StartTLS()
	plain := httptest.NewServer(h)
	t.Cleanup(secure.Close)
	t.Cleanup(plain.Close)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers[net.JoinHostPort(addr, "443")] = secure.Listener.Addr().String()
	n.servers[net.JoinHostPort(addr, "80")] = plain.Listener.Addr().String()
}

// At makes connections to an address of the network go to a real address.
func (n *Net) At(addrport, real string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers[addrport] = real
}

// ClientCert writes a client certificate for a host into the network's certs.d. It returns the pool that verifies it.
func (n *Net) ClientCert(t testing.TB, hostport string) *x509.CertPool {
	t.Helper()
	c := n.certificate(t, "client")
	key, err := x509.MarshalECPrivateKey(n.key)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(n.Certs, hostport)
	write(t, filepath.Join(dir, "client.cert"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})))
	write(t, filepath.Join(dir, "client.key"), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})))
	pool := x509.NewCertPool()
	pool.AddCert(n.ca)
	return pool
}

// HostTLS runs a server with https at a port. If clients is not nil, the server requires a client certificate.
func (n *Net) HostTLS(t testing.TB, name, addr, port string, clients *x509.CertPool, h http.Handler) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{n.certificate(t, name)}, MinVersion: tls.VersionTLS12}
	if clients != nil {
		s.TLS.ClientCAs, s.TLS.ClientAuth = clients, tls.RequireAndVerifyClientCert
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	n.At(net.JoinHostPort(addr, port), s.Listener.Addr().String())
}

func (n *Net) certificate(t testing.TB, name string) tls.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, n.ca, &n.key.PublicKey, n.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: n.key}
}

// Lookup resolves a name of the network.
func (n *Net) Lookup(_ context.Context, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addrs, ok := n.names[host]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return append([]netip.Addr(nil), addrs...), nil
}

// Dial connects to an address of the network. RemoteAddr of the connection is that address.
func (n *Net) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, addr)
	real, ok := n.servers[addr]
	n.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrNotExist}
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", real)
	if err != nil {
		return nil, err
	}
	return &fakeConn{c, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))}, nil
}

// Dialed returns every address to which a connection was attempted.
func (n *Net) Dialed() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.dialed...)
}

type fakeConn struct {
	net.Conn
	remote net.Addr
}

func (c *fakeConn) RemoteAddr() net.Addr { return c.remote }
