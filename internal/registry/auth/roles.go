package auth

import (
	"slices"

	"ply/internal/errs"
	"ply/internal/registry/access"
	"ply/internal/registry/content"
)

// Role is a set of actions.
type Role string

// The roles, each with what the one before it may do.
const (
	Reader Role = "reader" // pull
	Writer Role = "writer" // and push
	Admin  Role = "admin"  // and delete
)

// ParseRole returns s as a role. The error's class is errs.Invalid.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case Reader, Writer, Admin:
		return r, nil
	}
	return "", errs.New(errs.Invalid, "role %q is none of reader, writer and admin", s)
}

func (r Role) allows(a access.Action) bool {
	switch a {
	case access.Pull:
		return r == Reader || r == Writer || r == Admin
	case access.Push:
		return r == Writer || r == Admin
	case access.Delete:
		return r == Admin
	}
	return false
}

// Anonymous is the subject of the grants of those who do not log in. No user can have this name.
const Anonymous = "@anonymous"

// Grant gives a subject a role on the repositories that a pattern matches.
type Grant struct {
	Subject string `json:"subject"` // a user, or Anonymous
	Pattern string `json:"pattern"`
	Role    Role   `json:"role"`
}

// Rights are the grants of one subject.
type Rights struct {
	name   string // "" = anonymous
	grants []Grant
}

// May reports whether the subject may do something to a repository. A user is the admin of the repositories below its own name.
func (r Rights) May(repo content.Repository, a access.Action) bool {
	if r.name != "" && repo != "" && content.Pattern(r.name+"/**").Matches(repo) {
		return true
	}
	return slices.ContainsFunc(r.grants, func(g Grant) bool { return g.Role.allows(a) && content.Pattern(g.Pattern).Matches(repo) })
}

// admin reports whether the subject is the admin of everything.
func (r Rights) admin() bool {
	return slices.ContainsFunc(r.grants, func(g Grant) bool { return g.Role == Admin && g.Pattern == "**" })
}
