package auth

import (
	"slices"
	"strings"
	"time"

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

// Roles returns all roles, the one with the fewest rights first.
func Roles() []Role { return []Role{Reader, Writer, Admin} }

// ParseRole returns s as a role. The error's class is errs.Invalid.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles(), r) {
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
	Subject string `json:"subject"` // a user, a group (see GroupSubject), or Anonymous
	Pattern string `json:"pattern"`
	Role    Role   `json:"role"`
}

// Rights are what one subject may do: by its grants, those of its groups and those of everyone, and by the visibility of namespaces.
type Rights struct {
	name   string // "" = anonymous
	grants []Grant
	groups []string
	table  *table
}

// rights returns the rights of a user; "" = those who do not log in. Groups of a provider count for as long as age after a sign-in.
func (t *table) rights(name string, age time.Duration) Rights {
	r := Rights{name: name, grants: t.grants[Anonymous], table: t} // what everyone may do, a user may do
	if name == "" {
		return r
	}
	r.grants = slices.Concat(t.grants[name], r.grants)
	r.groups = t.groupsOf(name, age)
	for _, group := range r.groups {
		r.grants = append(r.grants, t.grants[groupPrefix+group]...)
	}
	return r
}

// May reports whether the subject may do something to a repository. A user is the admin of the repositories below its own name.
func (r Rights) May(repo content.Repository, a access.Action) bool {
	if r.name != "" && repo != "" && content.Pattern(r.name+"/**").Matches(repo) {
		return true
	}
	if slices.ContainsFunc(r.grants, func(g Grant) bool { return g.Role.allows(a) && content.Pattern(g.Pattern).Matches(repo) }) {
		return true
	}
	if a != access.Pull || repo == "" {
		return false
	}
	switch r.table.visibility(repo) {
	case Public:
		return true
	case Internal:
		return r.name != ""
	}
	return false
}

// owns reports whether the subject is the admin of every repository of a namespace.
func (r Rights) owns(namespace string) bool {
	if r.name != "" && content.Pattern(r.name+"/**").Matches(content.Repository(namespace)) {
		return true
	}
	return slices.ContainsFunc(r.grants, func(g Grant) bool {
		return g.Role == Admin && strings.HasSuffix(g.Pattern, "**") && content.Pattern(g.Pattern).Matches(content.Repository(namespace))
	})
}

// admin reports whether the subject is the admin of everything.
func (r Rights) admin() bool {
	return slices.ContainsFunc(r.grants, func(g Grant) bool { return g.Role == Admin && g.Pattern == "**" })
}
