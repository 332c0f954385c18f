package remote

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ply/internal/oci"
	"ply/internal/transfer"
	"ply/internal/transfer/remote/remotetest"
)

// The CA of a registry and the client certificate for it are read from certs.d/<host:port>/.
func TestCertsDir(t *testing.T) {
	n := remotetest.NewNet(t)
	const host = "mutual.example.test:5443"
	n.Name("mutual.example.test", "203.0.113.20")
	c := New(Options{Dial: n.Dial, Lookup: n.Lookup, CertsDirs: []string{t.TempDir(), n.Certs}})
	defer c.Close()
	ref, err := oci.ParseReference(host + "/r")
	if err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		_, err := c.Session(ref, Pull, transfer.Credentials{}).Manifest(t.Context(), "1")
		if err := c.Reload(nil, nil, nil); err != nil { // Reload drops the connection pools
			t.Fatal(err)
		}
		return err
	}
	n.Trust(t, host)
	pool := n.ClientCert(t, host)
	n.HostTLS(t, "mutual.example.test", "203.0.113.20", "5443", pool, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", oci.MediaTypeOCIIndex)
		fmt.Fprintf(w, `{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, oci.MediaTypeOCIIndex)
	}))
	if err := ask(); err != nil {
		t.Errorf("with client certificate: %v", err)
	}
	dir := filepath.Join(n.Certs, host)
	if err := os.Remove(filepath.Join(dir, "client.cert")); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "has no certificate beside it (client.cert)") {
		t.Errorf("key without certificate: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "client.key")); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without client certificate: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("nonsense CA: %v", err)
	}
}
