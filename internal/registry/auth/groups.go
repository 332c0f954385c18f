package auth

import (
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ply/internal/errs"
	"ply/internal/registry/content"
)

// Group is a set of users, who may do what is granted to it.
type Group struct {
	Name    string    `json:"name"`
	Members []string  `json:"members,omitempty"` // users
	Claims  []string  `json:"claims,omitempty"`  // groups of an OpenID provider, whose users are members, too
	Created time.Time `json:"created"`
}

// groupPrefix begins the subjects of grants that are groups. No user can have such a name.
const groupPrefix = "group:"

// GroupSubject returns the subject of the grants of a group.
func GroupSubject(name string) string { return groupPrefix + name }

// Limits of groups and namespaces.
const (
	maxGroups     = 10_000
	maxMembers    = 100_000 // of a group
	maxClaims     = 100     // of a group
	maxClaim      = 255     // bytes
	maxNamespaces = 100_000
)

func (r *usersRecord) findGroup(name string) int {
	return slices.IndexFunc(r.Groups, func(g Group) bool { return g.Name == name })
}

// groupsOf returns the groups of a user.
func (t *table) groupsOf(name string, age time.Duration) []string {
	list := slices.Clone(t.groups[name])
	if u := t.users[name]; len(u.Claims) > 0 && time.Since(u.SignedIn) < age {
		for _, claim := range u.Claims {
			list = append(list, t.claimed[claim]...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Groups returns the groups.
func (u *Users) Groups() []Group { return u.current().record.Groups }

// AddGroup adds a group without members. The error's class is errs.Exists when there is one of this name.
func (u *Users) AddGroup(name string) error {
	if err := checkName(name); err != nil {
		return errs.New(errs.Invalid, "group %q: want lower-case letters and digits, separated by one of . _ -", name)
	}
	return u.change(func(r *usersRecord) error {
		if r.findGroup(name) >= 0 {
			return errs.New(errs.Exists, "group %s exists", name)
		}
		if len(r.Groups) >= maxGroups {
			return errs.New(errs.Exhausted, "there are %d groups, the limit", maxGroups)
		}
		r.Groups = append(r.Groups, Group{Name: name, Created: time.Now().UTC().Truncate(time.Second)})
		return nil
	})
}

// RemoveGroup removes a group with its grants.
func (u *Users) RemoveGroup(name string) error {
	return u.changeGroup(name, func(r *usersRecord, i int) error {
		r.Groups = slices.Delete(r.Groups, i, i+1)
		r.Grants = slices.DeleteFunc(r.Grants, func(g Grant) bool { return g.Subject == groupPrefix+name })
		return nil
	})
}

// Join makes users members of a group.
func (u *Users) Join(group string, names ...string) error {
	return u.changeGroup(group, func(r *usersRecord, i int) error {
		for _, name := range names {
			if r.find(name) < 0 {
				return errs.New(errs.NotFound, "user %s does not exist", name)
			}
			r.Groups[i].Members = append(r.Groups[i].Members, name)
		}
		slices.Sort(r.Groups[i].Members)
		r.Groups[i].Members = slices.Compact(r.Groups[i].Members)
		if len(r.Groups[i].Members) > maxMembers {
			return errs.New(errs.Exhausted, "the group has more than %d members", maxMembers)
		}
		return nil
	})
}

// Leave takes users out of a group.
func (u *Users) Leave(group string, names ...string) error {
	return u.changeGroup(group, func(r *usersRecord, i int) error {
		for _, name := range names {
			at := slices.Index(r.Groups[i].Members, name)
			if at < 0 {
				return errs.New(errs.NotFound, "%s is no member of group %s", name, group)
			}
			r.Groups[i].Members = slices.Delete(r.Groups[i].Members, at, at+1)
		}
		return nil
	})
}

// SetClaims makes the users of these groups of an OpenID provider members of a group.
func (u *Users) SetClaims(group string, claims ...string) error {
	for _, c := range claims {
		if c == "" || len(c) > maxClaim || !utf8.ValidString(c) || strings.ContainsFunc(c, unicode.IsControl) {
			return errs.New(errs.Invalid, "claim %q: want text of 1 to %d bytes", c, maxClaim)
		}
	}
	if len(claims) > maxClaims {
		return errs.New(errs.Invalid, "%d claims, the limit is %d", len(claims), maxClaims)
	}
	return u.changeGroup(group, func(r *usersRecord, i int) error {
		r.Groups[i].Claims = slices.Compact(slices.Sorted(slices.Values(claims)))
		return nil
	})
}

func (u *Users) changeGroup(name string, edit func(r *usersRecord, i int) error) error {
	return u.change(func(r *usersRecord) error {
		i := r.findGroup(name)
		if i < 0 {
			return errs.New(errs.NotFound, "group %s does not exist", name)
		}
		return edit(r, i)
	})
}

// Visibility says who may pull from a namespace beside those who were granted it.
type Visibility string

// The visibilities.
const (
	Private  Visibility = "private"  // no one
	Internal Visibility = "internal" // everyone who logs in
	Public   Visibility = "public"   // everyone
)

// ParseVisibility returns s as a visibility. The error's class is errs.Invalid.
func ParseVisibility(s string) (Visibility, error) {
	switch v := Visibility(s); v {
	case Private, Internal, Public:
		return v, nil
	}
	return "", errs.New(errs.Invalid, "visibility %q is none of private, internal and public", s)
}

// Namespace is the repository of its name with all that are below it. Of namespaces inside of each other the innermost counts.
type Namespace struct {
	Name       string     `json:"name"`
	Visibility Visibility `json:"visibility"`
	Created    time.Time  `json:"created"`
}

// visibility returns that of a repository; one in no namespace is private.
func (t *table) visibility(repo content.Repository) Visibility {
	for name := string(repo); len(t.namespaces) > 0 && name != ""; {
		if v, ok := t.namespaces[name]; ok {
			return v
		}
		name = name[:max(strings.LastIndexByte(name, '/'), 0)]
	}
	return Private
}

// Namespaces returns the namespaces.
func (u *Users) Namespaces() []Namespace { return u.current().record.Namespaces }

// SetNamespace adds a namespace or changes its visibility.
func (u *Users) SetNamespace(name string, v Visibility) error {
	if _, err := content.ParseRepository(name); err != nil {
		return err
	}
	if _, err := ParseVisibility(string(v)); err != nil {
		return err
	}
	return u.change(func(r *usersRecord) error {
		if i := r.findNamespace(name); i >= 0 {
			r.Namespaces[i].Visibility = v
			return nil
		}
		if len(r.Namespaces) >= maxNamespaces {
			return errs.New(errs.Exhausted, "there are %d namespaces, the limit", maxNamespaces)
		}
		r.Namespaces = append(r.Namespaces, Namespace{name, v, time.Now().UTC().Truncate(time.Second)})
		return nil
	})
}

func (r *usersRecord) findNamespace(name string) int {
	return slices.IndexFunc(r.Namespaces, func(n Namespace) bool { return n.Name == name })
}

// RemoveNamespace removes a namespace. Its repositories stay, and are private unless they are in another one.
func (u *Users) RemoveNamespace(name string) error {
	return u.change(func(r *usersRecord) error {
		i := r.findNamespace(name)
		if i < 0 {
			return errs.New(errs.NotFound, "namespace %s does not exist", name)
		}
		r.Namespaces = slices.Delete(r.Namespaces, i, i+1)
		return nil
	})
}
