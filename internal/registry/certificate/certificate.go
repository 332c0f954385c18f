// Package certificate has the certificate that the registry serves TLS with: from files, which are read again when they change, or
// made by the registry itself.
package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"ply/internal/durable"
	"ply/internal/errs"
)

// Files is a certificate in two files. Safe for concurrent use.
type Files struct {
	cert, key string
	failed    func(error) // receives the error of a change that was not taken over

	mu      sync.Mutex
	checked time.Time
	stamps  [2]time.Time
	now     *tls.Certificate
}

const recheck = time.Second

// Open reads a certificate and its key. Failed may be nil.
func Open(cert, key string, failed func(error)) (*Files, error) {
	f := &Files{cert: cert, key: key, failed: failed}
	return f, f.load()
}

func (f *Files) load() error {
	var stamps [2]time.Time
	for i, name := range []string{f.cert, f.key} {
		fi, err := os.Stat(name)
		if err != nil {
			return err
		}
		stamps[i] = fi.ModTime()
	}
	if f.now != nil && stamps == f.stamps {
		return nil
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return errs.New(errs.Invalid, "certificate %s: %w", f.cert, err)
	}
	f.now, f.stamps = &c, stamps
	return nil
}

// Config returns a configuration of a server that always has the newest certificate. While the files do not fit together, the one
// before them stays.
func (f *Files) Config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if time.Since(f.checked) >= recheck {
			f.checked = time.Now()
			if err := f.load(); err != nil && f.failed != nil {
				f.failed(err)
			}
		}
		return f.now, nil
	}}
}

const (
	lifetime = 825 * 24 * time.Hour // the longest that common clients accept
	renew    = 30 * 24 * time.Hour  // before the end
)

// SelfSigned returns the files of a certificate for these hosts in dir, and makes it when there is none, when it ends soon, or when it
// lacks a host.
func SelfSigned(dir string, hosts []string) (cert, key string, err error) {
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	usable, err := covers(cert, hosts)
	if err != nil || usable {
		return cert, key, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return "", "", err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: hosts[0], Organization: []string{"ply-registry"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	if err := durable.MkdirPrivate(durable.OS, dir); err != nil {
		return "", "", err
	}
	return cert, key, errors.Join(
		durable.WriteFile(durable.OS, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
		durable.WriteFile(durable.OS, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
}

// covers reports whether a certificate of ours is good for hosts for some time.
func covers(name string, hosts []string) (bool, error) {
	b, err := durable.ReadFile(durable.OS, name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return false, nil
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil || time.Until(c.NotAfter) < renew {
		return false, nil //nolint:nilerr // it is made anew
	}
	for _, h := range hosts {
		if c.VerifyHostname(h) != nil {
			return false, nil
		}
	}
	return true, nil
}
