package oidc

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/oidc/oidctest"
)

const redirect = "http://registry.example.com/auth/oidc/callback"

func start(t *testing.T) (*oidctest.Provider, *Provider) {
	t.Helper()
	fake := oidctest.New()
	t.Cleanup(func() {
		fake.Close()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return fake, New(Options{Issuer: fake.URL, ClientID: oidctest.ClientID, ClientSecret: oidctest.ClientSecret, NameClaim: "preferred_username", GroupsClaim: "groups"})
}

// browse goes to an address as a browser does, and returns with what it comes back.
func browse(t *testing.T, address string) url.Values {
	t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Get(address) //nolint:noctx // it is near
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	u, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || resp.StatusCode != http.StatusFound || !strings.HasPrefix(u.String(), redirect+"?") {
		t.Fatalf("%s: %s, %v", address, resp.Status, u)
	}
	return u.Query()
}

func signIn(t *testing.T, p *Provider) (Identity, error) {
	t.Helper()
	c := NewChallenge()
	to, err := p.Begin(t.Context(), redirect, c)
	if err != nil {
		return Identity{}, err
	}
	return p.Finish(t.Context(), redirect, c, browse(t, to))
}

func TestSignIn(t *testing.T) {
	fake, p := start(t)
	fake.Claims = map[string]any{"preferred_username": "Alice", "groups": []string{"/b", "/a"}}
	id, err := signIn(t, p)
	if err != nil || id.Issuer != fake.URL || id.Subject != "248289761001" || id.Name != "Alice" || !slices.Equal(id.Groups, []string{"/a", "/b"}) {
		t.Errorf("%+v, %v", id, err)
	}
	fake.Claims = map[string]any{"groups": "one", "preferred_username": 7}
	if id, err = signIn(t, p); err != nil || id.Name != "" || !slices.Equal(id.Groups, []string{"one"}) {
		t.Errorf("%+v, %v", id, err)
	}
	fake.Claims = map[string]any{"groups": map[string]int{"a": 1}, "aud": []string{"other", oidctest.ClientID}, "azp": oidctest.ClientID}
	if id, err = signIn(t, p); err != nil || len(id.Groups) != 0 {
		t.Errorf("%+v, %v", id, err)
	}
	// The provider replaces its key; what it says about itself is asked for once.
	fake.Rotate()
	if _, err := signIn(t, p); err != nil {
		t.Errorf("after the key was replaced: %v", err)
	}
	if n := fake.Asked["/.well-known/openid-configuration"]; n != 1 {
		t.Errorf("its configuration was read %d times", n)
	}
}

// ID tokens that are not for this sign-in, not of this provider, or not for now are refused.
func TestBadTokens(t *testing.T) {
	now := time.Now().Unix()
	many := make([]string, maxGroups+1)
	for name, change := range map[string]func(*oidctest.Provider){
		"another issuer":       func(f *oidctest.Provider) { f.Claims["iss"] = "https://id.example.com" },
		"no issuer":            func(f *oidctest.Provider) { f.Claims["iss"] = nil },
		"another audience":     func(f *oidctest.Provider) { f.Claims["aud"] = "other" },
		"no audience":          func(f *oidctest.Provider) { f.Claims["aud"] = nil },
		"two audiences":        func(f *oidctest.Provider) { f.Claims["aud"] = []string{"other", oidctest.ClientID} },
		"another party":        func(f *oidctest.Provider) { f.Claims["azp"] = "other" },
		"expired":              func(f *oidctest.Provider) { f.Claims["exp"] = now - 1 },
		"no end":               func(f *oidctest.Provider) { f.Claims["exp"] = nil },
		"not yet":              func(f *oidctest.Provider) { f.Claims["nbf"] = now + 3600 },
		"another nonce":        func(f *oidctest.Provider) { f.Claims["nonce"] = "other" },
		"no nonce":             func(f *oidctest.Provider) { f.Claims["nonce"] = nil },
		"no subject":           func(f *oidctest.Provider) { f.Claims["sub"] = nil },
		"a long subject":       func(f *oidctest.Provider) { f.Claims["sub"] = strings.Repeat("a", 256) },
		"many groups":          func(f *oidctest.Provider) { f.Claims["groups"] = many },
		"no algorithm":         func(f *oidctest.Provider) { f.Algorithm = "none" },
		"a MAC":                func(f *oidctest.Provider) { f.Algorithm = "HS256" },
		"an unknown algorithm": func(f *oidctest.Provider) { f.Algorithm = "XX" },
		"a foreign key":        func(f *oidctest.Provider) { f.Foreign = true },
	} {
		fake, p := start(t)
		change(fake)
		if id, err := signIn(t, p); !errors.Is(err, errs.Unauthorized) {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
}

// What comes back must be the answer to what this browser asked, once.
func TestBadAnswers(t *testing.T) {
	fake, p := start(t)
	begin := func() (Challenge, url.Values) {
		t.Helper()
		c := NewChallenge()
		to, err := p.Begin(t.Context(), redirect, c)
		if err != nil {
			t.Fatal(err)
		}
		return c, browse(t, to)
	}
	refused := func(name string, c Challenge, answer url.Values) {
		t.Helper()
		if id, err := p.Finish(t.Context(), redirect, c, answer); !errors.Is(err, errs.Unauthorized) {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
	c, answer := begin()
	other, theirs := begin()
	refused("an answer to another browser", c, theirs)
	refused("no question", Challenge{}, url.Values{"code": answer["code"]})
	refused("another verifier", Challenge{c.State, c.Nonce, other.Verifier}, answer)
	c, answer = begin()
	refused("another state", c, url.Values{"code": answer["code"], "state": {c.State + "x"}})
	c, answer = begin()
	refused("another nonce", Challenge{c.State, other.Nonce, c.Verifier}, answer)
	c, answer = begin()
	if _, err := p.Finish(t.Context(), redirect, c, answer); err != nil {
		t.Error(err)
	}
	refused("a code for the second time", c, answer)
	c, answer = begin()
	answer.Set("iss", "https://id.example.com")
	refused("another issuer", c, answer)
	refused("an error", c, url.Values{"error": {"access_denied"}, "state": {c.State}})
	refused("another redirect", c, url.Values{"code": {"x"}, "state": {c.State}})

	fake.Down = true
	c = NewChallenge()
	if _, err := p.Finish(t.Context(), redirect, c, url.Values{"code": {"x"}, "state": {c.State}}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("a provider that is down: %v", err)
	}
}

// A provider that does not answer, or says it is another one, is asked again after a while.
func TestDiscovery(t *testing.T) {
	for name, change := range map[string]func(f *oidctest.Provider, bad bool){
		"down":           func(f *oidctest.Provider, bad bool) { f.Down = bad },
		"huge":           func(f *oidctest.Provider, bad bool) { f.Huge = bad },
		"another issuer": func(f *oidctest.Provider, bad bool) { f.Issuer = map[bool]string{true: "https://id.example.com"}[bad] },
	} {
		fake, p := start(t)
		now := time.Now()
		p.now = func() time.Time { return now }
		change(fake, true)
		for range 3 {
			if _, err := signIn(t, p); !errors.Is(err, errs.Unavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := fake.Asked["/.well-known/openid-configuration"]; n != 1 {
			t.Errorf("%s: asked %d times at once", name, n)
		}
		change(fake, false)
		now = now.Add(again)
		if _, err := signIn(t, p); err != nil {
			t.Errorf("%s: later: %v", name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for issuer, good := range map[string]bool{
		"https://id.example.com": true, "https://id.example.com/realms/x": true, "http://127.0.0.1:1": true, "http://id.example.com": false, "id.example.com": false,
		"https://": false, "https://u:p@id.example.com": false, "https://id.example.com?x": false, "ftp://id.example.com": false,
	} {
		o := Options{Issuer: issuer, ClientID: "x", NameClaim: "x"}
		if err := o.Validate(); (err == nil) != good {
			t.Errorf("%s: %v", issuer, err)
		}
	}
	for _, o := range []Options{{Issuer: "https://x", NameClaim: "x"}, {Issuer: "https://x", ClientID: "x"}} {
		if o.Validate() == nil {
			t.Errorf("%+v is valid", o)
		}
	}
}
