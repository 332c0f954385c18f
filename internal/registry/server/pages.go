package server

import (
	"context"
	"net/http"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/auth"
	"ply/internal/registry/content"
	"ply/internal/registry/web"
)

// openPages makes the pages for people.
func (s *Server) openPages() {
	if s.o.NoPages {
		return
	}
	o := web.Options{
		Repositories: s.repositories, Blobs: s.repositories.Blobs, Gate: s.gate, Namespaces: namespaces{s}, Users: s.users, Tokens: s.tokens, ReadOnly: s.readOnly, URL: s.o.URL, Log: s.o.Log, Free: s.free,
		Delete: func(r *http.Request, c access.Caller, repo content.Repository, d content.Digest, tag content.Tag) error {
			g := s.current.join()
			defer g.requests.Done()
			return g.api.Delete(r, c, repo, d, tag)
		},
	}
	if s.o.SignIn.Issuer != "" {
		o.SignIn = auth.SignInPath
	}
	s.pages = web.New(o)
}

// free returns how many bytes a collection would free now.
func (s *Server) free(ctx context.Context) (int64, error) {
	now, err := s.repositories.Metadata.Now(ctx)
	if err != nil {
		return 0, err
	}
	c := s.Collector()
	c.DryRun = true
	r, err := c.Run(ctx, now.Add(-s.o.Collect.Grace), now.Add(-s.o.Collect.Idle))
	return r.Bytes, err
}

// namespaces are those of the users.
type namespaces struct{ s *Server }

// Visibility returns that of a repository or a namespace.
func (n namespaces) Visibility(name string) string { return string(n.s.users.Visibility(name)) }

// SetVisibility makes a namespace, or changes it.
func (n namespaces) SetVisibility(name, visibility string) error {
	if n.s.readOnly() {
		return errs.New(errs.Forbidden, "the registry is read-only")
	}
	v, err := auth.ParseVisibility(visibility)
	if err != nil {
		return err
	}
	return n.s.users.SetNamespace(name, v)
}
