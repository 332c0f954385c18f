package remote

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"ply/internal/errs"
	"ply/internal/fence"
	"ply/internal/transfer"
)

const (
	maxAuthAnswer = 1 << 20
	defaultExpiry = 60 * time.Second
	clientID      = "ply"
)

// authState is how one origin wants to be authenticated, and the tokens for it.
type authState struct {
	mu     sync.Mutex             // held during a token request, so that concurrent requests for one scope share the token
	basic  bool                   // the origin asked for Basic
	bearer *bearer                // its last Bearer challenge; nil = none
	tokens map[string]bearerToken // by scopeKey
}

// bearer is a Bearer challenge whose realm passed the check.
type bearer struct {
	realm   *url.URL
	same    bool // the realm is at the registry's own origin
	service string
	scope   string
	peer    netip.Addr // the address at which the registry answered
}

type bearerToken struct {
	value   string
	expires time.Time
	refresh string
}

func (s *Session) state(ep *resolved) *authState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.auth[fence.Origin(ep.base)]
	if st == nil {
		st = &authState{tokens: map[string]bearerToken{}}
		s.auth[fence.Origin(ep.base)] = st
	}
	return st
}

// credFor returns the credentials that may be sent to an endpoint: none to a mirror.
func (s *Session) credFor(ep *resolved) transfer.Credentials {
	if ep.mirror {
		return transfer.Credentials{}
	}
	return s.cred
}

// authorization returns the Authorization header for scopes, or "" while the origin has not asked for any.
func (s *Session) authorization(ctx context.Context, ep *resolved, scopes []string) (string, error) {
	cred := s.credFor(ep)
	if cred.RegistryToken != "" {
		return "Bearer " + cred.RegistryToken, nil
	}
	st := s.state(ep)
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.basic:
		return basicHeader(cred), nil
	case st.bearer != nil:
		t, err := s.token(ctx, ep, st, scopes)
		if err != nil {
			return "", err
		}
		return "Bearer " + t.value, nil
	}
	return "", nil
}

func basicHeader(c transfer.Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// challenged handles a response with status 401. It reports whether the request may succeed when it is sent again. If not, and
// without an error, the caller still has to read and close the response.
func (s *Session) challenged(ctx context.Context, ep *resolved, resp *http.Response, peer netip.Addr, scopes []string, used string) (bool, error) {
	cred := s.credFor(ep)
	if cred.RegistryToken != "" {
		return false, nil
	}
	var basic, offered bool
	var b *bearer
	for _, c := range fence.Challenges(resp.Header) {
		offered = true
		switch c.Scheme {
		case "basic":
			basic = true
		case "bearer":
			if b != nil || c.Params["realm"] == "" {
				continue
			}
			u, same, err := s.c.realms().Check(resp.Request.URL, c.Params["realm"])
			if err != nil {
				resp.Body.Close()
				return false, err
			}
			b = &bearer{realm: u, same: same, service: c.Params["service"], scope: c.Params["scope"], peer: peer}
		}
	}
	st := s.state(ep)
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case b != nil:
		key := scopeKey(scopes)
		if t, ok := st.tokens[key]; ok && used == "Bearer "+t.value {
			delete(st.tokens, key)
			if used != "" && strings.Contains(strings.Join(resp.Header.Values("Www-Authenticate"), " "), "insufficient_scope") {
				return false, nil // a new token would have the same scope
			}
		}
		st.bearer = b
		drain(resp)
		return true, nil
	case basic && cred.Username == "" && cred.Password == "":
		drain(resp)
		if ep.mirror {
			return false, errs.New(errs.Unauthorized, "mirror %s: asks for credentials, and mirrors get none", ep.host)
		}
		return false, errs.New(errs.Unauthorized, "%s %q: no basic auth credentials", resp.Request.Method, redact(resp.Request.URL)).
			WithHint("Run 'ply login %s'.", s.loginName())
	case basic:
		if strings.HasPrefix(used, "Basic ") {
			return false, nil // these credentials were refused
		}
		st.basic = true
		drain(resp)
		return true, nil
	case offered:
		drain(resp)
		return false, errs.New(errs.Unimplemented, "registry %s: asks for an authentication scheme other than Basic and Bearer", ep.host)
	}
	return false, nil
}

func (s *Session) loginName() string {
	if s.name.Domain() == hubDomain {
		return ""
	}
	return s.name.Domain()
}

// drain reads the rest of a body and closes it, so that the connection can be used again.
func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxError))
	resp.Body.Close()
}

func scopeKey(scopes []string) string {
	s := slices.Clone(scopes)
	slices.Sort(s)
	return strings.Join(slices.Compact(s), " ")
}

// token returns a token for scopes, from st or from the token server. The caller holds st.mu.
func (s *Session) token(ctx context.Context, ep *resolved, st *authState, scopes []string) (bearerToken, error) {
	key := scopeKey(scopes)
	if t, ok := st.tokens[key]; ok && time.Now().Before(t.expires) {
		return t, nil
	}
	if len(scopes) == 0 && st.bearer.scope != "" {
		scopes = strings.Fields(st.bearer.scope)
	}
	t, err := s.fetchToken(ctx, ep, st.bearer, scopes)
	if err != nil {
		return bearerToken{}, err
	}
	st.tokens[key] = t
	return t, nil
}

// fetchToken requests a token: with GET and Basic credentials, or with an OAuth2 POST and an identity token.
func (s *Session) fetchToken(ctx context.Context, ep *resolved, b *bearer, scopes []string) (bearerToken, error) {
	cred := s.credFor(ep)
	req, err := tokenRequest(ctx, b, cred, scopes)
	if err != nil {
		return bearerToken{}, errs.New(errs.Invalid, "token server of %s: %w", ep.host, err)
	}
	req.Header.Set("User-Agent", s.c.opts.UserAgent)
	t, err := s.c.realmTransport(ep, b)
	if err != nil {
		return bearerToken{}, err
	}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(req) // RoundTrip follows no redirect: that would send the credentials to another host
	if err != nil {
		if ctx.Err() != nil {
			return bearerToken{}, context.Cause(ctx)
		}
		return bearerToken{}, s.c.transportError(ep, req, err)
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		resp.Body.Close()
		return bearerToken{}, errs.New(errs.Forbidden, "token server %s: answers with a redirect, which is never followed", b.realm.Host)
	}
	if resp.StatusCode != http.StatusOK {
		return bearerToken{}, tokenError(resp, cred)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAuthAnswer+1))
	if err != nil {
		return bearerToken{}, errs.New(errs.Unavailable, "token server %s: %w", b.realm.Host, err)
	}
	if len(body) > maxAuthAnswer {
		return bearerToken{}, errs.New(errs.Invalid, "token server %s: answer is longer than %d bytes", b.realm.Host, maxAuthAnswer)
	}
	return parseToken(b.realm.Host, body)
}

// tokenError returns the error for a token server's refusal. Refused credentials have a text of their own.
func tokenError(resp *http.Response, cred transfer.Credentials) error {
	err := answerError(resp)
	if resp.StatusCode == http.StatusUnauthorized && (cred.Username != "" || cred.IdentityToken != "") {
		// err is not wrapped: the refusal concerns the password, so a caller must not take it for one of the repository.
		return errs.New(errs.Unauthorized, "unauthorized: incorrect username or password (%v)", err)
	}
	return err
}

func tokenRequest(ctx context.Context, b *bearer, cred transfer.Credentials, scopes []string) (*http.Request, error) {
	if cred.IdentityToken != "" {
		form := url.Values{
			"grant_type": {"refresh_token"}, "refresh_token": {cred.IdentityToken},
			"service": {b.service}, "client_id": {clientID}, "scope": {strings.Join(scopes, " ")},
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	u := cloneURL(b.realm)
	q := u.Query()
	if b.service != "" {
		q.Set("service", b.service)
	}
	for _, sc := range scopes {
		q.Add("scope", sc)
	}
	if cred.Username != "" {
		q.Set("account", cred.Username)
	}
	if len(scopes) == 0 {
		q.Set("offline_token", "true") // for login: a client keeps an identity token instead of the password
		q.Set("client_id", clientID)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && (cred.Username != "" || cred.Password != "") {
		req.Header.Set("Authorization", basicHeader(cred))
	}
	return req, err
}

func parseToken(host string, body []byte) (bearerToken, error) {
	var doc struct {
		Token        string `json:"token"`
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return bearerToken{}, errs.New(errs.Invalid, "token server %s: answer is not the JSON of a token", host)
	}
	t := bearerToken{value: doc.Token, refresh: doc.RefreshToken}
	if t.value == "" {
		t.value = doc.AccessToken
	}
	if t.value == "" {
		return bearerToken{}, errs.New(errs.Invalid, "token server %s: answer holds no token", host)
	}
	if strings.ContainsAny(t.value, "\r\n\x00") {
		return bearerToken{}, errs.New(errs.Invalid, "token server %s: token is not well formed", host)
	}
	life := defaultExpiry
	if doc.ExpiresIn > 0 {
		life = time.Duration(min(doc.ExpiresIn, 24*3600)) * time.Second
	}
	// Replace the token before it expires: clocks differ, and requests take time.
	t.expires = time.Now().Add(life - life/10)
	return t, nil
}

// realmTransport returns the transport for one token request. At the registry's own origin it uses the TLS settings of the
// registry, elsewhere those for the host of the token server.
func (c *Client) realmTransport(ep *resolved, b *bearer) (*http.Transport, error) {
	check := fence.RealmCheck(b.peer)
	host := b.realm.Host
	if b.same {
		check = func(string, netip.Addr) error { return nil }
		host = ep.host
	}
	conf, err := c.tlsConfig(host)
	if err != nil {
		return nil, err
	}
	if ep.insecure && (b.same || strings.EqualFold(b.realm.Hostname(), hostOnly(ep.host))) {
		conf.InsecureSkipVerify = true //nolint:gosec // the user has declared the registry on this host insecure
	}
	return newTransport(c.dialer(connectTimeout, b.realm.Hostname(), check), conf), nil
}

func hostOnly(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return hostport
}
