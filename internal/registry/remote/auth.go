package remote

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/fence"
	"ply/internal/version"
)

const (
	maxTokens     = 1000
	maxToken      = 1 << 20 // bytes of an answer
	defaultExpiry = 60 * time.Second
	tokenTimeout  = 30 * time.Second
)

// authState is how the registry wants its clients to log in, and the tokens that it gave.
type authState struct {
	mu     sync.Mutex
	basic  bool
	bearer *bearer // the last challenge; nil = none
	tokens map[string]*tokenFlight
}

// bearer is a challenge whose realm passed the check.
type bearer struct {
	realm   *url.URL
	service string
}

// tokenFlight is a token for a scope, or the request for one, which all who need it share.
type tokenFlight struct {
	done    chan struct{}
	value   string
	expires time.Time
	err     error
}

func (f *tokenFlight) usable() bool {
	select {
	case <-f.done:
		return f.err == nil && time.Now().Before(f.expires)
	default:
		return true
	}
}

// authorization returns the header Authorization for a scope, or "" while the registry has not asked for any.
func (r *Registry) authorization(ctx context.Context, scope string) (string, error) {
	a := &r.auth
	a.mu.Lock()
	if a.basic {
		a.mu.Unlock()
		return basic(r.o.Credentials), nil
	}
	if a.bearer == nil {
		a.mu.Unlock()
		return "", nil
	}
	f := a.tokens[scope]
	if f == nil || !f.usable() {
		if len(a.tokens) >= maxTokens {
			clear(a.tokens)
		}
		f = &tokenFlight{done: make(chan struct{})}
		a.tokens[scope] = f
		go r.fetchToken(context.WithoutCancel(ctx), f, a.bearer, scope)
	}
	a.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	return "Bearer " + f.value, f.err
}

func basic(c Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// challenged handles an answer with status 401 and reports whether the request may succeed when it is sent again.
func (r *Registry) challenged(resp *http.Response, scope, used string) (bool, error) {
	var wantsBasic bool
	var b *bearer
	for _, c := range fence.Challenges(resp.Header) {
		switch {
		case c.Scheme == "basic":
			wantsBasic = true
		case c.Scheme == "bearer" && b == nil && c.Params["realm"] != "":
			u, _, err := fence.Realms{}.Check(r.base, c.Params["realm"])
			if err != nil {
				return false, err
			}
			b = &bearer{realm: u, service: c.Params["service"]}
		}
	}
	a := &r.auth
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case b != nil:
		if f := a.tokens[scope]; f != nil && used == "Bearer "+f.value {
			delete(a.tokens, scope) // it has expired, or the registry has other keys
		}
		a.bearer = b
		return true, nil
	case wantsBasic && !r.o.Credentials.empty() && !strings.HasPrefix(used, "Basic "):
		a.basic = true
		return true, nil
	}
	return false, nil
}

// fetchToken asks the token server. It serves everyone who waits for the token, so it does not end with one of them.
func (r *Registry) fetchToken(ctx context.Context, f *tokenFlight, b *bearer, scope string) {
	ctx, cancel := context.WithTimeoutCause(ctx, tokenTimeout, errs.New(errs.Unavailable, "token server %s does not answer", b.realm.Host))
	defer cancel()
	f.value, f.expires, f.err = r.token(ctx, b, scope)
	close(f.done)
}

func (r *Registry) token(ctx context.Context, b *bearer, scope string) (string, time.Time, error) {
	req, err := tokenRequest(ctx, b, r.o.Credentials, scope)
	if err != nil {
		return "", time.Time{}, errs.New(errs.Invalid, "token server of %s: %w", r.base.Host, err)
	}
	req.Header.Set("User-Agent", "ply-registry/"+version.Version)
	resp, err := r.pool(b.realm).RoundTrip(req) // RoundTrip follows no redirect: that would take the credentials to another host
	if err != nil {
		return "", time.Time{}, r.transportError(ctx, req, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return "", time.Time{}, errs.New(errs.Forbidden, "token server %s: answers with a redirect, which is never followed", b.realm.Host)
	case resp.StatusCode != http.StatusOK:
		return "", time.Time{}, answerError(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxToken+1))
	if err != nil {
		return "", time.Time{}, errs.New(errs.Unavailable, "token server %s: %w", b.realm.Host, err)
	}
	var doc struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if len(body) > maxToken || json.Unmarshal(body, &doc) != nil {
		return "", time.Time{}, errs.New(errs.Invalid, "token server %s: answer is not a token", b.realm.Host)
	}
	value := doc.Token
	if value == "" {
		value = doc.AccessToken
	}
	if value == "" || strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", time.Time{}, errs.New(errs.Invalid, "token server %s: token is not well formed", b.realm.Host)
	}
	life := defaultExpiry
	if doc.ExpiresIn > 0 {
		life = time.Duration(min(doc.ExpiresIn, 24*3600)) * time.Second
	}
	// Replace the token before it expires: clocks differ, and requests take time.
	return value, time.Now().Add(life - life/10), nil
}

func tokenRequest(ctx context.Context, b *bearer, c Credentials, scope string) (*http.Request, error) {
	if c.IdentityToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {c.IdentityToken}, "service": {b.service}, "client_id": {"ply-registry"}, "scope": {scope}}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	u := *b.realm
	q := u.Query()
	if b.service != "" {
		q.Set("service", b.service)
	}
	if scope != "" {
		q.Set("scope", scope)
	}
	if c.Username != "" {
		q.Set("account", c.Username)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && !c.empty() {
		req.Header.Set("Authorization", basic(c))
	}
	return req, err
}
