package command

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"ply/internal/cli/contexts"
	"ply/internal/cli/terminal"
)

// An engine behind TLS is trusted by the certificates of its context, and by nothing else unless the context says so.
func TestContextTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Api-Version", "1.51") }))
	defer s.Close()
	dir := t.TempDir()
	for _, name := range []string{"PLY_HOST", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_TLS", "DOCKER_CERT_PATH"} {
		t.Setenv(name, "")
	}
	t.Setenv("DOCKER_CONFIG", dir)
	endpoint := contexts.Endpoint{Host: "tcp://" + s.Listener.Addr().String()}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	store := contexts.Open(dir)
	for _, c := range []struct {
		context contexts.Context
		want    string // part of the error
	}{
		{contexts.Context{Name: "trusted", Endpoint: endpoint, TLS: map[string][]byte{contexts.CA: ca}}, ""},
		{contexts.Context{Name: "skipping", Endpoint: contexts.Endpoint{Host: endpoint.Host, SkipTLSVerify: true}}, ""},
		{contexts.Context{Name: "no-pem", Endpoint: endpoint, TLS: map[string][]byte{contexts.CA: []byte("x")}}, "holds no PEM certificate"},
		{contexts.Context{Name: "half", Endpoint: endpoint, TLS: map[string][]byte{contexts.CA: ca, contexts.Cert: ca}}, "client certificate"},
		{contexts.Context{Name: "https", Endpoint: contexts.Endpoint{Host: "https://" + s.Listener.Addr().String()}}, "certificate"},
	} {
		if err := store.Put(&c.context); err != nil {
			t.Fatal(err)
		}
		t.Setenv("DOCKER_CONTEXT", c.context.Name)
		var out bytes.Buffer
		inv := &Invocation{Streams: terminal.Streams{In: strings.NewReader(""), Out: &out, Err: &out}}
		_, err := inv.Running(t.Context())
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.context.Name, err, c.want)
		}
	}
}
