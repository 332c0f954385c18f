package remotetest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	tokenService = "remotetest"
	tokenIssuer  = "remotetest-issuer"
)

// TokenServer issues tokens that docker-registry accepts, to User with Password and to the bearer of its identity token. Anyone
// else gets a token without rights, or one that may pull if Anyone is set.
type TokenServer struct {
	URL      string
	Identity string // the identity token that a login gets
	Anyone   bool   // anonymous users may pull

	mu     sync.Mutex
	asked  []string // scopes, one entry per request
	Expiry int      // expires_in, in seconds; 0 = not sent

	key     *rsa.PrivateKey
	cert    []byte
	certPEM string
}

// StartToken runs a token server until the test ends.
func StartToken(t testing.TB) *TokenServer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: tokenIssuer},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	s := &TokenServer{
		Identity: "identity-canary", key: key, cert: der,
		certPEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
	}
	srv := httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(srv.Close)
	s.URL = srv.URL
	return s
}

// Asked returns the scopes of every request so far.
func (s *TokenServer) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

func (s *TokenServer) serve(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	user, pass, hasBasic := r.BasicAuth()
	good := hasBasic && user == User && pass == Password || r.PostForm.Get("refresh_token") == s.Identity
	if (hasBasic || r.Method == http.MethodPost) && !good {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}`, http.StatusUnauthorized)
		return
	}
	scopes := r.Form["scope"]
	if r.Method == http.MethodPost {
		scopes = strings.Fields(r.PostForm.Get("scope"))
	}
	s.mu.Lock()
	s.asked = append(s.asked, strings.Join(scopes, " "))
	expiry := s.Expiry
	s.mu.Unlock()
	answer := map[string]any{"token": s.token(scopes, good)}
	if expiry > 0 {
		answer["expires_in"] = expiry
	}
	if good && r.Form.Get("offline_token") == "true" {
		answer["refresh_token"] = s.Identity
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *TokenServer) token(scopes []string, good bool) string {
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	list := []access{}
	for _, sc := range scopes {
		first, last := strings.Index(sc, ":"), strings.LastIndex(sc, ":")
		if first < 0 || last <= first {
			continue
		}
		var actions []string
		for _, a := range strings.Split(sc[last+1:], ",") {
			if good || s.Anyone && a == "pull" {
				actions = append(actions, a)
			}
		}
		if len(actions) > 0 {
			list = append(list, access{sc[:first], sc[first+1 : last], actions})
		}
	}
	now := time.Now()
	enc := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	head := enc(map[string]any{"typ": "JWT", "alg": "RS256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}})
	body := enc(map[string]any{
		"iss": tokenIssuer, "aud": tokenService, "sub": User, "access": list, "jti": "1",
		"exp": now.Add(time.Hour).Unix(), "nbf": now.Add(-time.Minute).Unix(), "iat": now.Unix(),
	})
	sum := sha256.Sum256([]byte(head + "." + body))
	sig, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return head + "." + body + "." + base64.RawURLEncoding.EncodeToString(sig)
}
