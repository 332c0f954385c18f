// Package oidc signs users in at an OpenID provider, by the authorization code flow with PKCE.
//
// Invariants: an identity comes from an ID token that the provider signed by a key that it publishes, for this client, for this sign-in
// (nonce) and for now. A provider that does not answer keeps nothing from starting. Answers of the provider are bounded.
package oidc

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"ply/internal/errs"
)

// Options configure a Provider.
type Options struct {
	Issuer       string // the address of the provider
	ClientID     string
	ClientSecret string   // "" = a public client
	Scopes       []string // beside openid; empty = profile
	NameClaim    string   // the claim that a user is named by
	GroupsClaim  string   // the claim that has the groups of a user; "" = none
}

// Validate reports what is wrong.
func (o *Options) Validate() error {
	u, err := url.Parse(o.Issuer)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return errs.New(errs.Invalid, "oidc-issuer: %q is not an address such as https://id.example.com", o.Issuer)
	case u.Scheme == "http" && u.Hostname() != "localhost" && u.Hostname() != "127.0.0.1" && u.Hostname() != "::1":
		return errs.New(errs.Invalid, "oidc-issuer: %q is not https", o.Issuer)
	case o.ClientID == "":
		return errs.New(errs.Invalid, "oidc-client-id: is missing")
	case o.NameClaim == "":
		return errs.New(errs.Invalid, "oidc-name-claim: is empty")
	}
	return nil
}

// Identity is what a provider says about a user.
type Identity struct {
	Issuer, Subject string // together they never change and never pass to someone else
	Name            string // what the user is called there, which may change
	Groups          []string
}

// Challenge ties an answer of the provider to the browser that asked. All of it is secret from everyone else.
type Challenge struct {
	State    string `json:"state"`
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"` // of PKCE
}

// NewChallenge returns a new one.
func NewChallenge() Challenge {
	return Challenge{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier()}
}

const (
	timeout   = 15 * time.Second
	maxAnswer = 1 << 20         // bytes
	again     = 5 * time.Second // until a provider that did not answer is asked again
	fresh     = 24 * time.Hour  // how long what was discovered is used
	maxGroups = 20_000          // of a user
)

// Provider is an OpenID provider. Safe for concurrent use.
type Provider struct {
	o      Options
	client *http.Client
	now    func() time.Time

	mu     sync.Mutex
	found  *oidc.Provider // nil = not yet
	at     time.Time      // when it was found
	failed time.Time
	err    error
}

// New returns a provider, which is first asked when someone signs in.
func New(o Options) *Provider {
	if len(o.Scopes) == 0 {
		o.Scopes = []string{"profile"}
	}
	return &Provider{o: o, now: time.Now, client: &http.Client{
		Timeout:   timeout,
		Transport: bounded{http.DefaultTransport},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > 3 || via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
				return errors.New("redirected too far")
			}
			return nil
		},
	}}
}

// bounded bounds answers.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// provider returns what the provider says about itself. The error's class is errs.Unavailable.
func (p *Provider) provider(ctx context.Context) (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock() // others wait for the first one that asks
	now := p.now()
	if p.found != nil && now.Sub(p.at) < fresh {
		return p.found, nil
	}
	if now.Sub(p.failed) >= again {
		// The keys are fetched by this context later, too.
		found, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), p.client), p.o.Issuer)
		if err == nil {
			p.found, p.at, p.err = found, now, nil
			return found, nil
		}
		p.failed, p.err = now, errs.New(errs.Unavailable, "the OpenID provider %s does not answer as one: %w", p.o.Issuer, err)
	}
	if p.found != nil {
		return p.found, nil // what it said before
	}
	return nil, p.err
}

func (p *Provider) config(found *oidc.Provider, redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.o.ClientID, ClientSecret: p.o.ClientSecret, Endpoint: found.Endpoint(), RedirectURL: redirect,
		Scopes: append([]string{oidc.ScopeOpenID}, p.o.Scopes...),
	}
}

// Begin returns the address to which a browser is sent, from which it comes back to redirect.
func (p *Provider) Begin(ctx context.Context, redirect string, c Challenge) (string, error) {
	found, err := p.provider(ctx)
	if err != nil {
		return "", err
	}
	return p.config(found, redirect).AuthCodeURL(c.State, oauth2.S256ChallengeOption(c.Verifier), oidc.Nonce(c.Nonce)), nil
}

// Finish returns who a browser that came back is. The error's class is errs.Unauthorized when that is not certain, and errs.Unavailable
// when the provider does not answer.
func (p *Provider) Finish(ctx context.Context, redirect string, c Challenge, answer url.Values) (Identity, error) {
	if c.State == "" || subtle.ConstantTimeCompare([]byte(answer.Get("state")), []byte(c.State)) != 1 {
		return Identity{}, refused("the answer is not to this browser's question", nil)
	}
	if answer.Has("iss") && answer.Get("iss") != p.o.Issuer {
		return Identity{}, refused("the answer is of another provider", nil)
	}
	if answer.Get("error") != "" || answer.Get("code") == "" {
		return Identity{}, refused("the provider refused to sign in", nil)
	}
	found, err := p.provider(ctx)
	if err != nil {
		return Identity{}, err
	}
	ctx = oidc.ClientContext(ctx, p.client)
	tokens, err := p.config(found, redirect).Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(c.Verifier))
	if err != nil {
		if e, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
			if e.Response.StatusCode < http.StatusInternalServerError {
				return Identity{}, refused("the provider does not take the code: "+e.Response.Status, nil) // its text may have secrets in it
			}
			return Identity{}, errs.New(errs.Unavailable, "the OpenID provider answers %s", e.Response.Status)
		}
		return Identity{}, errs.New(errs.Unavailable, "the OpenID provider does not answer: %w", err)
	}
	raw, _ := tokens.Extra("id_token").(string)
	token, err := found.Verifier(&oidc.Config{ClientID: p.o.ClientID, Now: p.now}).Verify(ctx, raw)
	if err != nil {
		return Identity{}, refused("the ID token is not valid", err)
	}
	if c.Nonce == "" || subtle.ConstantTimeCompare([]byte(token.Nonce), []byte(c.Nonce)) != 1 {
		return Identity{}, refused("the ID token is for another sign-in", nil)
	}
	return p.identity(token)
}

func refused(why string, cause error) error {
	if cause != nil {
		return errs.New(errs.Unauthorized, "%s: %w", why, cause)
	}
	return errs.New(errs.Unauthorized, "%s", why)
}

func (p *Provider) identity(token *oidc.IDToken) (id Identity, err error) {
	var claims map[string]json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return id, refused("the ID token cannot be read", err)
	}
	text := func(name string) (s string) {
		_ = json.Unmarshal(claims[name], &s) // another type is as none
		return s
	}
	if azp := text("azp"); azp != "" && azp != p.o.ClientID || azp == "" && len(token.Audience) > 1 {
		return id, refused("the ID token was made for another client", nil)
	}
	if token.Subject == "" || len(token.Subject) > 255 {
		return id, refused("the ID token has no subject", nil)
	}
	id = Identity{Issuer: token.Issuer, Subject: token.Subject, Name: text(p.o.NameClaim)}
	if p.o.GroupsClaim == "" {
		return id, nil
	}
	if err := json.Unmarshal(claims[p.o.GroupsClaim], &id.Groups); err != nil {
		if one := text(p.o.GroupsClaim); one != "" {
			id.Groups = []string{one}
		}
	}
	if len(id.Groups) > maxGroups {
		return id, refused("the ID token has too many groups", nil)
	}
	slices.Sort(id.Groups)
	return id, nil
}
