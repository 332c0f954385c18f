package auth

import (
	"encoding/json"
	"errors"
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
func (g *Gate) IsOpen() bool { return !g.o.Required && !g.o.Users.Closed() }

// caller is someone with rights, perhaps narrowed by a token.
type caller struct {
	Rights
	token  bool
	access []scopeClaim
}

// Name returns the user.
func (c *caller) Name() string { return c.name }

// Admin reports whether the caller may use everything.
func (c *caller) Admin() bool { return !c.token && c.admin() }

// May reports whether the caller may do something to a repository.
func (c *caller) May(repo content.Repository, a access.Action) bool {
	if repo == "" { // to be let in
		return c.token || c.name != ""
	}
	return c.Rights.May(repo, a) && (!c.token || slices.ContainsFunc(c.access, func(s scopeClaim) bool {
		return s.Type == "repository" && s.Name == string(repo) && slices.Contains(s.Actions, string(a))
	}))
}

// Sees reports whether the caller finds a repository in lists.
func (c *caller) Sees(repo content.Repository) bool {
	if c.token && !slices.ContainsFunc(c.access, func(s scopeClaim) bool { return s.Type == "registry" && s.Name == "catalog" }) {
		return c.May(repo, access.Pull)
	}
	return c.Rights.May(repo, access.Pull)
}

func (g *Gate) rights(name string) Rights {
	subject := name
	if name == "" {
		subject = Anonymous
	}
	t := g.o.Users.current()
	grants := t.grants[subject]
	if name != "" { // what everyone may do, a user may do
		grants = slices.Concat(grants, t.grants[Anonymous])
	}
	return Rights{name, grants}
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
		return &caller{Rights: g.rights("")}, nil
	case strings.EqualFold(scheme, "Basic"):
		name, err := g.login(r)
		if err != nil {
			return nil, err
		}
		return &caller{Rights: g.rights(name)}, nil
	case strings.EqualFold(scheme, "Bearer"):
		c, err := g.signer.verify(strings.TrimSpace(credentials), g.service(r))
		if err != nil {
			return nil, err
		}
		if c.Subject != "" && !g.o.Users.has(c.Subject) {
			return nil, errToken
		}
		return &caller{Rights: g.rights(c.Subject), token: true, access: c.Access}, nil
	}
	return nil, errs.New(errs.Unauthorized, "the credentials are neither Basic nor Bearer")
}

func (u *Users) has(name string) bool {
	_, ok := u.current().users[name]
	return ok
}

// login checks the user and password of a request.
func (g *Gate) login(r *http.Request) (string, error) {
	name, password, ok := r.BasicAuth()
	if !ok {
		return "", errs.New(errs.Unauthorized, "the credentials cannot be read")
	}
	return name, g.check(r, name, password)
}

func (g *Gate) check(r *http.Request, name, password string) error {
	return g.logins.check(r.Context(), r.RemoteAddr, name, password, g.o.Users.current().users[name].Password)
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

// Challenge returns the header that tells a client how to log in.
func (g *Gate) Challenge(r *http.Request, c access.Caller, repo content.Repository, actions ...access.Action) string {
	if g.IsOpen() {
		return ""
	}
	ours, _ := c.(*caller)
	if ours != nil && ours.name != "" && (repo == "" || len(actions) == 0 || !ours.Rights.May(repo, actions[len(actions)-1])) {
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
	case r.URL.Path == "/v2/_catalog", r.URL.Path == "/v1/search":
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
	var err error
	var scopes []string
	switch {
	case r.Method == http.MethodGet:
		scopes = r.URL.Query()["scope"]
		if r.Header.Get("Authorization") != "" && !g.IsOpen() {
			name, err = g.login(r)
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
			err = g.check(r, name, r.PostForm.Get("password"))
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
	token, err := g.signer.issue(claims{Subject: name, Audience: g.service(r), Access: g.grant(name, asked)})
	if err != nil {
		refuseToken(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"token": token, "access_token": token, "expires_in": int(tokenLife.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

// grant returns what a user gets of the scopes that it asks for. Less than it asks for is no error.
func (g *Gate) grant(name string, asked []string) []scopeClaim {
	list := []scopeClaim{}
	rights := g.rights(name)
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
		for _, a := range []access.Action{access.Pull, access.Push, access.Delete} {
			if (slices.Contains(actions, string(a)) || slices.Contains(actions, "*")) && (open || rights.May(repo, a)) {
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
