// Package access has the words in which the registry speaks about rights: who makes a request, and what it may do to a repository.
// Package auth decides; packages that serve requests ask.
package access

import (
	"net/http"

	"ply/internal/registry/content"
)

// Action is something that is done to a repository.
type Action string

// The actions, by their names in the scopes of tokens.
const (
	Pull   Action = "pull"   // read manifests, tags and blobs; see the repository in lists
	Push   Action = "push"   // write manifests, tags and blobs
	Delete Action = "delete" // delete any of them
)

// Actions returns all actions, the one that needs the fewest rights first.
func Actions() []Action { return []Action{Pull, Push, Delete} }

// Caller is who makes a request.
type Caller interface {
	// Name returns the user, or "" for an anonymous caller.
	Name() string
	// May reports whether the caller may do something to a repository. With the repository "" it reports whether the caller is let in.
	May(repo content.Repository, a Action) bool
	// Sees reports whether the caller finds a repository in lists.
	Sees(repo content.Repository) bool
	// Admin reports whether the caller may use and change everything.
	Admin() bool
}

// Gate knows callers.
type Gate interface {
	// Identify returns who makes a request. The error's class is errs.Unauthorized when its credentials are wrong, and errs.Exhausted
	// when there were too many wrong ones.
	Identify(r *http.Request) (Caller, error)
	// Challenge returns the header WWW-Authenticate for a caller who may not do something, or whose credentials are wrong (nil). It
	// returns "" when to log in again would not help. The last action is the one that was refused; a client asks for all of them.
	// Without a repository, a is not used.
	Challenge(r *http.Request, c Caller, repo content.Repository, a ...Action) string
}

// Open is the gate of a registry that everyone may use.
var Open Gate = openGate{}

type openGate struct{}

func (openGate) Identify(*http.Request) (Caller, error)                                { return everyone{}, nil }
func (openGate) Challenge(*http.Request, Caller, content.Repository, ...Action) string { return "" }

type everyone struct{}

func (everyone) Name() string                        { return "" }
func (everyone) May(content.Repository, Action) bool { return true }
func (everyone) Admin() bool                         { return true }
func (everyone) Sees(content.Repository) bool        { return true }

// Tell tells the wrapper of an answer who makes the request, for logs.
func Tell(w http.ResponseWriter, c Caller) {
	if to, ok := w.(interface{ SetUser(name string) }); ok {
		to.SetUser(c.Name())
	}
	if by, ok := c.(interface{ Token() string }); ok {
		if to, ok := w.(interface{ SetToken(id string) }); ok {
			to.SetToken(by.Token())
		}
	}
}
