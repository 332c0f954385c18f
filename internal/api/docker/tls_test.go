package docker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ply/internal/api/listen"
)

// pair creates a certificate and its key. parent signs it; with nil it signs itself.
func pair(t *testing.T, dir, name string, parent *tls.Certificate, hosts ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: hosts, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: parent == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	signer, signKey := tmpl, any(key)
	if parent != nil {
		signer, signKey = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, signer, &key.PublicKey, signKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + "-key.pem": {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &cert
}

func TestTCPLetsInOnlyItsClients(t *testing.T) {
	dir := t.TempDir()
	ca := pair(t, dir, "ca", nil)
	pair(t, dir, "server", ca, "engine.example", "Other.example")
	mine := pair(t, dir, "client", ca)
	foreign := pair(t, dir, "foreign", pair(t, dir, "ca2", nil))
	opts := listen.TLS{CertFile: filepath.Join(dir, "server.pem"), KeyFile: filepath.Join(dir, "server-key.pem"), CAFile: filepath.Join(dir, "ca.pem")}
	if _, err := listen.Open("tcp://127.0.0.1:0", listen.Options{TLS: opts}); err == nil {
		t.Error("Open without verification = nil")
	}
	opts.Verify = true
	ls, err := listen.Open("tcp://127.0.0.1:0", listen.Options{TLS: opts})
	if err != nil {
		t.Fatal(err)
	}
	srv := listen.NewServer(newWorld(t).api, nil)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ls[0]) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	pool := x509.NewCertPool()
	pool.AddCert(ca.Leaf)
	ask := func(cert *tls.Certificate, method, path, body string, header ...string) (int, string, error) {
		cfg := &tls.Config{RootCAs: pool, ServerName: "engine.example"}
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+ls[0].Addr().String()+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			if header[i] == "Host" {
				req.Host = header[i+1]
			}
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return 0, "", err
		}
		return resp.StatusCode, string(b), resp.Body.Close()
	}
	for name, cert := range map[string]*tls.Certificate{"no certificate": nil, "foreign certificate": foreign} {
		if status, _, err := ask(cert, "GET", "/_ping", ""); err == nil {
			t.Errorf("%s: %d, want no answer", name, status)
		}
	}
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		want                     string
	}{
		{"plain", "GET", "/_ping", "", nil, 200, "OK"},
		{"name", "GET", "/_ping", "", []string{"Host", "engine.example:2376"}, 200, "OK"},
		{"localhost", "GET", "/_ping", "", []string{"Host", "localhost"}, 200, "OK"},
		{"foreign name", "GET", "/_ping", "", []string{"Host", "rebound.example"}, 403, "not a name of this engine"},
		{"origin", "GET", "/_ping", "", []string{"Origin", "https://evil.example"}, 403, "Origin"},
		{"origin null", "GET", "/_ping", "", []string{"Origin", "null"}, 403, "Origin"},
		{"cross site", "GET", "/_ping", "", []string{"Sec-Fetch-Site", "cross-site"}, 403, "Sec-Fetch-Site"},
		{"body without type", "POST", "/containers/create", `{"Image":"a"}`, nil, 400, "Content-Type"},
		{"form", "POST", "/containers/create", `{"Image":"a"}`, []string{"Content-Type", "application/x-www-form-urlencoded"}, 400, "Content-Type"},
		{"json", "POST", "/containers/create", `{"Image":"a"}`, []string{"Content-Type", "application/json; charset=utf-8"}, 201, "Id"},
	} {
		status, body, err := ask(mine, tc.method, tc.path, tc.body, tc.header...)
		if err != nil || status != tc.status || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %d %q %v, want %d %q", tc.name, status, body, err, tc.status, tc.want)
		}
	}
	hosts, err := listen.CertificateHosts(opts.CertFile, opts.KeyFile)
	if err != nil || strings.Join(hosts, " ") != "engine.example other.example" {
		t.Errorf("CertificateHosts = %v, %v", hosts, err)
	}
	testAttachOverTLS(t, ls[0].Addr().String(), &tls.Config{RootCAs: pool, ServerName: "engine.example", Certificates: []tls.Certificate{*mine}})
}

// A connection with TLS that was taken over can be half-closed too.
func testAttachOverTLS(t *testing.T, addr string, cfg *tls.Config) {
	conn, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST /v1.51/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: localhost\r\n"+asksUpgrade+"\r\nover TLS"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(b), "over TLS") || !strings.HasSuffix(string(b), "bye\n") {
		t.Errorf("attach over TLS = %q, %v", b, err)
	}
}
