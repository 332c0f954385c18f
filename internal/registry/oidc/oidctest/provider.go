// Package oidctest is an OpenID provider for tests. It lets everyone in whom the test says, and does wrong what the test asks for.
package oidctest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"time"
)

// Client is what the provider knows of its client.
const (
	ClientID     = "ply-registry"
	ClientSecret = "client secret"
)

// Provider is a provider. Its fields are changed while no one signs in.
type Provider struct {
	*httptest.Server
	// Claims are added to ID tokens; one with the value nil is left out of them.
	Claims map[string]any
	// Algorithm stands in the head of ID tokens instead of RS256: none leaves the signature out, HS256 signs by the public key.
	Algorithm string
	// Foreign signs by a key that is not published, under the name of one that is.
	Foreign bool
	Issuer  string // in its configuration; "" = its address
	Down    bool   // it answers nothing
	Huge    bool   // its answers are larger than any client reads

	mu    sync.Mutex
	key   *rsa.PrivateKey
	kid   int
	codes map[string]url.Values // of requests to sign in, by code
	// Asked counts requests by their paths.
	Asked map[string]int
}

// New starts a provider. The caller closes it.
func New() *Provider {
	p := &Provider{Claims: map[string]any{}, codes: map[string]url.Values{}, Asked: map[string]int{}}
	p.key = first()
	p.Server = httptest.NewServer(http.HandlerFunc(p.serve))
	return p
}

// The keys of tests that need no new one.
var first, foreign = sync.OnceValue(generate), sync.OnceValue(generate)

func generate() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

// Rotate replaces the key that it signs by.
func (p *Provider) Rotate() {
	key := generate()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key, p.kid = key, p.kid+1
}

func (p *Provider) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Asked[r.URL.Path]++
	if p.Down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	issuer := p.Issuer
	if issuer == "" {
		issuer = p.URL
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		p.answer(w, http.StatusOK, map[string]any{
			"issuer": issuer, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256", "none", "HS256"},
		})
	case "/keys":
		p.answer(w, http.StatusOK, map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": fmt.Sprint(p.kid), "n": encode(p.key.N.Bytes()), "e": encode(big.NewInt(int64(p.key.E)).Bytes()),
		}}})
	case "/authorize":
		q := r.URL.Query()
		if q.Get("client_id") != ClientID || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		code := rand.Text()
		p.codes[code] = q
		http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {q.Get("state")}}.Encode(), http.StatusFound)
	case "/token":
		p.token(w, r, issuer)
	default:
		http.NotFound(w, r)
	}
}

func (p *Provider) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if p.Huge {
		_, _ = w.Write(bytes.Repeat([]byte(" "), 2<<20))
	}
	_ = json.NewEncoder(w).Encode(v)
}

// token answers a code with an ID token, once.
func (p *Provider) token(w http.ResponseWriter, r *http.Request, issuer string) {
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	} else {
		id, _ = url.QueryUnescape(id)
		secret, _ = url.QueryUnescape(secret)
	}
	code := r.PostFormValue("code")
	q, known := p.codes[code]
	delete(p.codes, code)
	sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !known || id != ClientID || secret != ClientSecret || encode(sum[:]) != q.Get("code_challenge") || r.PostFormValue("redirect_uri") != q.Get("redirect_uri") {
		p.answer(w, http.StatusBadRequest, map[string]any{"error": "invalid_grant"})
		return
	}
	claims := map[string]any{
		"iss": issuer, "sub": "248289761001", "aud": ClientID, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "nonce": q.Get("nonce"),
	}
	maps.Copy(claims, p.Claims)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	p.answer(w, http.StatusOK, map[string]any{"access_token": rand.Text(), "token_type": "Bearer", "expires_in": 300, "id_token": p.sign(claims)})
}

func (p *Provider) sign(claims map[string]any) string {
	algorithm := p.Algorithm
	if algorithm == "" {
		algorithm = "RS256"
	}
	head, _ := json.Marshal(map[string]string{"alg": algorithm, "typ": "JWT", "kid": fmt.Sprint(p.kid)})
	body, _ := json.Marshal(claims)
	text := encode(head) + "." + encode(body)
	key := p.key
	if p.Foreign {
		key = foreign()
	}
	sum := sha256.Sum256([]byte(text))
	if algorithm == "none" {
		return text + "."
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return text + "." + encode(signature)
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
