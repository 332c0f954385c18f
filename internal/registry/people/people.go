// Package people serves what people and their programs ask about themselves and their rights, in JSON below /api/v1: who they are, the
// repositories and namespaces that they may see, their personal access tokens, and the audit log.
//
// Invariants: an answer has nothing about a repository or namespace that the caller may not pull from. Tokens are made and revoked by
// their user with its password or a session, never by another token. The text of a token is in the answer that makes it and nowhere
// else. A page of another site cannot use a session.
package people

import (
	"cmp"
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
	"ply/internal/registry/audit"
	"ply/internal/registry/auth"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
)

// Options configure a Handler.
type Options struct {
	Gate     *auth.Gate
	Users    *auth.Users
	Tokens   *auth.Tokens
	Metadata metadata.Store
	ReadOnly func() bool  // nothing can be changed
	Log      *slog.Logger // nil = none
}

// Prefix is what all paths begin with.
const Prefix = "/api/v1/"

const (
	maxBody     = 64 << 10 // bytes
	defaultPage = 100
	maxPage     = 1000
	chunk       = 1000 // repositories read at once
)

// needs is the right that a route needs.
type needs int

const (
	nothing needs = iota // what the caller may not see is not in the answer
	whole                // a user by its password or session
	admin                // the admin of everything
)

// request is a request whose caller is known.
type request struct {
	w      http.ResponseWriter
	r      *http.Request
	caller access.Caller
	owner  auth.Owner // nil in a registry that is open
}

type route struct {
	method, path string
	needs        needs
	serve        func(*handler, *request) (any, error)
}

// routes are all routes.
var routes = []route{
	{http.MethodGet, "me", nothing, (*handler).me},
	{http.MethodPost, "session", nothing, (*handler).signIn},
	{http.MethodDelete, "session", nothing, (*handler).signOut},
	{http.MethodGet, "repositories", nothing, (*handler).repositories},
	{http.MethodGet, "namespaces", nothing, (*handler).namespaces},
	{http.MethodPut, "namespaces/{name...}", whole, (*handler).setNamespace},
	{http.MethodDelete, "namespaces/{name...}", whole, (*handler).removeNamespace},
	{http.MethodGet, "tokens", whole, (*handler).tokens},
	{http.MethodPost, "tokens", whole, (*handler).createToken},
	{http.MethodDelete, "tokens/{id}", whole, (*handler).revokeToken},
	{http.MethodGet, "users", admin, (*handler).users},
	{http.MethodGet, "groups", admin, (*handler).groups},
	{http.MethodGet, "audit", admin, (*handler).audit},
}

type handler struct{ Options }

// New returns a handler of the paths below Prefix.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &handler{o}
	mux := http.NewServeMux()
	for _, to := range routes {
		mux.HandleFunc(to.method+" "+Prefix+to.path, func(w http.ResponseWriter, r *http.Request) { h.answer(w, r, to) })
	}
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusForbidden, failure("DENIED", "the request comes from a page of another site"))
	}))
	return guard.Handler(mux)
}

func failure(code, message string) any {
	return map[string]any{"errors": []map[string]string{{"code": code, "message": message}}}
}

func write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte("{}")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// made is an answer to what was made.
type made struct{ any }

func (h *handler) answer(w http.ResponseWriter, r *http.Request, to route) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	v, err := h.serve(w, r, to)
	if err == nil {
		switch v := v.(type) {
		case nil:
			w.WriteHeader(http.StatusNoContent)
		case made:
			write(w, http.StatusCreated, v.any)
		default:
			write(w, http.StatusOK, v)
		}
		return
	}
	status, code, message := http.StatusInternalServerError, "UNKNOWN", "the registry has an internal error"
	for _, c := range []struct {
		class  error
		status int
		code   string
	}{
		{errs.Unauthorized, http.StatusUnauthorized, "UNAUTHORIZED"}, {errs.Forbidden, http.StatusForbidden, "DENIED"}, {errs.Invalid, http.StatusBadRequest, "INVALID"},
		{errs.NotFound, http.StatusNotFound, "NOT_FOUND"}, {errs.Precondition, http.StatusConflict, "CONFLICT"}, {errs.Conflict, http.StatusConflict, "CONFLICT"},
		{errs.Exists, http.StatusConflict, "CONFLICT"}, {errs.Exhausted, http.StatusTooManyRequests, "TOOMANYREQUESTS"}, {errs.Unavailable, http.StatusServiceUnavailable, "UNAVAILABLE"},
	} {
		if errors.Is(err, c.class) {
			status, code, message = c.status, c.code, err.Error()
			break
		}
	}
	switch status {
	case http.StatusUnauthorized:
		if r.Header.Get("Sec-Fetch-Mode") == "" { // a browser would ask its user
			w.Header().Set("WWW-Authenticate", `Basic realm="ply-registry"`)
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "5")
	case http.StatusInternalServerError:
		h.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	write(w, status, failure(code, message))
}

// serve decides whether a request is allowed, and serves it.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, to route) (any, error) {
	q := &request{w: w, r: r}
	if to.path == "session" { // it needs no session, and ends one that is not valid
		return to.serve(h, q)
	}
	caller, err := h.Gate.Visitor(r)
	if err != nil {
		return nil, err
	}
	access.Tell(w, caller)
	q.caller = caller
	q.owner, _ = caller.(auth.Owner)
	switch {
	case to.needs == admin && !caller.Admin(), to.needs == whole && q.owner != nil && !q.owner.Whole():
		if caller.Name() == "" && !caller.Admin() {
			return nil, errs.New(errs.Unauthorized, "authentication required")
		}
		return nil, errs.New(errs.Forbidden, "requested access to the resource is denied")
	case to.needs == whole && q.owner == nil:
		return nil, errs.New(errs.Precondition, "the registry is open and has no users")
	case r.Method != http.MethodGet && h.ReadOnly != nil && h.ReadOnly():
		return nil, errs.New(errs.Forbidden, "the registry is read-only")
	}
	return to.serve(h, q)
}

func (q *request) read(v any) error {
	d := json.NewDecoder(q.r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return errs.New(errs.Invalid, "the body cannot be read: %w", err)
	}
	if d.More() {
		return errs.New(errs.Invalid, "the body has more than one value")
	}
	return nil
}

// Me is who a caller is.
type Me struct {
	Name   string   `json:"name"` // "" = one who is not logged in
	Admin  bool     `json:"admin"`
	Open   bool     `json:"open"`            // everyone may do everything
	Token  string   `json:"token,omitempty"` // ID of the personal access token that the caller uses
	Groups []string `json:"groups"`
}

func (h *handler) me(q *request) (any, error) {
	m := Me{Name: q.caller.Name(), Admin: q.caller.Admin(), Open: h.Gate.IsOpen(), Groups: []string{}}
	if q.owner != nil {
		m.Groups = append(m.Groups, q.owner.Groups()...)
	}
	if t, ok := q.caller.(interface{ Token() string }); ok {
		m.Token = t.Token()
	}
	return m, nil
}

func (h *handler) signIn(q *request) (any, error) {
	var v struct{ Name, Password string }
	if err := q.read(&v); err != nil {
		return nil, err
	}
	if err := h.Gate.SignIn(q.w, q.r, v.Name, v.Password); err != nil {
		return nil, err
	}
	if named, ok := q.w.(interface{ SetUser(name string) }); ok {
		named.SetUser(v.Name)
	}
	return made{map[string]string{"name": v.Name}}, nil
}

func (h *handler) signOut(q *request) (any, error) {
	h.Gate.SignOut(q.w, q.r)
	return nil, nil
}

func (q *request) limit() (int, error) {
	s := q.r.URL.Query().Get("n")
	if s == "" {
		return defaultPage, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, errs.New(errs.Invalid, "n must be a number from 1")
	}
	return min(n, maxPage), nil
}

// Repository is one that a caller may pull.
type Repository struct {
	Name       content.Repository `json:"name"`
	Visibility auth.Visibility    `json:"visibility"`
	Actions    []access.Action    `json:"actions"` // what the caller may do
}

func (h *handler) repositories(q *request) (any, error) {
	n, err := q.limit()
	if err != nil {
		return nil, err
	}
	params := q.r.URL.Query()
	term, after := params.Get("q"), content.Repository(params.Get("last"))
	list, next := []Repository{}, ""
	for {
		run, err := h.Metadata.Repositories(q.r.Context(), after, chunk)
		if err != nil {
			return nil, err
		}
		for _, repo := range run {
			if !q.caller.Sees(repo) || !strings.Contains(string(repo), term) {
				continue
			}
			if len(list) == n {
				next = string(list[n-1].Name)
				break
			}
			item := Repository{Name: repo, Visibility: h.Users.Visibility(string(repo)), Actions: []access.Action{}}
			for _, a := range access.Actions() {
				if q.caller.May(repo, a) {
					item.Actions = append(item.Actions, a)
				}
			}
			list = append(list, item)
		}
		if next != "" || len(run) < chunk {
			return map[string]any{"repositories": list, "next": next}, nil
		}
		after = run[len(run)-1]
	}
}

// Namespace is one in which a caller may see something.
type Namespace struct {
	Name       string          `json:"name"`
	Visibility auth.Visibility `json:"visibility"`
	Created    time.Time       `json:"created"`
	Owned      bool            `json:"owned"` // the caller may change it
}

func (h *handler) namespaces(q *request) (any, error) {
	list := []Namespace{}
	for _, n := range h.Users.Namespaces() {
		owned := q.owner != nil && q.owner.Owns(n.Name)
		if owned || q.caller.May(content.Repository(n.Name), access.Pull) || q.caller.May(content.Repository(n.Name+"/x"), access.Pull) {
			list = append(list, Namespace{n.Name, n.Visibility, n.Created, owned})
		}
	}
	return map[string]any{"namespaces": list}, nil
}

// owned returns the namespace of a request. The error's class is errs.Forbidden unless the caller may change it, whether it exists or not.
func (q *request) owned() (string, error) {
	name := q.r.PathValue("name")
	if _, err := content.ParseRepository(name); err != nil {
		return "", err
	}
	if !q.owner.Owns(name) {
		return "", errs.New(errs.Forbidden, "requested access to the resource is denied")
	}
	return name, nil
}

func (h *handler) setNamespace(q *request) (any, error) {
	name, err := q.owned()
	if err != nil {
		return nil, err
	}
	var v struct{ Visibility string }
	if err := q.read(&v); err != nil {
		return nil, err
	}
	visibility, err := auth.ParseVisibility(v.Visibility)
	if err != nil {
		return nil, err
	}
	return map[string]any{"name": name, "visibility": visibility}, h.Users.SetNamespace(name, visibility)
}

func (h *handler) removeNamespace(q *request) (any, error) {
	name, err := q.owned()
	if err != nil {
		return nil, err
	}
	return nil, h.Users.RemoveNamespace(name)
}

// Token is a personal access token without its text.
type Token struct {
	ID      string            `json:"id"`
	User    string            `json:"user"`
	Name    string            `json:"name"`
	Scopes  []auth.TokenScope `json:"scopes"`
	Created time.Time         `json:"created"`
	Expires time.Time         `json:"expires,omitzero"`
	Used    time.Time         `json:"used,omitzero"`
	Text    string            `json:"token,omitempty"` // only when it is made
}

func newToken(t auth.AccessToken) Token {
	return Token{ID: t.ID, User: t.User, Name: t.Name, Scopes: t.Scopes, Created: t.Created, Expires: t.Expires, Used: t.Used}
}

// subject returns the user whose tokens a request is about: the caller, or whom an admin names.
func (q *request) subject() (string, error) {
	user := cmp.Or(q.r.URL.Query().Get("user"), q.caller.Name())
	if user != q.caller.Name() && !q.caller.Admin() {
		return "", errs.New(errs.Forbidden, "requested access to the resource is denied")
	}
	return user, nil
}

func (h *handler) tokens(q *request) (any, error) {
	user, err := q.subject()
	if err != nil {
		return nil, err
	}
	found, err := h.Tokens.List(q.r.Context(), user, 10*auth.MaxTokens)
	list := []Token{}
	for _, t := range found {
		list = append(list, newToken(t))
	}
	return map[string]any{"tokens": list}, err
}

func (h *handler) createToken(q *request) (any, error) {
	var v struct {
		Name   string
		Days   int
		Scopes []auth.TokenScope
	}
	if err := q.read(&v); err != nil {
		return nil, err
	}
	if v.Days < 0 || v.Days > 3650 {
		return nil, errs.New(errs.Invalid, "days must be 0 (never expires) to 3650")
	}
	user, err := h.Users.Find(q.caller.Name()) // not another one's, even for an admin
	if err != nil {
		return nil, err
	}
	t, text, err := h.Tokens.Create(q.r.Context(), user, v.Name, v.Scopes, time.Duration(v.Days)*24*time.Hour)
	if err != nil {
		return nil, err
	}
	answer := newToken(t)
	answer.Text = text
	return made{answer}, nil
}

func (h *handler) revokeToken(q *request) (any, error) {
	user, err := q.subject()
	if err != nil {
		return nil, err
	}
	return nil, h.Tokens.Revoke(q.r.Context(), user, q.r.PathValue("id"))
}

func (h *handler) users(*request) (any, error) {
	type user struct {
		Name     string       `json:"name"`
		Created  time.Time    `json:"created"`
		Provider string       `json:"provider,omitempty"` // where the user signs in
		Grants   []auth.Grant `json:"grants"`
	}
	users, grants := h.Users.List()
	by := map[string][]auth.Grant{}
	for _, g := range grants {
		by[g.Subject] = append(by[g.Subject], g)
	}
	list := []user{}
	for _, u := range users {
		list = append(list, user{u.Name, u.Created, u.Issuer, append([]auth.Grant{}, by[u.Name]...)})
	}
	return map[string]any{"users": list, "anonymous": append([]auth.Grant{}, by[auth.Anonymous]...)}, nil
}

func (h *handler) groups(*request) (any, error) {
	type group struct {
		auth.Group
		Grants []auth.Grant `json:"grants"`
	}
	_, grants := h.Users.List()
	list := []group{}
	for _, g := range h.Users.Groups() {
		own := slices.DeleteFunc(slices.Clone(grants), func(gr auth.Grant) bool { return gr.Subject != auth.GroupSubject(g.Name) })
		list = append(list, group{g, append([]auth.Grant{}, own...)})
	}
	return map[string]any{"groups": list}, nil
}

func (h *handler) audit(q *request) (any, error) {
	n, err := q.limit()
	if err != nil {
		return nil, err
	}
	params := q.r.URL.Query()
	question := audit.Question{User: params.Get("user"), Repository: params.Get("repository"), Action: params.Get("action"), After: params.Get("last"), Limit: n}
	if s := params.Get("since"); s != "" {
		if question.Since, err = time.Parse(time.RFC3339, s); err != nil {
			return nil, errs.New(errs.Invalid, "since must be a time such as 2026-01-02T15:04:05Z")
		}
	}
	if strings.ContainsFunc(question.After, func(r rune) bool { return r < '0' || r > 'f' }) || len(question.After) > 100 {
		return nil, errs.New(errs.Invalid, "last is not what an answer ended with")
	}
	list, next, err := audit.Entries(q.r.Context(), h.Metadata, question)
	return map[string]any{"entries": list, "next": next}, err
}
