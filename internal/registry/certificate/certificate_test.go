package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"
	"time"
)

func TestSelfSigned(t *testing.T) {
	dir := t.TempDir()
	hosts := []string{"localhost", "127.0.0.1", "registry.example.com"}
	cert, key, err := SelfSigned(dir, hosts)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", fi, err)
	}
	before, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(before) {
		t.Fatal("no certificate")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: h, Roots: pool}); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
	same := func() bool {
		t.Helper()
		now, err := os.ReadFile(cert)
		return err == nil && string(now) == string(before)
	}
	if _, _, err := SelfSigned(dir, hosts[:2]); err != nil || !same() {
		t.Errorf("a certificate that is good was replaced (%v)", err)
	}
	if _, _, err := SelfSigned(dir, append(hosts, "other.example.com")); err != nil || same() {
		t.Errorf("a certificate that lacks a host stayed (%v)", err)
	}
}

// A certificate that changes on disk is served without a restart; files that do not fit together change nothing.
func TestReload(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	cert, key, err := SelfSigned(one, []string{"one"})
	if err != nil {
		t.Fatal(err)
	}
	cert2, key2, err := SelfSigned(two, []string{"two"})
	if err != nil {
		t.Fatal(err)
	}
	var failures int
	f, err := Open(cert, key, func(error) { failures++ })
	if err != nil {
		t.Fatal(err)
	}
	config := f.Config()
	name := func() string {
		t.Helper()
		f.checked = time.Time{}
		c, err := config.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.DNSNames[0]
	}
	replace := func(from, to string, at time.Time) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(to, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if n := name(); n != "one" {
		t.Errorf("served %s", n)
	}
	later := time.Now().Add(time.Hour)
	replace(cert2, cert, later)
	if n := name(); n != "one" || failures == 0 {
		t.Errorf("half of a change: served %s, %d failures", n, failures)
	}
	replace(key2, key, later)
	if n := name(); n != "two" {
		t.Errorf("after the change: served %s", n)
	}
	if _, err := Open(cert, cert, nil); err == nil {
		t.Error("a certificate without a key was accepted")
	}
}
