package web

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/auth"
	"ply/internal/registry/blobs"
	"ply/internal/registry/content"
	"ply/internal/registry/metadata"
	"ply/internal/registry/repository"
)

// Gate knows visitors.
type Gate interface {
	// Visitor returns who makes a request of a browser. The error's class is errs.Unauthorized when its session is not valid.
	Visitor(r *http.Request) (access.Caller, error)
	// SignIn begins a session by a password. The error's class is errs.Unauthorized for a wrong one, and errs.Exhausted when there were
	// too many wrong ones.
	SignIn(w http.ResponseWriter, r *http.Request, name, password string) error
	SignOut(w http.ResponseWriter, r *http.Request)
	// IsOpen reports whether everyone may do everything.
	IsOpen() bool
}

// Namespaces are the parts of names whose visibility their owners choose.
type Namespaces interface {
	// Visibility returns that of a repository or a namespace: public, internal or private.
	Visibility(name string) string
	// SetVisibility makes a namespace. The error's class is errs.Invalid when the name or the visibility is not valid.
	SetVisibility(name, visibility string) error
}

// Options configure a Handler.
type Options struct {
	Repositories *repository.Service
	Blobs        blobs.Store
	Gate         Gate
	Namespaces   Namespaces // nil = there are none
	// Users and Tokens are for the pages about people; nil = there are none.
	Users    *auth.Users
	Tokens   *auth.Tokens
	ReadOnly func() bool // nothing can be changed; nil = everything can
	// Delete deletes a manifest, a tag, or with neither a repository, as the protocol does. The error's class is errs.Forbidden when
	// the caller may not, or nothing can be deleted.
	Delete func(r *http.Request, c access.Caller, repo content.Repository, d content.Digest, tag content.Tag) error
	// Free returns how many bytes a collection would free.
	Free   func(ctx context.Context) (int64, error)
	URL    string       // what clients reach the registry by; "" = what each request says
	SignIn string       // path at which an identity provider signs in; "" = none
	Log    *slog.Logger // nil = none
}

// Handler serves the pages. Safe for concurrent use.
type Handler struct {
	Options
	metadata metadata.Store
	mux      http.Handler
	pages    map[string]*template.Template
	trees    *trees
	storage  measured
}

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// policy lets a page load its own style and script and nothing else.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// New returns a handler. The caller closes it.
func New(o Options) *Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Handler{Options: o, metadata: o.Repositories.Metadata, trees: newTrees(), pages: map[string]*template.Template{}}
	h.storage.ctx, h.storage.cancel = context.WithCancel(context.Background())
	layout := template.Must(template.New("layout").Funcs(functions).ParseFS(templateFiles, "templates/layout.html"))
	names, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		panic(err) // the pattern is well formed
	}
	for _, file := range names {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "templates/"), ".html")
		if name != "layout" {
			h.pages[name] = template.Must(template.Must(layout.Clone()).ParseFS(templateFiles, file))
		}
	}
	mux := http.NewServeMux()
	for pattern, serve := range map[string]func(*visit) error{
		"GET /{$}":                        (*visit).repositories,
		"GET /sign-in":                    (*visit).signInForm,
		"POST /sign-in":                   (*visit).signIn,
		"POST /sign-out":                  (*visit).signOut,
		"GET /new":                        (*visit).newRepository,
		"POST /namespaces":                (*visit).setNamespace,
		"GET /storage":                    (*visit).storage,
		"GET /tokens":                     (*visit).tokens,
		"POST /tokens":                    (*visit).createToken,
		"POST /tokens/revoke":             (*visit).revokeToken,
		"POST /password":                  (*visit).changePassword,
		"GET /people":                     forAdmins(adminVisit.users),
		"POST /people":                    forAdmins(adminVisit.addUser),
		"GET /people/users/{name}":        forAdmins(adminVisit.user),
		"POST /people/users/{name}/{do}":  forAdmins(adminVisit.changeUser),
		"GET /people/groups":              forAdmins(adminVisit.groups),
		"POST /people/groups":             forAdmins(adminVisit.addGroup),
		"GET /people/groups/{name}":       forAdmins(adminVisit.group),
		"POST /people/groups/{name}/{do}": forAdmins(adminVisit.changeGroup),
		"GET /r/{path...}":                (*visit).below,
		"POST /r/{path...}":               (*visit).change,
		"GET /{path...}":                  func(*visit) error { return errNoPage },
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { h.serve(w, r, serve) })
	}
	static := http.FileServerFS(staticFiles)
	mux.HandleFunc("GET /static/{name}", func(w http.ResponseWriter, r *http.Request) {
		protect(w)
		w.Header().Set("Cache-Control", "max-age=300")
		static.ServeHTTP(w, r)
	})
	h.mux = http.NewCrossOriginProtection().Handler(mux)
	return h
}

// ServeHTTP serves a page.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func protect(w http.ResponseWriter) {
	w.Header().Set("Content-Security-Policy", policy)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "same-origin")
}

// visit is one request whose visitor is known.
type visit struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	caller access.Caller
}

const (
	maxForm   = 64 << 10 // bytes
	pageLimit = time.Minute
)

var errNoPage = errs.New(errs.NotFound, "there is no such page")

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, serve func(*visit) error) {
	protect(w)
	w.Header().Set("Cache-Control", "private, no-store")
	ctx, cancel := context.WithTimeout(r.Context(), pageLimit)
	defer cancel()
	var err error
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err = r.ParseForm(); err != nil { // here, so that Describe finds it
			err = errs.New(errs.Invalid, "the form cannot be read: %w", err)
		}
	}
	v := &visit{h: h, w: w, r: r.WithContext(ctx)}
	if err != nil {
		v.fail(err)
		return
	}
	if v.caller, err = h.Gate.Visitor(r); errors.Is(err, errs.Unauthorized) {
		h.Gate.SignOut(w, r) // the session has ended
		http.Redirect(w, r, "/sign-in?"+url.Values{"return": {r.URL.RequestURI()}}.Encode(), http.StatusSeeOther)
		return
	}
	if err == nil {
		access.Tell(w, v.caller)
		err = serve(v)
	}
	if err != nil {
		v.fail(err)
	}
}

// fail shows an error. A visitor who has not signed in is asked to when something does not exist for it.
func (v *visit) fail(err error) {
	status, title, text := http.StatusInternalServerError, "Something went wrong", "The registry has an internal error. Its log has the reason."
	switch {
	case errors.Is(err, errs.NotFound):
		status, title, text = http.StatusNotFound, "Not found", "There is no such thing here, or you may not see it."
	case errors.Is(err, errs.Forbidden):
		status, title, text = http.StatusForbidden, "Not allowed", err.Error()
	case errors.Is(err, errs.Invalid):
		status, title, text = http.StatusBadRequest, "Not possible", err.Error()
	case errors.Is(err, errs.Unauthorized):
		status, title, text = http.StatusForbidden, "Not allowed", err.Error()
	case errors.Is(err, errs.Conflict), errors.Is(err, errs.Precondition), errors.Is(err, errs.Exists):
		status, title, text = http.StatusConflict, "Not possible now", err.Error()
	case errors.Is(err, errs.Exhausted):
		status, title, text = http.StatusTooManyRequests, "Too much", err.Error()
	case errors.Is(err, errs.Unavailable), errors.Is(err, context.DeadlineExceeded):
		status, title, text = http.StatusServiceUnavailable, "Not now", "This takes too long, or a store of the registry does not answer. Try again later."
	}
	if status >= 500 {
		v.h.Log.Error("page failed", "path", v.r.URL.Path, "err", err)
	}
	v.show("error", status, title, map[string]any{"Text": text, "SignIn": status == http.StatusNotFound && v.caller != nil && v.stranger()})
}

// stranger reports whether the visitor could see more after signing in.
func (v *visit) stranger() bool { return v.caller.Name() == "" && !v.h.Gate.IsOpen() }

// page is what the layout shows.
type page struct {
	Title    string
	User     string
	Stranger bool
	Admin    bool
	People   bool   // there are users, whom the visitor may change
	Here     string // path and query, to come back to
	Host     string
	Query    string
	Data     any
}

// show writes a page.
func (v *visit) show(name string, status int, title string, data any) {
	p := page{Title: title, Here: v.r.URL.RequestURI(), Host: v.host(), Query: v.r.URL.Query().Get("q"), Data: data}
	if v.caller != nil {
		p.User, p.Stranger, p.Admin = v.caller.Name(), v.stranger(), v.caller.Admin()
		p.People = v.h.Users != nil && v.admin() == nil
	}
	var b bytes.Buffer
	if err := v.h.pages[name].ExecuteTemplate(&b, "layout", p); err != nil {
		v.h.Log.Error("page failed", "path", v.r.URL.Path, "err", err)
		http.Error(v.w, "the registry has an internal error", http.StatusInternalServerError)
		return
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.WriteHeader(status)
	_, _ = v.w.Write(b.Bytes())
}

// host is what clients call the registry by.
func (v *visit) host() string {
	if _, rest, ok := strings.Cut(v.h.URL, "://"); ok {
		return strings.TrimSuffix(rest, "/")
	}
	return v.r.Host
}

func (v *visit) signInForm() error {
	v.show("sign-in", http.StatusOK, "Sign in", map[string]any{"Return": auth.LocalPath(v.r.URL.Query().Get("return")), "Provider": v.h.SignIn, "Open": v.h.Gate.IsOpen()})
	return nil
}

func (v *visit) signIn() error {
	back, name := auth.LocalPath(v.r.PostForm.Get("return")), v.r.PostForm.Get("name")
	err := v.h.Gate.SignIn(v.w, v.r, name, v.r.PostForm.Get("password"))
	if err == nil {
		if named, ok := v.w.(interface{ SetUser(name string) }); ok { // for the log: the session is only in the answer
			named.SetUser(name)
		}
		http.Redirect(v.w, v.r, back, http.StatusSeeOther)
		return nil
	}
	if !errors.Is(err, errs.Unauthorized) && !errors.Is(err, errs.Exhausted) {
		return err
	}
	v.show("sign-in", http.StatusForbidden, "Sign in", map[string]any{"Return": back, "Name": name, "Error": err.Error(), "Provider": v.h.SignIn})
	return nil
}

func (v *visit) signOut() error {
	v.h.Gate.SignOut(v.w, v.r)
	http.Redirect(v.w, v.r, "/", http.StatusSeeOther)
	return nil
}

// Describe says what a request to the pages changes, for a log: delete, namespace, sign-in, sign-out, or a change of users or tokens in the
// words of the command line. Change is false for one that only reads.
func Describe(r *http.Request) (action string, repo content.Repository, reference string, change bool) {
	if r.Method != http.MethodPost {
		return "", "", "", false
	}
	switch r.URL.Path {
	case "/sign-in", "/sign-out":
		return r.URL.Path[1:], "", "", true
	case "/namespaces":
		return "namespace", "", r.PostForm.Get("name"), true
	}
	if action, reference, ok := describePeople(r); ok {
		return action, "", reference, true
	}
	if repo, reference, ok := deletion(r.URL.Path); ok {
		return "delete", repo, reference, true
	}
	return "", "", "", false
}
