package auth

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
)

// Options configure a Gate.
type Options struct {
	Users *Users
	Root  string // of the keys of tokens
	// Documents has the keys of tokens that replicas share; nil = they are below the root.
	Documents Documents
	// Required closes the registry even without a file of users.
	Required bool
	// Basic asks clients to log in by Basic and not for tokens. Both are always accepted.
	Basic bool
	// Tokens are the personal access tokens; nil = there are none.
	Tokens *Tokens
	// Provider signs users in; nil = none. With one the registry is closed.
	Provider Provider
	// Create makes users of those who sign in for the first time.
	Create bool
	// Taken reports whether repositories have a name that a new user would own; may be nil.
	Taken func(ctx context.Context, name string) (bool, error)
	Log   *slog.Logger // nil = none
	// ClaimsAge is how long the groups that a provider named count after a sign-in.
	ClaimsAge time.Duration
	// URL is what clients reach the registry by, such as https://registry.example.com; "" = what each request says.
	URL string
}

// Gate lets callers in. Safe for concurrent use.
type Gate struct {
	o      Options
	signer *signer
	logins *logins
}

var _ access.Gate = (*Gate)(nil)

// TokenPath is where the gate issues tokens.
const TokenPath = "/auth/token"

// NewGate returns a gate.
func NewGate(o Options) (*Gate, error) {
	s, err := openSigner(o.Root, o.Documents)
	if err != nil {
		return nil, err
	}
	return &Gate{o: o, signer: s, logins: newLogins(o.Users.Cost)}, nil
}

// IsOpen reports whether everyone may do everything.
func (g *Gate) IsOpen() bool { return !g.o.Required && g.o.Provider == nil && !g.o.Users.Closed() }

// caller is someone with rights, perhaps narrowed by a personal access token, by a token that the gate issued, or by both.
type caller struct {
	Rights
	personal *AccessToken // nil = none
	everyone Rights       // what a personal access token does not narrow
	token    bool
	access   []scopeClaim
	unscoped bool // a token without any scope asks for a list, which needs one
}

// Name returns the user.
func (c *caller) Name() string { return c.name }

// Token returns the ID of the personal access token; "" = none.
func (c *caller) Token() string {
	if c.personal == nil {
		return ""
	}
	return c.personal.ID
}

// Admin reports whether the caller may use everything.
func (c *caller) Admin() bool { return !c.token && c.personal == nil && c.admin() }

// Owns reports whether the caller may change a namespace.
func (c *caller) Owns(namespace string) bool {
	return !c.token && c.personal == nil && c.owns(namespace)
}

// allowed reports what the user may do with its password or its personal access token.
func (c *caller) allowed(repo content.Repository, a access.Action) bool {
	if !c.Rights.May(repo, a) {
		return false
	}
	return c.personal == nil || c.personal.allows(repo, a) || c.everyone.May(repo, a)
}

// May reports whether the caller may do something to a repository.
func (c *caller) May(repo content.Repository, a access.Action) bool {
	if repo == "" { // to be let in
		return (c.token || c.name != "") && !c.unscoped
	}
	return c.allowed(repo, a) && (!c.token || slices.ContainsFunc(c.access, func(s scopeClaim) bool {
		return s.Type == "repository" && s.Name == string(repo) && slices.Contains(s.Actions, string(a))
	}))
}

// Sees reports whether the caller finds a repository in lists.
func (c *caller) Sees(repo content.Repository) bool {
	if c.token && !slices.ContainsFunc(c.access, func(s scopeClaim) bool { return s.Type == "registry" && s.Name == "catalog" }) {
		return c.May(repo, access.Pull)
	}
	return c.allowed(repo, access.Pull)
}

// newCaller returns a user as a caller; "" = one who does not log in.
func (g *Gate) newCaller(name string, personal *AccessToken) *caller {
	t := g.o.Users.current()
	return &caller{Rights: t.rights(name, g.o.ClaimsAge), personal: personal, everyone: t.rights("", 0)}
}

// Identify returns who makes a request.
func (g *Gate) Identify(r *http.Request) (access.Caller, error) {
	if g.IsOpen() {
		return access.Open.Identify(r)
	}
	header := r.Header.Get("Authorization")
	scheme, credentials, _ := strings.Cut(header, " ")
	switch {
	case header == "":
		return g.newCaller("", nil), nil
	case strings.EqualFold(scheme, "Basic"):
		name, personal, err := g.login(r)
		if err != nil {
			return nil, err
		}
		return g.newCaller(name, personal), nil
	case strings.EqualFold(scheme, "Bearer"):
		return g.bearer(r, strings.TrimSpace(credentials))
	}
	return nil, errs.New(errs.Unauthorized, "the credentials are neither Basic nor Bearer")
}

// subject returns the user that a token is about.
func (g *Gate) subject(c claims) (User, error) {
	user, ok := g.o.Users.user(c.Subject)
	if !ok || user.ID != c.UserID {
		g.o.Users.forget() // another replica may have made the user and the token just now
		user, ok = g.o.Users.user(c.Subject)
	}
	if !ok || user.ID != c.UserID {
		return User{}, errToken
	}
	return user, nil
}

// bearer returns who has a token that the gate issued. What was taken from its user since is lost to it.
func (g *Gate) bearer(r *http.Request, text string) (access.Caller, error) {
	c, err := g.signer.verify(text, g.service(r))
	if err != nil {
		return nil, err
	}
	var personal *AccessToken
	if c.Subject != "" {
		user, err := g.subject(c)
		if err != nil {
			return nil, err
		}
		if c.Token != "" {
			if g.o.Tokens == nil {
				return nil, errToken
			}
			f, err := g.o.Tokens.current(r.Context(), user, c.Token)
			if err != nil {
				return nil, err
			}
			personal = &f.token
		}
	}
	who := g.newCaller(c.Subject, personal)
	who.token, who.access = true, c.Access
	who.unscoped = len(c.Access) == 0 && isList(r)
	return who, nil
}

func (u *Users) user(name string) (User, bool) {
	user, ok := u.current().users[name]
	return user, ok
}

// login checks the user and password of a request.
func (g *Gate) login(r *http.Request) (string, *AccessToken, error) {
	name, password, ok := r.BasicAuth()
	if !ok {
		return "", nil, errs.New(errs.Unauthorized, "the credentials cannot be read")
	}
	personal, err := g.check(r, name, password)
	return name, personal, err
}

// check checks a password, or a personal access token in its place, which it returns.
func (g *Gate) check(r *http.Request, name, password string) (*AccessToken, error) {
	user, exists := g.o.Users.user(name)
	if g.o.Tokens != nil && isToken(password) {
		if !exists {
			user.Name = name // it is looked up all the same, which takes the same time
		}
		t, err := g.logins.token(r.RemoteAddr, name, password, func() (AccessToken, error) {
			return g.o.Tokens.check(r.Context(), user, exists, password)
		})
		if err != nil {
			return nil, err
		}
		return &t, nil
	}
	return nil, g.logins.check(r.Context(), r.RemoteAddr, name, password, user.Password)
}

// service names this registry in tokens.
func (g *Gate) service(*http.Request) string { return issuer }

func (g *Gate) url(r *http.Request) string {
	if g.o.URL != "" {
		return strings.TrimSuffix(g.o.URL, "/")
	}
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// isList reports whether a request is for a list of repositories. Podman fetches a token without a scope first, and one with the scope of the challenge then.
func isList(r *http.Request) bool { return r.URL.Path == "/v2/_catalog" || r.URL.Path == "/v1/search" }

// Challenge returns the header that tells a client how to log in.
func (g *Gate) Challenge(r *http.Request, c access.Caller, repo content.Repository, actions ...access.Action) string {
	if g.IsOpen() {
		return ""
	}
	ours, _ := c.(*caller)
	if ours != nil && ours.name != "" && !ours.unscoped && (repo == "" || len(actions) == 0 || !ours.allowed(repo, actions[len(actions)-1])) {
		return "" // not even another token would do
	}
	if g.o.Basic {
		return `Basic realm="ply-registry"`
	}
	s := `Bearer realm="` + quote(g.url(r)) + TokenPath + `",service="` + g.service(r) + `"`
	switch {
	case repo != "":
		names := make([]string, len(actions))
		for i, a := range actions {
			names[i] = string(a)
		}
		s += `,scope="repository:` + string(repo) + ":" + strings.Join(names, ",") + `"`
	case isList(r):
		s += `,scope="registry:catalog:*"`
	}
	switch {
	case ours != nil && ours.token:
		s += `,error="insufficient_scope"`
	case c == nil && strings.HasPrefix(r.Header.Get("Authorization"), "Bearer "):
		s += `,error="invalid_token"`
	}
	return s
}

// quote makes a host safe inside of a quoted string.
func quote(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

const maxScopes = 100

// ServeHTTP issues tokens: GET with Basic credentials or none, or POST with a user's password, as OAuth2 has it.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var name string
	var personal *AccessToken
	var err error
	var scopes []string
	switch {
	case r.Method == http.MethodGet:
		scopes = r.URL.Query()["scope"]
		if r.Header.Get("Authorization") != "" && !g.IsOpen() {
			name, personal, err = g.login(r)
		}
	case r.Method == http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		if perr := r.ParseForm(); perr != nil {
			err = errs.New(errs.Invalid, "the form cannot be read: %w", perr)
			break
		}
		scopes = r.PostForm["scope"]
		if grant := r.PostForm.Get("grant_type"); grant != "password" {
			err = errs.New(errs.Invalid, "unsupported_grant_type")
			break
		}
		if name = r.PostForm.Get("username"); !g.IsOpen() {
			personal, err = g.check(r, name, r.PostForm.Get("password"))
		}
	default:
		w.Header().Set("Allow", "GET, POST")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if err != nil {
		refuseToken(w, err)
		return
	}
	if g.IsOpen() {
		name = "" // no one has checked it
	}
	var asked []string
	for _, s := range scopes {
		asked = append(asked, strings.Fields(s)...)
	}
	if len(asked) > maxScopes {
		refuseToken(w, errs.New(errs.Invalid, "%d scopes, the limit is %d", len(asked), maxScopes))
		return
	}
	who := g.newCaller(name, personal)
	access.Tell(w, who)
	user, _ := g.o.Users.user(name)
	token, err := g.signer.issue(claims{Subject: name, UserID: user.ID, Token: who.Token(), Audience: g.service(r), Access: g.grant(who, asked)})
	if err != nil {
		refuseToken(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"token": token, "access_token": token, "expires_in": int(tokenLife.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

// grant returns what a caller gets of the scopes that it asks for. Less than it asks for is no error.
func (g *Gate) grant(who *caller, asked []string) []scopeClaim {
	list := []scopeClaim{}
	open := g.IsOpen()
	for _, s := range asked {
		kind, rest, _ := strings.Cut(s, ":")
		i := strings.LastIndexByte(rest, ':')
		if i < 0 {
			continue
		}
		target, actions := rest[:i], strings.Split(rest[i+1:], ",")
		if kind == "registry" && target == "catalog" {
			list = append(list, scopeClaim{"registry", "catalog", []string{"*"}})
			continue
		}
		repo, err := content.ParseRepository(target)
		if kind != "repository" || err != nil {
			continue
		}
		claim := scopeClaim{Type: kind, Name: target, Actions: []string{}}
		for _, a := range access.Actions() {
			if (slices.Contains(actions, string(a)) || slices.Contains(actions, "*")) && (open || who.allowed(repo, a)) {
				claim.Actions = append(claim.Actions, string(a))
			}
		}
		list = append(list, claim)
	}
	return list
}

func refuseToken(w http.ResponseWriter, err error) {
	status, code := http.StatusInternalServerError, "UNKNOWN"
	message := err.Error()
	switch {
	case errors.Is(err, errs.Invalid):
		status, code = http.StatusBadRequest, "UNSUPPORTED"
	case errors.Is(err, errs.Unauthorized):
		status, code = http.StatusUnauthorized, "UNAUTHORIZED"
		w.Header().Set("WWW-Authenticate", `Basic realm="ply-registry"`)
	case errors.Is(err, errs.Exhausted):
		status, code = http.StatusTooManyRequests, "TOOMANYREQUESTS"
		w.Header().Set("Retry-After", strconv.Itoa(int(perFailure.Seconds())))
	case errors.Is(err, errs.Unavailable):
		status, code, message = http.StatusServiceUnavailable, "UNAVAILABLE", "the registry is not available for the moment"
		w.Header().Set("Retry-After", "5")
	default:
		message = "the registry has an internal error"
	}
	writeJSON(w, status, map[string]any{"errors": []map[string]string{{"code": code, "message": message}}, "error": message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte("{}")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}
