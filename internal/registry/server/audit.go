package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/api"
	"ply/internal/registry/audit"
	"ply/internal/registry/auth"
	"ply/internal/registry/metadata/bolt"
	"ply/internal/registry/metadata/postgres"
	"ply/internal/registry/observe"
	"ply/internal/registry/oidc"
	"ply/internal/registry/people"
	"ply/internal/registry/web"
)

// SignIn says where users sign in.
type SignIn struct {
	oidc.Options               // without an issuer no one signs in
	GroupsAge    time.Duration // how long groups of the provider count after a sign-in
	NoCreate     bool          // only users that are there sign in
}

// Audit says what is noted of who did what.
type Audit struct {
	Max   int           // entries that are kept; 0 = nothing is noted
	Age   time.Duration // how long an entry is kept; 0 = any time
	Pulls bool          // pulls are noted, too
}

func (s *Server) openAudit() {
	s.audit = audit.Open(audit.Options{Documents: s.repositories.Metadata, Max: s.o.Audit.Max, Age: s.o.Audit.Age, Failed: func(err error) {
		s.o.Log.Error("audit log", "err", err)
	}})
}

// audited notes a request.
func (s *Server) audited(r observe.Request) {
	if s.o.Audit.Max == 0 {
		return
	}
	e := audit.Entry{User: r.User, Token: r.Token, Status: r.Status, Address: r.RemoteAddr}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		e.Address = host
	}
	refused := r.Status == http.StatusForbidden || r.Status == http.StatusTooManyRequests || r.Status == http.StatusUnauthorized && r.Header.Get("Authorization") != ""
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/v2"):
		action, repository, reference, change := api.Describe(r.Request)
		pull := s.o.Audit.Pulls && r.Method == http.MethodGet && api.IsManifest(path)
		// A mount that could not be made begins an upload, which changes nothing yet.
		if !refused && !pull && (!change || r.Status == http.StatusAccepted && action == access.Push) {
			return
		}
		e.Action, e.Repository, e.Reference = string(action), repository, reference
	case path == auth.TokenPath:
		// Clients fetch a token for each repository; without one they log in.
		if !refused && (r.Status != http.StatusOK || r.User == "" || strings.Contains(r.URL.RawQuery, "scope=repository")) {
			return
		}
		e.Action = "login"
	case path == auth.CallbackPath:
		e.Action = "sign-in"
	case strings.HasPrefix(path, people.Prefix):
		if !refused && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			return
		}
		what, name, _ := strings.Cut(strings.TrimPrefix(path, people.Prefix), "/")
		e.Action, e.Reference = strings.ToLower(r.Method)+" "+what, name
	default:
		if action, repository, reference, change := web.Describe(r.Request); change && s.pages != nil && (refused || r.Status == http.StatusSeeOther || r.Status == http.StatusCreated) {
			e.Action, e.Repository, e.Reference = action, string(repository), reference
			break
		}
		if !refused {
			return
		}
		e.Action, e.Reference = "read", path
	}
	s.audit.Record(e)
}

// auditDocuments is what a command reaches of a registry.
type auditDocuments interface {
	auth.Documents
	Close() error
}

// servedCloser are documents that need no closing.
type servedCloser struct{ servedDocuments }

func (servedCloser) Close() error { return nil }

// openDocuments opens the documents of a registry for a command beside it: through the process that serves it, or itself.
func openDocuments(ctx context.Context, o Options) (auditDocuments, error) {
	if o.Database != "" {
		return postgres.Open(ctx, postgres.Options{URL: o.Database})
	}
	served := servedDocuments(o.Root)
	if conn, err := served.dial(ctx); err == nil {
		return servedCloser{served}, conn.Close()
	}
	file, err := bolt.Open(filepath.Join(o.Root, "metadata.db"))
	if errors.Is(err, errs.Unavailable) { // it has been started meanwhile
		return servedCloser{served}, nil
	}
	return file, err
}

// Note adds an entry to the audit log of a registry, for a command beside it.
func Note(ctx context.Context, o Options, e audit.Entry) (err error) {
	if o.Audit.Max == 0 {
		return nil
	}
	docs, err := openDocuments(ctx, o)
	if err != nil {
		return err
	}
	defer errs.Close(&err, docs)
	return audit.Write(ctx, docs, e)
}

// AuditEntries reads the audit log of a registry, for a command beside it.
func AuditEntries(ctx context.Context, o Options, q audit.Question) (list []audit.Entry, next string, err error) {
	docs, err := openDocuments(ctx, o)
	if err != nil {
		return nil, "", err
	}
	defer errs.Close(&err, docs)
	return audit.Entries(ctx, docs, q)
}
