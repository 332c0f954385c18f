package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ply/internal/oci"
	"ply/internal/transfer/remote/remotetest"
)

// withInput runs a program that reads its standard input.
func (w *world) withInput(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	c := exec.Command(w.program(name), args...)
	c.Env = append(os.Environ(), w.clientEnv()...)
	c.Stdin = strings.NewReader(input)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// With a registry that refers clients to a token server, as the hub does, both clients log in, push and pull; without a login they
// are refused.
func TestTransferTokens(t *testing.T) {
	w := newWorld(t)
	tokens := remotetest.StartToken(t)
	reg := remotetest.Start(t, remotetest.Options{Token: tokens})
	ref := reg.Addr + "/mhk/hello:1"
	w.busybox()
	w.ply("tag", "busybox", ref)
	wantAll(t, w.fail(1, "push", ref), "push access denied for "+reg.Addr+"/mhk/hello")
	for _, program := range []string{"ply", "docker"} {
		if out := w.withInput(t, remotetest.Password, program, "login", "-u", remotetest.User, "--password-stdin", reg.Addr); !strings.Contains(out, "Login Succeeded") {
			t.Errorf("%s login: %s", program, out)
		}
		for _, verb := range []string{"push", "pull"} {
			if o, e, err := w.run(program, verb, ref); err != nil {
				t.Errorf("%s %s: %v\n%s%s", program, verb, err, o, e)
			}
		}
		w.ply("rmi", ref)
		if o, e, err := w.run(program, "pull", ref); err != nil {
			t.Errorf("%s pull of what is absent: %v\n%s%s", program, err, o, e)
		}
		if o, e, err := w.run(program, "logout", reg.Addr); err != nil {
			t.Errorf("%s logout: %v\n%s%s", program, err, o, e)
		}
	}
	wantAll(t, w.fail(1, "pull", ref), "pull access denied for "+reg.Addr+"/mhk/hello")
	w.fail(1, "login", "-u", remotetest.User, "-p", "wrong", reg.Addr)
	asked := strings.Join(tokens.Asked(), "\n")
	wantAll(t, asked, "repository:mhk/hello:pull", "push")
	if log := w.tail(); strings.Contains(log, remotetest.Password) || strings.Contains(log, tokens.Identity) {
		t.Errorf("a secret is in the log:\n%s", log)
	}
}

// authority is a private certificate authority.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	a.cert = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "the firm's own"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, key)
	return a
}

func (a *authority) sign(c, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// pair returns a certificate and its key in PEM.
func (a *authority) pair(c *x509.Certificate) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.sign(c, a.cert, k).Raw}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// secure serves a handler over TLS at an address that is not loopback, because loopback registries may have any certificate.
func (a *authority) secure(h http.Handler, clients bool) (addr string) {
	t := a.t
	const link, host = "cert0", "198.51.100.33"
	for _, args := range [][]string{{"link", "add", link, "type", "bridge"}, {"addr", "add", host + "/32", "dev", link}, {"link", "set", link, "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", link).Run() }) // the namespace ends soon after
	cert, key := a.pair(&x509.Certificate{Subject: pkix.Name{CommonName: "registry"}, IPAddresses: []net.IP{net.ParseIP(host)}})
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if clients {
		conf.ClientCAs, conf.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		conf.ClientCAs.AddCert(a.cert)
	}
	l, err := tls.Listen("tcp", host+":0", conf)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }() // ends with Close
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr().String()
}

// emptyEtc mounts an empty file system over /etc/ply of this namespace.
func emptyEtc(t *testing.T) string {
	t.Helper()
	const dir = "/etc/ply"
	made := os.Mkdir(dir, 0o755) == nil
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		if made {
			_ = os.Remove(dir)
		}
	})
	return dir
}

// A registry with a certificate of a private CA that asks for client certificates is refused until certs.d has the files; no restart
// is needed.
func TestTransferPrivateCA(t *testing.T) {
	a := newAuthority(t)
	f := remotetest.StartFake(t, false)
	addr := a.secure(f.Config.Handler, true)
	f.Add("mhk/hello", "1", remotetest.Make(t, oci.FormatOCI, noise(80, 1000)))
	etc := emptyEtc(t)
	w := newWorld(t)
	ref := addr + "/mhk/hello:1"
	wantAll(t, w.fail(1, "pull", ref), "certificate signed by unknown authority", "certs.d")
	dir := filepath.Join(etc, "certs.d", addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.crt", []byte("no certificate"))
	wantAll(t, w.fail(1, "pull", ref), filepath.Join(dir, "ca.crt"))
	write("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	out := w.fail(1, "pull", ref)
	if !strings.Contains(out, "certificate") || strings.Contains(out, "unknown authority") {
		t.Errorf("without a client certificate: %s", out)
	}
	cert, key := a.pair(&x509.Certificate{Subject: pkix.Name{CommonName: "ply"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	write("client.cert", cert)
	wantAll(t, w.fail(1, "pull", ref), "client.key")
	write("client.key", key)
	w.ply("pull", ref)
	w.content(t, ref, 80, 1000)
	w.ply("tag", ref, addr+"/mhk/again:2")
	w.ply("push", addr+"/mhk/again:2")
	if _, data := f.Manifest("mhk/again", "2"); !bytes.Contains(data, []byte("schemaVersion")) {
		t.Errorf("the registry has %s", data)
	}
}
